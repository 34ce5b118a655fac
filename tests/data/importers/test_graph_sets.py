"""Which form of graphs a file or folder is, and the windows of a large graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from raycl.data.importers import PAGE, graph_sets
from raycl.errors import RayclError
from raycl.views.packing import Graph
from tests.data.importers.test_graphs import TEXT, as_planetoid, as_tu, pairs
from tests.views.graphs import power_law, ring


def numbered(nodes: int = 100) -> Graph:
    """A random graph whose nodes have their own number as feature, and labels and splits by it."""
    at, draw = np.arange(nodes), np.random.default_rng(0)
    test, train = np.split(draw.permutation(nodes)[: nodes // 2], [nodes // 3])
    return Graph(
        nodes,
        np.stack(power_law(nodes, 2 * nodes).nonzero()),
        at[:, None].astype(np.float32),
        labels=at % 7 - 1,
        splits={"train": np.sort(train), "test": np.sort(test)},
    )


def archive(path: Path, graph: Graph) -> Path:
    splits = {f"{name}_idx": rows for name, rows in graph.splits.items()}
    np.savez(path, edges=graph.edges, x=graph.x, y=graph.labels, **splits)
    return path


EDGES = np.array([[0, 1], [1, 4]])


def npz(folder: Path) -> Path:
    return archive(folder / "toy.npz", Graph(5, EDGES, np.eye(5), labels=np.arange(5)))


def npz_of_a_folder(folder: Path) -> Path:
    (folder / "toy").mkdir()
    npz(folder / "toy")
    archive(folder / "toy" / "other.npz", numbered())
    return folder / "toy"


def tables(folder: Path) -> Path:
    (folder / "edge.csv").write_text("0,1\n1,4\n")
    (folder / "notes.txt").write_text("no graphs")
    return folder


def planetoid(folder: Path) -> Path:
    nodes = 510  # 500 after those of the training set are the validation set
    splits = {"train": np.arange(2), "test": np.arange(505, nodes)}
    x = csr_array(np.eye(nodes, dtype=np.float32))
    as_planetoid(folder, "toy", Graph(nodes, EDGES, x, labels=np.arange(nodes) % 3, splits=splits))
    return folder


def planetoid_by_its_graph(folder: Path) -> Path:
    return planetoid(folder) / "ind.toy.graph"


def tu(folder: Path) -> Path:
    as_tu(folder)
    (folder / "README.txt").write_text("of TOY")
    return folder


def tu_by_its_edges(folder: Path) -> Path:
    return tu(folder) / "TOY_A.txt"


def gin(folder: Path) -> Path:
    path = folder / "toy.txt"
    path.write_text(TEXT)
    return path


def gin_of_a_folder(folder: Path) -> Path:
    (folder / "TOY").mkdir()
    (folder / "TOY" / "TOY.txt").write_text(TEXT)
    (folder / "TOY" / "10fold.txt").write_text("1 2 3")
    return folder / "TOY"


@pytest.mark.parametrize("write", [npz, npz_of_a_folder, tables, planetoid, planetoid_by_its_graph])
def test_a_graph_is_recognised(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = graph_sets.read(write(tmp_path))
    assert isinstance(found, Graph) and pairs(found) == {(0, 1), (1, 4)}


@pytest.mark.parametrize("write", [tu, tu_by_its_edges, gin, gin_of_a_folder])
def test_a_set_of_graphs_is_recognised(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = graph_sets.read(write(tmp_path))
    assert isinstance(found, list)
    assert [(graph.nodes, graph.y) for graph in found] == [(3, 1), (2, 0)]


def test_an_unknown_folder_is_told_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    for source in (tmp_path, tmp_path / "photo.png"):
        with pytest.raises(RayclError, match=f"^{source}: expected is an .npz with `edges`, .*GIN"):
            graph_sets.read(source)


def test_archives_of_other_names_than_their_folder_are_named(tmp_path: Path) -> None:
    for name in ("cora", "citeseer"):
        (tmp_path / f"{name}.npz").touch()
    with pytest.raises(RayclError, match="of its files, give one: citeseer.npz, cora.npz"):
        graph_sets.read(tmp_path)


def test_of_several_sets_in_a_folder_one_is_to_be_given(tmp_path: Path) -> None:
    tu(tmp_path)
    planetoid(tmp_path)
    with pytest.raises(RayclError, match="of its files, give one: TOY_A.txt, ind.toy.graph"):
        graph_sets.read(tmp_path)
    assert len(graph_sets.read(tmp_path / "TOY_A.txt")) == 2


@pytest.mark.parametrize("size", [30, 50, 60])
def test_windows_share_out_nodes_and_keep_the_edges_within(size: int) -> None:
    graph = numbered()
    parts = graph_sets.windows(graph, size, "toy")
    assert [part.nodes for part in parts] == [*[size] * (100 // size), 100 % size][: len(parts)]
    nodes = [part.x[:, 0].astype(int) for part in parts]
    assert sorted(np.concatenate(nodes)) == list(range(100))
    window = np.empty(100, int)
    for number, own in enumerate(nodes):
        window[own] = number
    kept = set()
    for part, own in zip(parts, nodes, strict=True):
        edges = {tuple(sorted(own[list(edge)].tolist())) for edge in pairs(part)}
        assert len(edges) == part.edges.shape[1]  # each once
        kept |= edges
        np.testing.assert_array_equal(part.labels, graph.labels[own])
        for name, rows in graph.splits.items():
            assert set(own[part.splits[name]]) == set(own) & set(rows)
    assert kept == {edge for edge in pairs(graph) if window[edge[0]] == window[edge[1]]}
    assert 0 < len(kept) < len(pairs(graph))


def test_neighbours_come_into_one_window() -> None:
    """A ring whose nodes are numbered at random is cut where its windows end, and nowhere else."""
    mixed = np.random.default_rng(0).permutation(100)
    parts = graph_sets.windows(Graph(100, mixed[ring(100)]), 25, "ring")
    assert sum(part.edges.shape[1] for part in parts) > 85
    assert all(part.x is None and part.labels is None for part in parts)


def test_graphs_above_the_window_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = archive(tmp_path / "toy.npz", numbered())

    def sizes(window: int | None) -> list[int]:
        (split,) = graph_sets.splits(source, window)
        assert not split.labelled and split.field == "graph"
        return [Graph.of(item.content).nodes for item in split.items]

    assert sizes(None) == sizes(100) == [100]
    with caplog.at_level(logging.WARNING):
        assert sizes(40) == [40, 40, 20]
    assert "cut into 3 windows of 40 nodes; of its edges" in caplog.text
    monkeypatch.setattr(graph_sets, "LARGE", 60)
    monkeypatch.setattr(graph_sets, "WINDOW", 50)
    assert sizes(None) == [50, 50]


def test_graphs_of_a_set_are_samples(tmp_path: Path) -> None:
    source = gin(tmp_path)
    (split,) = graph_sets.splits(source, None)
    assert split.labelled and split.page == PAGE
    items = list(split.items)
    assert [(item.label, item.origin) for item in items] == [
        (1, f"{source}, graph 0"),
        (0, f"{source}, graph 1"),
    ]
    assert [item.origin for item in split.items[1:]] == [f"{source}, graph 1"]
    assert Graph.of(items[1].content).x.shape == (2, 4)
    with pytest.raises(RayclError, match="window: .*toy.txt is a set of graphs"):
        graph_sets.splits(source, 2)


def test_a_page_has_room_for_the_largest_graph(tmp_path: Path) -> None:
    graph = Graph(5, ring(5), np.zeros((5, PAGE // 16), np.float32))
    np.savez(tmp_path / "wide.npz", edges=graph.edges, x=graph.x)
    (split,) = graph_sets.splits(tmp_path / "wide.npz", None)
    (item,) = split.items
    assert split.page == 2 * PAGE >= len(item.content) > PAGE
