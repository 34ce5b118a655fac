"""MVGRL as published, at both levels, and on several ranks as on one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from raycl.errors import RayclError
from raycl.methods.base import Batch, Step
from raycl.methods.mvgrl import MVGRL, Head, jsd, shuffled
from raycl.nn import collectives
from raycl.nn.gcn import GCN
from raycl.views import graph
from tests.methods.maps import fill
from tests.nn.distributed import run
from tests.views.graphs import power_law

Golden = Callable[[str], dict[str, np.ndarray]]
Arrays = dict[str, np.ndarray]


def packed(**dense: np.ndarray) -> Batch:
    """A batch of matrices (G, n, n) and features (G, n, F), as they are."""
    graphs, nodes, features = dense["feat"].shape
    batch = {
        "id": torch.arange(graphs),
        "graph": torch.arange(graphs).repeat_interleave(nodes),
        "x": torch.from_numpy(dense["feat"]).double().view(-1, features),
    }
    for name, key in (("adjacency", "adj_norm"), ("diffusion", "diff")):
        at, row, column = np.nonzero(dense[key])
        index = np.stack([at * nodes + row, at * nodes + column])
        batch[f"{name}.index"] = torch.from_numpy(index)
        batch[f"{name}.weight"] = torch.from_numpy(dense[key][at, row, column]).double()
    return batch


def load(layer: GCN, found: Arrays, name: str) -> None:
    names = {"weight": "fc_weight", "bias": "bias", "act.weight": "act_weight"}
    fill(layer, {ours: found[f"par_{name}_{theirs}"] for ours, theirs in names.items()})


def of_nodes(found: Arrays) -> MVGRL:
    method = MVGRL(MVGRL.Config(features=6, dim=8))
    for name, view in (("gcn1", "adjacency"), ("gcn2", "diffusion")):
        load(getattr(method.encoder, view), found, name)
    discriminator = {"weight": found["par_disc_f_k_weight"][0], "bias": found["par_disc_f_k_bias"]}
    fill(method.discriminator, discriminator)
    return method.double()


def test_nodes_are_contrasted_as_in_the_published_code(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = golden("mvgrl_node")
    method, batch = of_nodes(found), packed(**found)
    order = torch.from_numpy(found["perm"])
    monkeypatch.setattr("raycl.methods.mvgrl.shuffled", lambda *_: torch.cat([order, order + 12]))
    (output,) = method.training_step(batch, Step(0, 0, 1))
    assert output.loss.item() == pytest.approx(found["loss"].item(), rel=1e-9)
    output.loss.backward()
    encoder = method.encoder
    for ours, theirs in {
        encoder.adjacency.weight: "gcn1_fc_weight",
        encoder.adjacency.act.weight: "gcn1_act_weight",
        encoder.diffusion.bias: "gcn2_bias",
        method.discriminator.weight: "disc_f_k_weight",
    }.items():
        gradient = found[f"grad_{theirs}"].reshape(ours.shape)
        np.testing.assert_allclose(ours.grad, gradient, rtol=1e-8, atol=1e-12)
    embedding = encoder(batch).detach().view(2, 12, 8)
    np.testing.assert_allclose(embedding, found["embedding"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(output.embedding, embedding.flatten(0, 1))


def of_graphs(found: Arrays) -> MVGRL:
    method = MVGRL(MVGRL.Config(level="graph", features=5, dim=6, layers=3))
    for name, view in (("gnn1", "adjacency"), ("gnn2", "diffusion")):
        for i, layer in enumerate(getattr(method.encoder, view)):
            load(layer, found, f"{name}_layer{i}")
    for head, name in ((method.node_head, "mlp1"), (method.encoder.head, "mlp2")):
        fill(head, {key: found[f"par_{name}_{_published(key)}"] for key in head.state_dict()})
    return method.double()


def _published(key: str) -> str:
    return key.replace("layers", "ffn").replace("around", "linear_shortcut").replace(".", "_")


def test_graphs_are_embedded_as_in_the_published_code(golden: Golden) -> None:
    """Its padded rows are nodes without edges and features here, which all graphs are given."""
    found = golden("mvgrl_graph")
    method, batch = of_graphs(found), packed(**found)
    (last, g1), (_, g2) = method.encoder.views(batch)
    for ours, theirs in {"gnn1_last": last, "lv1": method.node_head(last)}.items():
        np.testing.assert_allclose(
            theirs.detach().view(4, 7, 6), found[ours], rtol=1e-8, atol=1e-12
        )
    for name, ours in {"gv1": g1, "gv2": g2, "embedding": method.encoder(batch)}.items():
        np.testing.assert_allclose(ours.detach(), found[name], rtol=1e-8, atol=1e-12)


def test_the_loss_of_graphs_is_the_published_one(golden: Golden) -> None:
    found = golden("mvgrl_graph")
    l1, l2, g1, g2 = (
        torch.from_numpy(found[f"ragged_{name}"]).double().requires_grad_()
        for name in ("l1", "l2", "g1", "g2")
    )
    of = torch.from_numpy(found["ragged_batch"])
    first, second = jsd(l1, g2, of), jsd(l2, g1, of)
    for loss, name in ((first, "loss12"), (second, "loss21"), (first + second, "loss")):
        assert loss.item() == pytest.approx(found[f"ragged_{name}"].item(), rel=1e-9)
    for gradient, name in zip(torch.autograd.grad(first, (l1, g2)), ("l1", "g2"), strict=True):
        np.testing.assert_allclose(gradient, found[f"ragged_grad_{name}"], rtol=1e-8, atol=1e-12)


def drawn(sizes: list[int], first: int = 0) -> Batch:
    """Random graphs of so many nodes each, the first of which has this number."""
    adjacencies = [power_law(n, 2 * n, seed=first + i) for i, n in enumerate(sizes)]
    batch = {
        "id": torch.arange(first, first + len(sizes)),
        "graph": torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        "x": torch.from_numpy(
            np.concatenate(
                [np.random.default_rng(first + i).random((n, 5)) for i, n in enumerate(sizes)]
            )
        ),
    }
    for name, of in (("adjacency", graph.normalised), ("diffusion", graph.sparse_ppr)):
        index, weight = graph.pack([of(adjacency) for adjacency in adjacencies])
        batch[f"{name}.index"] = torch.from_numpy(index)
        batch[f"{name}.weight"] = torch.from_numpy(weight).double()
    return batch


def small(level: str) -> MVGRL:
    torch.manual_seed(0)
    return MVGRL(MVGRL.Config(level=level, features=5, dim=4, layers=2)).double()


@pytest.mark.parametrize("level", ["node", "graph"])
def test_every_parameter_is_trained_and_no_matrix(level: str) -> None:
    method, batch = small(level), drawn([5, 9, 3])
    weights = [batch[f"{view}.weight"].requires_grad_() for view in ("adjacency", "diffusion")]
    (output,) = method.training_step(batch, Step(3, 0, 9))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert all(weight.grad is None for weight in weights)
    assert not output.embedding.requires_grad
    torch.testing.assert_close(output.embedding, method.encoder(batch).detach())
    assert len(output.embedding) == len(batch["graph"] if level == "node" else batch["id"])


@pytest.mark.parametrize("level", ["node", "graph"])
def test_sparse_features_are_the_dense_ones(level: str) -> None:
    method, batch = small(level), drawn([5, 9, 3])
    expected = method.encoder(batch)
    x = batch.pop("x")
    batch["x.index"] = x.nonzero().T
    batch["x.weight"] = x[*batch["x.index"]]
    batch["x.columns"] = torch.tensor(x.shape[1])
    torch.testing.assert_close(method.encoder(batch), expected)


def test_without_a_diffusion_it_is_the_page_rank_of_the_batch() -> None:
    method, batch = small("node"), drawn([20, 30])
    exact = [graph.ppr(power_law(n, 2 * n, seed=i)) for i, n in enumerate([20, 30])]
    index, weight = graph.pack([csr_array(matrix) for matrix in exact])
    batch["diffusion.index"] = torch.from_numpy(index)
    batch["diffusion.weight"] = torch.from_numpy(weight).double()
    expected = method.encoder(batch)
    del batch["diffusion.index"], batch["diffusion.weight"]
    torch.testing.assert_close(method.encoder(batch), expected, rtol=0.02, atol=0.01)


def test_what_a_batch_holds_does_not_leak_between_graphs() -> None:
    method, whole = small("graph"), drawn([5, 9, 3])
    alone = torch.cat([method.encoder(drawn([n], i)) for i, n in enumerate([5, 9, 3])])
    torch.testing.assert_close(method.encoder(whole), alone)


def test_shuffling_stays_within_graphs_and_belongs_to_lanes() -> None:
    of = torch.tensor([0] * 50 + [1] * 3 + [2] * 20 + [3] * 7)
    order = shuffled(of, 4, Step(5, 0, 9, seed=1, lanes=(0, 1)))
    assert (of[order] == of).all()
    assert sorted(order.tolist()) == list(range(80)) and (order != torch.arange(80)).any()
    lane = shuffled(of[53:] - 2, 2, Step(5, 0, 9, seed=1, lanes=(1,)))
    torch.testing.assert_close(order[53:] - 53, lane)
    assert not torch.equal(order, shuffled(of, 4, Step(6, 0, 9, seed=1, lanes=(0, 1))))


SIZES = [5, 9, 3, 6, 12, 2, 8, 4]


def gradients() -> dict[str, Tensor]:
    """Losses of a global batch of two lanes and their gradients, on as many ranks as call it."""
    rank, world = collectives.rank(), collectives.world_size()
    lanes = list(range(rank, 2, world))
    first = 4 * lanes[0]
    batch, found = drawn(SIZES[first : first + 4 * len(lanes)], first), {}
    for level in ("node", "graph"):
        method = small(level)
        (output,) = method.training_step(batch, Step(0, 0, 1, lanes=tuple(lanes)))
        output.loss.backward()
        found[level] = output.loss.detach()
        found |= {f"{level}.{name}": p.grad for name, p in method.named_parameters()}
    collectives.average(found.values())
    return found


def test_two_ranks_have_the_losses_and_gradients_of_one_process() -> None:
    """Their numbers of nodes differ, and graphs of the other rank are negatives."""
    whole = gradients()
    for rank in run(2, gradients):
        assert rank.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_mistakes_are_named() -> None:
    batch = drawn([5, 9])
    with pytest.raises(RayclError, match="method.features=5"):
        MVGRL(MVGRL.Config(dim=4)).double().encoder(batch)
    with pytest.raises(RayclError, match="2 graphs"):
        next(small("graph").training_step(drawn([5]), Step(0, 0, 1)))


def test_a_head_is_three_layers_beside_a_linear_way() -> None:
    sizes = [tuple(p.shape) for p in Head(12, 4).parameters() if p.ndim == 2]
    assert sizes == [(4, 12), (4, 4), (4, 4), (4, 12)]
