"""Graphs of every kind of file, and one line for each mistake."""

from __future__ import annotations

import gzip
import os
import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array, csr_matrix

from raycl.data.importers import graphs
from raycl.data.importers.graphs import Graph
from raycl.errors import RayclError

Data = Callable[[str], Path]


@pytest.mark.parametrize(
    ("name", "nodes", "features", "edges", "train"),
    [("cora", 2708, 1433, 5278, 140), ("citeseer", 3327, 3703, 4552, 120)],
)
def test_the_archives_of_cora_and_citeseer(
    shared_data: Data, name: str, nodes: int, features: int, edges: int, train: int
) -> None:
    graph = graphs.npz(shared_data("graphs_planetoid") / f"{name}.npz")
    assert isinstance(graph.x, csr_array) and graph.x.shape == (nodes, features)
    assert graph.nodes == nodes and graph.edges.shape == (2, edges)
    assert {k: len(v) for k, v in graph.splits.items()} == {
        "train": train,
        "val": 500,
        "test": 1000,
    }
    assert graph.labels is not None and (graph.labels[graph.splits["test"]] >= 0).all()
    assert (graph.labels == -1).sum() == (15 if name == "citeseer" else 0)


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_the_files_of_planetoid_are_the_archives(
    shared_data: Data, tmp_path: Path, name: str
) -> None:
    """Written as their owners laid them out: test nodes in any order, isolated ones left out."""
    expected = graphs.npz(shared_data("graphs_planetoid") / f"{name}.npz")
    as_planetoid(tmp_path, name, expected)
    found = graphs.planetoid(tmp_path, name)
    assert found.nodes == expected.nodes
    assert (found.x != expected.x).nnz == 0
    np.testing.assert_array_equal(found.labels, expected.labels)
    for split, rows in expected.splits.items():
        np.testing.assert_array_equal(found.splits[split], rows)
    assert pairs(found) == pairs(expected)


def as_planetoid(folder: Path, name: str, graph: Graph) -> None:
    known = int(graph.splits["test"].min())
    test = np.random.default_rng(0).permutation(graph.splits["test"])
    one_hot = np.eye(graph.labels.max() + 1)[graph.labels] * (graph.labels >= 0)[:, None]
    x = csr_matrix(graph.x)
    near = defaultdict(list)
    for a, b in graph.edges.T.tolist():
        near[a].append(b)
        near[b].append(a)
    train = len(graph.splits["train"])
    parts = {"allx": x[:known], "tx": x[test], "y": one_hot[:train], "ally": one_hot[:known]}
    for key, value in (parts | {"ty": one_hot[test], "graph": near}).items():
        (folder / f"ind.{name}.{key}").write_bytes(pickle.dumps(value, protocol=4))
    lines = "".join(f"{node}\n" for node in test)
    (folder / f"ind.{name}.test.index").write_text(lines)


def pairs(graph: Graph) -> set[tuple[int, ...]]:
    return {tuple(sorted(edge)) for edge in graph.edges.T.tolist()}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("false",)


