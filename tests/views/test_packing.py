"""Graphs as they are stored, the matrices that are made of them, and the batches of these."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.linalg import block_diag
from scipy.sparse import csr_array

from raycl.errors import RayclError
from raycl.views import graph as views
from raycl.views import packing
from raycl.views.packing import Graph, GraphView, Matrices
from tests.views.graphs import power_law

Expected = Callable[[csr_array], Any]
PARTS = ("index", "weight")


def drawn(nodes: int, x: str = "dense", *, columns: int = 5, seed: int = 0) -> Graph:
    """A random graph with labels, some of them none, and splits."""
    draw = np.random.default_rng(seed)
    values = draw.random((nodes, columns)).astype(np.float32)
    values[draw.random((nodes, columns)) > 0.6] = 0
    splits = {"train": np.arange(3), "test": np.array([nodes - 1])}
    return Graph(
        nodes,
        np.stack(power_law(nodes, 3 * nodes, seed).nonzero()),
        {"dense": values, "sparse": csr_array(values), "none": None}[x],
        labels=draw.integers(-1, 3, nodes),
        splits=splits,
    )


@pytest.mark.parametrize("x", ["dense", "sparse", "none"])
def test_an_archive_holds_what_the_graph_held(x: str) -> None:
    graph = drawn(12, x)
    found = Graph.of(memoryview(graph.stored()))
    assert found.nodes == 12 and found.y is None
    assert type(found.x) is type(graph.x)
    if isinstance(graph.x, csr_array):
        assert found.x.shape == graph.x.shape and (found.x != graph.x).nnz == 0
    else:
        np.testing.assert_array_equal(found.x, graph.x)
    np.testing.assert_array_equal(found.edges, graph.edges)
    np.testing.assert_array_equal(found.labels, graph.labels)
    assert found.splits.keys() == {"train", "test"}
    for name, rows in graph.splits.items():
        np.testing.assert_array_equal(found.splits[name], rows)


def test_a_graph_may_have_neither_edges_nor_labels() -> None:
    found = Graph.of(Graph(3, np.zeros((2, 0), int)).stored())
    assert found.nodes == 3 and found.edges.shape == (2, 0)
    assert found.labels is None and not found.splits
    matrices = GraphView().open(found.stored())
    np.testing.assert_allclose(matrices.diffusion.toarray(), np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(matrices.x, np.ones((3, 1)))


def archive(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def flipped(content: bytes) -> bytes:
    at = content.index(b"\x93NUMPY", 200) + 140  # among the values of the second array
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        drawn(12).stored()[:-40],
        flipped(drawn(12).stored()),
        archive(nodes=3),
        archive(nodes=3, edges=np.array([0, 1, 2])),
        archive(nodes=3, edges=np.array([[0, 1], [1, 3]])),
        archive(nodes=3, edges=np.array([[0, -1], [1, 2]])),
        archive(nodes=3, edges=np.array([[0], [1]]), x=np.ones((2, 4))),
        archive(nodes=3, edges=np.array([[0], [1]]), x_data=np.ones(2)),
        archive(nodes=3, edges=np.array([[0], [1]]), labels=np.array([{}, 1, 2])),
    ],
)
def test_a_damaged_archive_is_one_message(content: bytes) -> None:
    with pytest.raises(RayclError, match="its graph is no archive that can be read: .") as error:
        GraphView().open(content)
    assert "\n" not in str(error.value) and "unsafely" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, views.ppr),
        ({"alpha": 0.05}, lambda a: views.ppr(a, 0.05)),
        ({"diffusion": "heat"}, views.heat),
        ({"diffusion": "heat", "t": 2.0}, lambda a: views.heat(a, 2.0)),
        ({"entries": "walks", "top": 8}, lambda a: views.sparse_ppr(a, top=8).toarray()),
        (
            {"diffusion": "heat", "entries": "walks", "t": 2.0, "top": 8},
            lambda a: views.sparse_heat(a, 2.0, top=8).toarray(),
        ),
        (
            {"pruned": True},
            lambda a: views.min_max(views.thresholded(views.ppr(a), a.sum() / 40)).toarray(),
        ),
    ],
)
def test_a_view_has_the_matrices_of_its_settings(
    settings: dict[str, Any], expected: Expected
) -> None:
    graph = drawn(40)
    adjacency = views.adjacency(graph.edges, 40)
    found = GraphView(**settings).open(graph.stored())
    np.testing.assert_allclose(found.diffusion.toarray(), expected(adjacency), atol=1e-6)
    np.testing.assert_allclose(found.adjacency.toarray(), views.normalised(adjacency).toarray())
    np.testing.assert_array_equal(found.x, graph.x)


def test_without_entries_there_is_no_diffusion() -> None:
    assert GraphView(entries="none").open(drawn(12).stored()).diffusion is None


@pytest.mark.parametrize("x", ["dense", "sparse"])
def test_features_of_a_node_sum_to_one_where_asked(x: str) -> None:
    graph = drawn(12, x)
    found = GraphView(row_normalised=True).open(graph.stored()).x
    assert type(found) is type(graph.x) and found.dtype == np.float32
    dense = graph.x.toarray() if isinstance(graph.x, csr_array) else graph.x
    sums = dense.sum(axis=1, keepdims=True)
    found = found.toarray() if isinstance(found, csr_array) else found
    np.testing.assert_allclose(found, dense / np.where(sums, sums, 1), rtol=1e-6)


@pytest.mark.parametrize("x", ["dense", "sparse", "none"])
@pytest.mark.parametrize("entries", ["exact", "none"])
def test_a_batch_is_block_diagonal(x: str, entries: Any) -> None:
    view, sizes = GraphView(entries=entries), (7, 3, 12)
    graphs = [view.open(drawn(n, x, seed=n).stored()) for n in sizes]
    found = view.pack(graphs)
    assert found["graph"].tolist() == [0] * 7 + [1] * 3 + [2] * 12
    names = ["adjacency", "diffusion"] if entries == "exact" else ["adjacency"]
    of_x = {"x.index", "x.weight", "x.columns"} if x == "sparse" else {"x"}
    assert found.keys() == {"graph", *of_x, *(f"{n}.{p}" for n in names for p in PARTS)}
    for name in names:
        expected = block_diag(*(getattr(g, name).toarray() for g in graphs))
        np.testing.assert_allclose(dense_of(found, name, (22, 22)), expected, rtol=1e-6)
    if x == "sparse":
        assert found["x.columns"] == 5
        expected = np.concatenate([g.x.toarray() for g in graphs])
        np.testing.assert_array_equal(dense_of(found, "x", (22, 5)), expected)
    else:
        assert found["x"].dtype == np.float32
        np.testing.assert_array_equal(found["x"], np.concatenate([g.x for g in graphs]))


def dense_of(found: dict[str, np.ndarray], name: str, shape: tuple[int, int]) -> np.ndarray:
    index, weight = (found[f"{name}.{part}"] for part in PARTS)
    assert index.dtype == np.int64 and weight.dtype == np.float32
    assert (np.diff(index[0]) >= 0).all()
    matrix = np.zeros(shape, np.float32)
    matrix[*index] = weight
    return matrix


def test_graphs_that_differ_in_features_are_refused() -> None:
    view = GraphView()
    graphs = [view.open(drawn(12, columns=n).stored()) for n in (6, 5, 6)]
    with pytest.raises(RayclError, match="nodes have 5 or 6 features"):
        view.pack(graphs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diffusion": "heat", "entries": "none"}, "give exact or walks"),
        ({"pruned": True, "entries": "walks"}, "pruned is for exact entries"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GraphView(**settings)


def same(one: Matrices, two: Matrices) -> bool:
    pairs = zip((one.adjacency, one.diffusion), (two.adjacency, two.diffusion), strict=True)
    return np.array_equal(one.x, two.x) and not any((a != b).nnz for a, b in pairs)


def test_matrices_are_kept_up_to_a_room(monkeypatch: pytest.MonkeyPatch) -> None:
    view, kept = GraphView(), packing._Kept()
    contents = [drawn(30, seed=i).stored() for i in range(6)]
    alone = [GraphView().open(content) for content in contents]
    costs = [matrices.bytes + len(c) for matrices, c in zip(alone, contents, strict=True)]
    room = costs[0] + costs[1] + costs[2]
    monkeypatch.setattr(packing, "_kept", kept)
    monkeypatch.setattr(packing, "ROOM", room)
    for _ in range(2):
        for content, expected in zip(contents, alone, strict=True):
            assert same(view.open(content), expected)
            held = [m.bytes + len(key[1]) for key, m in kept._found.items()]
            assert 0 < sum(held) <= room and sum(held) == kept._bytes
    oldest = next(iter(kept._found))[1]
    found = view.open(bytes(bytearray(oldest)))  # found by what it holds
    assert oldest != contents[0] and found is view.open(oldest)
    view.open(contents[0])
    assert view.open(oldest) is found  # others were used longer ago
    assert GraphView(alpha=0.5).open(oldest) is not found


def test_what_is_larger_than_the_room_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, content = packing._Kept(), drawn(30).stored()
    monkeypatch.setattr(packing, "_kept", kept)
    monkeypatch.setattr(packing, "ROOM", 1000)
    assert same(GraphView().open(content), GraphView().open(content))
    assert not kept._found and kept._bytes == 0
