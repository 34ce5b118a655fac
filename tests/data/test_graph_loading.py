"""Graphs from a file to the batch: planned, packed, read by any rank, and damaged."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycl.data.inspect import verify
from raycl.data.loader import Loader, walk
from raycl.data.order import Order
from raycl.data.plan import Plan, Source, local_bundles
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.methods.base import Batch
from raycl.views.packing import Graph, GraphView
from tests.data.test_loader import damage
from tests.views.graphs import gin, path, ring, star

CPU = torch.device("cpu")
VIEW = GraphView()
LANES, BATCH = 2, 3
SHAPES = [(shape(n), label) for n in range(4, 9) for label, shape in enumerate((ring, star, path))]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Rings, stars and paths of 4 to 8 nodes."""
    import_dataset("graph", gin(tmp_path / "shapes.txt", SHAPES), tmp_path / "shapes")
    return Shards(tmp_path / "shapes")


def loader_of(shards: Shards, rank: int = 0, world: int = 1, **settings: Any) -> Loader:
    order = Order(len(shards), LANES, BATCH, seed=1)
    plan = Plan({"graphs": Source(shards, order, ("graph", "label"))})
    lanes = range(rank, LANES, world)
    views = {"graphs": {"graph": VIEW}}
    return Loader(
        plan, views, lanes, lambda e, s: local_bundles(plan, lanes, e, s), CPU, seed=7, **settings
    )


def blocks(batch: Batch, name: str) -> list[np.ndarray]:
    """The dense matrix of each graph of a batch; nothing lies between them."""
    nodes = batch["graph"].bincount(minlength=len(batch["id"])).tolist()
    matrix = torch.zeros(sum(nodes), sum(nodes))
    matrix[tuple(batch[f"{name}.index"])] = batch[f"{name}.weight"]
    ends = np.cumsum([0, *nodes])
    found = [matrix[a:b, a:b].numpy() for a, b in pairwise(ends)]
    assert sum(np.count_nonzero(block) for block in found) == matrix.count_nonzero()
    return found


def check(batch: Batch, shards: Shards) -> None:
    """That a batch holds the graphs of its ids."""
    x = torch.zeros(len(batch["graph"]), int(batch["x.columns"]))
    x[tuple(batch["x.index"])] = batch["x.weight"]
    parts = x.split(batch["graph"].bincount().tolist())
    matrices = zip(blocks(batch, "adjacency"), blocks(batch, "diffusion"), strict=True)
    for row, (a_hat, s) in enumerate(matrices):
        expected = VIEW.open(shards.read(int(batch["id"][row]))["graph"])
        np.testing.assert_allclose(a_hat, expected.adjacency.toarray(), rtol=1e-6)
        np.testing.assert_allclose(s, expected.diffusion.toarray(), rtol=1e-6)
        np.testing.assert_array_equal(parts[row], expected.x.toarray())


def test_imported_graphs_are_those_of_the_file(shards: Shards) -> None:
    assert len(shards) == len(SHAPES)
    for sample, (edges, label) in enumerate(SHAPES):
        found = shards.read(sample)
        graph = Graph.of(found["graph"])
        assert found["label"] == label and graph.nodes == edges.max() + 1
        ours, theirs = (
            {tuple(sorted(pair)) for pair in e.T.tolist()} for e in (graph.edges, edges)
        )
        assert ours == theirs


def test_batches_hold_the_planned_graphs_on_any_number_of_ranks(shards: Shards) -> None:
    whole = loader_of(shards)
    assert whole.steps == 2
    ranks = [loader_of(shards, rank, 2) for rank in range(2)]
    epochs = zip(whole.epoch(1), *(rank.epoch(1) for rank in ranks), strict=True)
    for step, (batch, *parts) in enumerate(epochs):
        order = whole.plan.first.order
        planned = [order.ids(whole.steps + step, lane).ravel() for lane in range(LANES)]
        assert batch["id"].tolist() == np.concatenate(planned).tolist()
        assert batch["label"].tolist() == [SHAPES[i][1] for i in batch["id"]]
        check(batch, shards)
        for part, ids in zip(parts, planned, strict=True):
            assert part["id"].tolist() == ids.tolist()
            check(part, shards)


def test_threads_and_a_later_start_change_nothing(shards: Shards) -> None:
    one, two = (list(loader_of(shards, threads=n).epoch(3)) for n in (1, 3))
    (later,) = loader_of(shards).epoch(3, start=1)
    for first, second in ((one[0], two[0]), (one[1], two[1]), (one[1], later)):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_walk_packs_every_graph_once_in_order(shards: Shards) -> None:
    ids = np.arange(len(shards))[::-1]
    batches = list(walk(shards, VIEW, ids, batch=4, device=CPU))
    assert [len(batch["id"]) for batch in batches] == [4, 4, 4, 3]
    assert torch.cat([batch["id"] for batch in batches]).tolist() == ids.tolist()
    for batch in batches:
        check(batch, shards)


def test_a_damaged_graph_is_named(shards: Shards) -> None:
    sample = int(next(loader_of(shards).epoch(0))["id"][4])
    place = damage(shards, sample, "graph")
    message = rf"{place}, sample {sample}: its graph is no archive .*data\.corrupt=substitute"
    with pytest.raises(RayclError, match=message):
        list(loader_of(Shards(place)).epoch(0))


def test_verify_finds_a_damaged_graph(shards: Shards) -> None:
    lines: list[str] = []
    assert verify(shards.place, lines.append) == (len(SHAPES), 0)
    assert verify(damage(shards, 5, "graph"), lines.append) == (len(SHAPES), 1)
    assert "sample 5, field 'graph': its graph is no archive that can be read" in lines[0]


def test_a_damaged_graph_is_replaced_by_one_of_its_lane(shards: Shards) -> None:
    whole = next(loader_of(shards).epoch(0))["id"].tolist()
    loader = loader_of(Shards(damage(shards, whole[4], "graph")), corrupt="substitute")
    batch = next(loader.epoch(0))
    assert loader.substituted == 1
    found = batch["id"].tolist()
    assert found[:4] == whole[:4] and found[5] == whole[5]
    assert found[4] in (whole[3], whole[5])  # the rows of the second lane
    assert batch["label"].tolist() == [SHAPES[i][1] for i in found]
    check(batch, shards)