def test_pickles_that_name_anything_else_are_refused(tmp_path: Path) -> None:
    for value, message in ((Evil(), r"names \w+.system"), (b"damaged", "not a pickle")):
        content = pickle.dumps(value) if isinstance(value, Evil) else value
        (tmp_path / "ind.cora.y").write_bytes(content)
        with pytest.raises(RayclError, match=f"ind.cora.y: .*{message}"):
            graphs.planetoid(tmp_path, "cora")
    with pytest.raises(RayclError, match="ind.pubmed.y: cannot be read"):
        graphs.planetoid(tmp_path, "pubmed")


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """Protocol 0, with the names of then: copy_reg, scipy.sparse.csr, numpy.core, __builtin__."""
    text = (
        b"ccopy_reg\n_reconstructor\n(cscipy.sparse.csr\ncsr_matrix\nc__builtin__\nobject\nNtR"
        b"(dS'_shape'\n(I2\nI3\ntsS'data'\ncnumpy.core.multiarray\n_reconstruct\n"
        b"(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
        b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?'\ntbsb."
    )
    (tmp_path / "x").write_bytes(text)
    matrix = graphs._unpickled(tmp_path / "x")
    assert isinstance(matrix, csr_matrix) and matrix.data.tolist() == [1.0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("allx", np.eye(3), "no sparse matrix"),
        ("ally", np.ones((2, 3)), "labels"),
        ("graph", [1, 2], "dictionary"),
        ("graph", {0: [7]}, "edge 0 .* names a node that is none of 0 to 4"),
        ("test.index", "3\n3\n", "2 different nodes from 3 on"),
        ("test.index", "3\nfour\n", "line 2"),
    ],
)
def test_planetoid_files_that_contradict_each_other(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    graph = Graph(
        5,
        np.array([[0, 1], [1, 2]]),
        csr_array(np.eye(5, dtype=np.float32)),
        labels=np.array([0, 1, 2, 0, 1]),
        splits={"train": np.arange(2), "test": np.array([3, 4])},
    )
    as_planetoid(tmp_path, "toy", graph)
    content = value.encode() if isinstance(value, str) else pickle.dumps(value)
    (tmp_path / f"ind.toy.{key}").write_bytes(content)
    with pytest.raises(RayclError, match=f"ind.toy.{key}: .*{message}"):
        graphs.planetoid(tmp_path, "toy")


@pytest.mark.parametrize(
    ("name", "count", "classes", "nodes"),
    [
        ("MUTAG", 188, 2, 3371),
        ("PTC", 344, 2, 8792),
        ("IMDBBINARY", 1000, 2, 19773),
        ("IMDBMULTI", 1500, 3, 19502),
    ],
)
def test_the_sets_of_gin(
    shared_data: Data, name: str, count: int, classes: int, nodes: int
) -> None:
    found = graphs.tu_text(shared_data("graphs_tu") / name / f"{name}.txt")
    assert len(found) == count and {graph.y for graph in found} == set(range(classes))
    assert sum(graph.nodes for graph in found) == nodes
    x = graphs.features(found)
    assert {part.shape[1] for part in x} == {x[0].shape[1]}
    assert all(part.shape[0] == graph.nodes for part, graph in zip(x, found, strict=True))
    # A tag and a degree each; the sets of IMDB have one tag for all.
    assert sum(part.sum() for part in x) == nodes * (1 if name.startswith("IMDB") else 2)


TEXT = "2\n3 5\n7 1 1\n7 2 0 2\n8 1 1\n2 -1\n8 1 1\n8 1 0\n"


def as_tu(folder: Path, **changes: str) -> None:
    parts = {
        "A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n",
        "graph_indicator": "1\n1\n1\n2\n2\n",
        "graph_labels": "5\n-1\n",
        "node_labels": "7\n7\n8\n8\n8\n",
    }
    for part, content in (parts | changes).items():
        (folder / f"TOY_{part}.txt").write_text(content)


def test_both_forms_of_a_set_are_one(tmp_path: Path) -> None:
    (tmp_path / "toy.txt").write_text(TEXT)
    as_tu(tmp_path)
    for found in (graphs.tu_text(tmp_path / "toy.txt"), graphs.tu(tmp_path, "TOY")):
        assert [graph.y for graph in found] == [1, 0]
        assert [graph.labels.tolist() for graph in found] == [[7, 7, 8], [8, 8]]
        assert [pairs(graph) for graph in found] == [{(0, 1), (1, 2)}, {(0, 1)}]
        first, second = (x.toarray() for x in graphs.features(found))
        np.testing.assert_array_equal(first, [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]])
        np.testing.assert_array_equal(second, [[0, 1, 1, 0], [0, 1, 1, 0]])


