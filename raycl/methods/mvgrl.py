"""MVGRL: contrastive multi-view representation learning on graphs.

Hassani, Khasahmadi, ICML 2020, arXiv 2006.05582.

    H1 = GCN1(A_hat, X),  H2 = GCN2(S, X),  c = sigmoid(mean of H over nodes)
    nodes:   loss = BCE of T(H2, c1), T(H1, c2) as true and T(H~2, c1), T(H~1, c2) as false
    graphs:  loss = JSD(nodes of view 1, graphs of view 2) + JSD(nodes of view 2, graphs of view 1)

The views of a graph are its normalised adjacency A_hat and a diffusion S. Nodes in one view are
contrasted with the whole of the other. What is false is, for nodes, a graph with the rows of X
shuffled (H~), and for graphs the other graphs of the batch.

Where the released code leaves the paper at graph level, the paper is followed: all GCN layers are
trained (a plain list hid them from the released optimizer, so that heads on random features were),
and graphs are packed without padding (padded nodes were summed, counted, and negatives for other
graphs, under masks in another order than the graphs). Each graph's rows are shuffled by themselves;
in the released code, which cuts sub-graphs of one size, all share a permutation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.methods.base import Batch, DataInfo, Method, Output, Settings, Step, Stream
from raycl.nn.collectives import all_reduce_mean, gather, rank, world_size
from raycl.nn.gcn import GCN, PageRank, Sparse
from raycl.nn.losses import _precise
from raycl.views.packing import GraphView


class MVGRL(Method):
    """MVGRL of nodes or of graphs (paper section 3; defaults of the released code).

    A batch packs G graphs, or sub-graphs of one, as `GraphView.pack` tells. Without entries of S it
    is the PageRank of A_hat as it is in the batch, which is what nodes are given unless the recipe
    says otherwise.
    """

    paper = "arXiv 2006.05582"
    encoder: NodeEncoder | GraphEncoder

    class Config(Settings):
        level: Literal["node", "graph"] = "node"
        features: int = Field(1433, ge=1, description="values of a node, F")
        dim: int = Field(512, ge=1)
        layers: int = Field(2, ge=1, le=64, description="of a GCN with level=graph; else it is 1")

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        dim, alpha = self.config.dim, self.streams["graphs"].graphs["graph"].alpha
        if self.config.level == "node":
            self.encoder = NodeEncoder(self.config, alpha)
            self.discriminator = Discriminator(dim)
        else:
            self.encoder = GraphEncoder(self.config, alpha)
            self.node_head = Head(dim, dim)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        view = GraphView(entries="none" if config.level == "node" else "exact")
        return {"graphs": Stream(views={"graph": view})}

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        if isinstance(self.encoder, NodeEncoder):
            yield self._nodes(self.encoder, batch, step)
        else:
            yield self._graphs(self.encoder, batch)

    def _nodes(self, encoder: NodeEncoder, batch: Batch, step: Step) -> Output:
        graph, of = batch["graph"], members(batch)
        h1, h2 = encoder.views(batch, shuffled(graph, len(batch["id"]), step))
        size = of.starts.diff().clamp(min=1)[:, None]
        c1, c2 = ((of @ h[:, 0] / size).sigmoid() for h in (h1, h2))
        scores = torch.stack([self.discriminator(h2, c1, graph), self.discriminator(h1, c2, graph)])
        loss = told_apart(scores[..., 0], scores[..., 1])
        return Output(loss, embedding=(h1 + h2)[:, 0].detach())

    def _graphs(self, encoder: GraphEncoder, batch: Batch) -> Output:
        (l1, g1), (l2, g2) = encoder.views(batch)
        l1, l2 = self.node_head(l1), self.node_head(l2)
        loss = jsd(l1, g2, batch["graph"]) + jsd(l2, g1, batch["graph"])
        return Output(loss, embedding=(g1 + g2).detach())


class NodeEncoder(nn.Module):
    """A batch -> H1 + H2 of its nodes (n, dim); a GCN of one layer for each view."""

    def __init__(self, config: MVGRL.Config, alpha: float) -> None:
        super().__init__()
        self.features, self.alpha, self.dim = config.features, alpha, config.dim
        self.adjacency = GCN(config.features, config.dim)
        self.diffusion = GCN(config.features, config.dim)

    def forward(self, batch: Batch) -> Tensor:
        x, a_hat, s = inputs(batch, self.features, self.alpha)
        return self.adjacency(a_hat, x) + self.diffusion(s, x)

    def views(self, batch: Batch, order: Tensor) -> list[Tensor]:
        """H1 beside H~1 and H2 beside H~2, (n, 2, dim): H~ is of the rows x[order]."""
        x, *matrices = inputs(batch, self.features, self.alpha)
        views = []
        for gcn, matrix in zip((self.adjacency, self.diffusion), matrices, strict=True):
            z = gcn.project(x)  # once for both, because (P X) W = P (X W)
            views.append(gcn.propagate(matrix, torch.stack([z, z[order]], 1)))
        return views


class GraphEncoder(nn.Module):
    """A batch -> f(g1) + f(g2) of its graphs (G, dim); a GCN of several layers for each view.

    g is the concatenation over layers of the sums over nodes; its head f serves both views.
    """

    def __init__(self, config: MVGRL.Config, alpha: float) -> None:
        super().__init__()
        self.features, self.alpha, self.dim = config.features, alpha, config.dim
        sizes = [config.features, *[config.dim] * (config.layers - 1)]
        self.adjacency = nn.ModuleList(GCN(size, config.dim) for size in sizes)
        self.diffusion = nn.ModuleList(GCN(size, config.dim) for size in sizes)
        self.head = Head(config.layers * config.dim, config.dim)

    def forward(self, batch: Batch) -> Tensor:
        (_, g1), (_, g2) = self.views(batch)
        return g1 + g2

    def views(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """For each view the last layer's nodes (n, dim), and f(g) (G, dim)."""
        x, *matrices = inputs(batch, self.features, self.alpha)
        of, views = members(batch), []
        for layers, matrix in zip((self.adjacency, self.diffusion), matrices, strict=True):
            h: Any = x
            sums = []
            for layer in layers:
                h = layer(matrix, h)
                sums.append(of @ h)
            views.append((h, self.head(torch.cat(sums, 1))))
        return views


