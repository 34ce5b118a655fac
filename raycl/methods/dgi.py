"""DGI: deep graph infomax, the baseline of one view; of whole graphs its kin InfoGraph.

Velickovic, Fedus, Hamilton, Lio, Bengio, Hjelm, ICLR 2019, arXiv 1809.10341; Sun, Hoffmann, Verma,
Tang, ICLR 2020, arXiv 1908.01000. There is the adjacency alone, and nodes are contrasted with the
whole that they are in:

    H = GCN(A_hat, X),  c = sigmoid(mean of H over nodes)
    nodes:   loss = BCE of T(H, c) as true and T(H~, c) as false, H~ of shuffled rows of X
    graphs:  loss = JSD(nodes, graphs), g the concatenation over layers of the sums over nodes

Networks, initialisation and loss of graphs are those of `raycl.methods.mvgrl`, so that the two
differ in the views alone: InfoGraph's own layers are those of GIN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from raycl.methods.base import Batch, DataInfo, Method, Output, Step, Stream
from raycl.methods.mvgrl import (
    MVGRL,
    Discriminator,
    Head,
    inputs,
    jsd,
    members,
    shuffled,
    told_apart,
)
from raycl.nn.gcn import GCN, Sparse
from raycl.views.packing import GraphView


class DGI(Method):
    """DGI of nodes or InfoGraph of graphs, on batches as `GraphView.pack` makes them."""

    paper = "arXiv 1809.10341"
    encoder: OneView

    class Config(MVGRL.Config):
        pass

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        self.encoder = OneView(self.config)
        dim = self.config.dim
        if self.config.level == "node":
            self.discriminator = Discriminator(dim)
        else:
            self.node_head = Head(dim, dim)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"graphs": Stream(views={"graph": GraphView(entries="none")})}

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        graph, of, encoder = batch["graph"], members(batch), self.encoder
        if self.config.level == "node":
            h = encoder.corrupted(batch, shuffled(graph, len(batch["id"]), step))
            size = of.starts.diff().clamp(min=1)[:, None]
            scores = self.discriminator(h, (of @ h[:, 0] / size).sigmoid(), graph)
            yield Output(
                told_apart(scores[None, :, 0], scores[None, :, 1]), embedding=h[:, 0].detach()
            )
        else:
            h, g = encoder.both(batch)
            yield Output(jsd(self.node_head(h), g, graph), embedding=g.detach())


class OneView(nn.Module):
    """A batch -> H of its nodes (n, dim), or f(g) of its graphs (G, dim)."""

    def __init__(self, config: DGI.Config) -> None:
        super().__init__()
        self.features, self.dim, self.of_nodes = config.features, config.dim, config.level == "node"
        layers = 1 if self.of_nodes else config.layers
        sizes = [config.features, *[config.dim] * (layers - 1)]
        self.layers = nn.ModuleList(GCN(size, config.dim) for size in sizes)
        self.head = None if self.of_nodes else Head(layers * config.dim, config.dim)

    def forward(self, batch: Batch) -> Tensor:
        h, g = self.both(batch)
        return h if self.of_nodes else g

    def both(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last layer's nodes (n, dim), and of graphs f(g) (G, dim), of nodes their sums."""
        x, a_hat, _ = inputs(batch, self.features, alpha=0.5)
        of = members(batch)
        h: Any = x
        sums = []
        for layer in self.layers:
            h = layer(a_hat, h)
            sums.append(of @ h)
        g = torch.cat(sums, 1)
        return h, g if self.head is None else self.head(g)

    def corrupted(self, batch: Batch, order: Tensor) -> Tensor:
        """H beside H~ of the rows x[order], (n, 2, dim)."""
        x, a_hat, _ = inputs(batch, self.features, alpha=0.5)
        (gcn,) = self.layers
        assert isinstance(gcn, GCN) and isinstance(a_hat, Sparse)
        z = gcn.project(x)
        return gcn.propagate(a_hat, torch.stack([z, z[order]], 1))