def test_attributes_are_features(tmp_path: Path) -> None:
    (tmp_path / "toy.txt").write_text("1\n2 0\n0 1 1 0.5 2\n0 1 0 1.5 3\n")
    as_tu(tmp_path, node_attributes="1, 2\n3, 4\n5, 6\n7, 8\n9, 0.5\n")
    (x,) = graphs.features(graphs.tu_text(tmp_path / "toy.txt"))
    np.testing.assert_array_equal(x, [[0.5, 2], [1.5, 3]])
    first, second = graphs.features(graphs.tu(tmp_path, "TOY"))
    np.testing.assert_array_equal(second, [[7, 8], [9, 0.5]])
    assert first.shape == (3, 2)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (TEXT.replace("7 2 0 2", "7 2 0 3"), "line 4"),
        (TEXT.replace("7 2 0 2", "7 3 0 2"), "line 4"),
        (TEXT.replace("8 1 1\n2", "eight 1 1\n2"), "line 5"),
        (TEXT[:-6], "ends at line 7"),
        ("", "ends at line 0"),
    ],
)
def test_a_wrong_line_of_gin_is_named(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "toy.txt").write_text(text)
    with pytest.raises(RayclError, match=f"toy.txt: {where}: expected are"):
        graphs.tu_text(tmp_path / "toy.txt")


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("A", "1, 2\n1, x\n", "line 2"),
        ("A", "1, 2\n1\n", "line 2"),
        ("A", "1, 2\n3, 4\n", "line 2: two nodes of one graph"),
        ("A", "1, 2\n0, 1\n", "line 2: two nodes of one graph"),
        ("A", "", "nothing"),
        ("graph_indicator", "1\n2\n1\n2\n2\n", "ascending numbers from 1 to 2"),
        ("graph_indicator", "1\n1\n1\n2\n3\n", "ascending numbers from 1 to 2"),
        ("node_labels", "7\n", "5 lines"),
    ],
)
def test_a_wrong_file_of_tu_is_named(tmp_path: Path, part: str, content: str, message: str) -> None:
    as_tu(tmp_path, **{part: content})
    with pytest.raises(RayclError, match=f"TOY_{part}.txt: .*{message}"):
        graphs.tu(tmp_path, "TOY")


def test_a_missing_file_of_tu_is_named(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match="TOY_A.txt: cannot be read"):
        graphs.tu(tmp_path, "TOY")


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "edge.csv").write_text("0,1\n1,2\n")
    assert graphs.tables(tmp_path).nodes == 3
    with gzip.open(tmp_path / "num-node-list.csv.gz", "wt") as file:
        file.write("4\n")
    (tmp_path / "node-feat.csv").write_text("0.5,1\n1,2\n3,4\n5,6\n")
    (tmp_path / "node-label.csv").write_text("1\n0\n0\n2\n")
    (tmp_path / "valid.csv").write_text("3\n")
    graph = graphs.tables(tmp_path)
    assert graph.nodes == 4 and graph.edges.tolist() == [[0, 1], [1, 2]]
    assert graph.x.dtype == np.float32 and graph.x.shape == (4, 2)
    assert graph.labels.tolist() == [1, 0, 0, 2] and graph.splits["val"].tolist() == [3]
    (tmp_path / "valid.csv").write_text("4\n")
    with pytest.raises(RayclError, match="val 0 .* none of 0 to 3"):
        graphs.tables(tmp_path)
    (tmp_path / "node-label.csv").write_text("1\n")
    with pytest.raises(RayclError, match="labels of 1 nodes"):
        graphs.tables(tmp_path)
    (tmp_path / "edge.csv").unlink()
    with pytest.raises(RayclError, match="no edge.csv"):
        graphs.tables(tmp_path)


def test_archives(tmp_path: Path) -> None:
    path = tmp_path / "toy.npz"
    np.savez(path, edges=np.array([[0, 1], [1, 4]]))
    assert graphs.npz(path).nodes == 5
    wrong: dict[str, dict[str, np.ndarray]] = {
        "'edges'": {"x": np.eye(3)},
        "features of 3": {"edges": np.array([[0], [4]]), "y": np.zeros(5, int), "x": np.eye(3)},
        "edge 1 .* 0 to 4": {"edges": np.array([[0, 1], [1, 5]]), "x": np.eye(5)},
        "integers": {"edges": np.eye(2)},
        "sparse": {"edges": np.array([[0], [1]]), "x_data": np.ones(2)},
    }
    for message, arrays in wrong.items():
        np.savez(path, **arrays)
        with pytest.raises(RayclError, match=f"toy.npz: .*{message}"):
            graphs.npz(path)
    path.write_text("no archive")
    with pytest.raises(RayclError, match="not a readable .npz"):
        graphs.npz(path)