class Discriminator(nn.Module):
    """T(h, c) = h^T B c + b of nodes (n, ..., dim) and their own graphs' summaries (G, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The released code's Xavier rule takes B (1, dim, dim) for a kernel of dim * dim inputs.
        bound = (6 / (dim * dim + dim)) ** 0.5
        self.weight = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor, c: Tensor, graph: Tensor) -> Tensor:
        """(n, ...) scores; `graph` (n,) holds rows of c."""
        scores = h @ (self.weight @ c.T)  # of every node with every graph, which are few
        own = graph.view(-1, *[1] * (h.ndim - 1)).expand(*h.shape[:-1], 1)
        return scores.gather(-1, own).squeeze(-1) + self.bias


class Head(nn.Module):
    """Three Linear-PReLU beside a linear way around them: (N, size) -> (N, dim)."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(part for s in (size, dim, dim) for part in (nn.Linear(s, dim), nn.PReLU()))
        )
        self.around = nn.Linear(size, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.around(x)


def told_apart(true: Tensor, false: Tensor) -> Tensor:
    """Binary cross-entropy of the scores T of nodes; this rank's part of the mean over all ranks'.

    Args:
        true: (2, n) scores of nodes in the one view with their graph in the other.
        false: (2, n) the same after the features were shuffled.
    """
    true, false = _precise(true), _precise(false)
    loss = F.softplus(-true).sum() + F.softplus(false).sum()
    return loss / (2 * all_reduce_mean(loss.new_tensor(true.numel())))


def jsd(local: Tensor, whole: Tensor, graph: Tensor) -> Tensor:
    """Jensen-Shannon estimate of mutual information, negated (paper equation 2; Nowozin 2016).

    Nodes of one view are to score high with their own graph in the other and low with the other
    graphs of all ranks; a score is the inner product.

    Args:
        local: nodes (n, D) of this rank's graphs in one view.
        whole: graphs (G, D) in the other view; as many on every rank.
        graph: (n,) the row of `whole` that a node belongs to.

    Returns:
        This rank's part of the mean over the nodes of all ranks, a scalar.

    Raises:
        RayclError: there is one graph alone.
    """
    graphs = world_size() * len(whole)
    if graphs < 2:
        raise RayclError("trainer.batch: level=graph needs 2 graphs at least; others are negatives")
    with torch.autocast(local.device.type, enabled=False):
        scores = _precise(local) @ gather(_precise(whole)).T
        own = (graph + rank() * len(whole))[:, None]
        positive = math.log(2) - F.softplus(-scores.gather(1, own))
        negative = (F.softplus(scores) - math.log(2)).scatter(1, own, 0)
        nodes = all_reduce_mean(scores.new_tensor(len(scores)))
        return (negative.sum() / (graphs - 1) - positive.sum()) / nodes


def shuffled(graph: Tensor, graphs: int, step: Step) -> Tensor:
    """For each node (n,) a random one of its own graph, each once; drawn by lane.

    Args:
        graph: (n,) the graph of a node, ascending.
        graphs: their number, that of all lanes of this rank.
    """
    lanes = torch.div(graph, graphs // len(step.lanes), rounding_mode="floor")
    counts = lanes.bincount(minlength=len(step.lanes)).tolist()
    draws = [
        torch.rand(count, generator=step.generator(lane), dtype=torch.float64)
        for lane, count in zip(step.lanes, counts, strict=True)
    ]
    return (graph + torch.cat(draws).to(graph.device)).argsort()


def inputs(
    batch: Batch, features: int, alpha: float
) -> tuple[Tensor | Sparse, Sparse, Sparse | PageRank]:
    """X (n, F), A_hat (n, n) and S (n, n) of a batch; `alpha` is of S where that has no entries.

    Raises:
        RayclError: nodes have more or fewer values than the encoder takes.
    """

    def entries(name: str, columns: int) -> Sparse:
        return Sparse(batch[f"{name}.index"], batch[f"{name}.weight"], (nodes, columns))

    nodes = len(batch["graph"])
    if "x" in batch:
        x: Tensor | Sparse = batch["x"]
    else:
        x = entries("x", int(batch["x.columns"]))
    if x.shape[1] != features:
        raise RayclError(
            f"method.features: {features} was given, and nodes have {x.shape[1]} values; set "
            f"method.features={x.shape[1]}"
        )
    a_hat = entries("adjacency", nodes)
    given = "diffusion.index" in batch
    return x, a_hat, entries("diffusion", nodes) if given else PageRank(a_hat, alpha)


def members(batch: Batch) -> Sparse:
    """(G, n), 1 where a node belongs to a graph."""
    graph = batch["graph"]
    index = torch.stack([graph, torch.arange(len(graph), device=graph.device)])
    return Sparse(index, torch.ones_like(graph), (len(batch["id"]), len(graph)))
