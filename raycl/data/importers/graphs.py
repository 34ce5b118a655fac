"""Readers of graph data sets, from files to plain arrays.

planetoid(FOLDER, "cora")     ind.cora.x, .tx, .allx, .y, .ty, .ally, .graph, .test.index
npz(FILE)                     edges (2, E), [x (n, F) or x_data, x_indices, x_indptr, x_shape],
                              [y (n,)], [train_idx, val_idx, test_idx]
tables(FOLDER)                edge.csv[.gz], [node-feat.csv], [node-label.csv],
                              [num-node-list.csv]: the raw files of OGB's node sets, or one's own
tu_text(FILE)                 the sets of GIN: a number of graphs, then for each "nodes label"
                              and a line "tag degree neighbours... [attributes...]" for each node
tu(FOLDER, "MUTAG")           MUTAG_A.txt, MUTAG_graph_indicator.txt, MUTAG_graph_labels.txt,
                              [MUTAG_node_labels.txt], [MUTAG_node_attributes.txt]
"""

from __future__ import annotations

import copyreg
import gzip
import pickle
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array, csr_matrix, hstack

from raycl.errors import RayclError
from raycl.views.graph import adjacency
from raycl.views.packing import SPLITS, Features, Graph


def npz(path: Path) -> Graph:
    """The graph of an archive without pickled objects: `edges`, and what else it holds of a graph.

    Raises:
        RayclError: it is no such archive, or its arrays contradict each other.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise RayclError(f"{path}: not a readable .npz archive: {error}") from error
    if "edges" not in arrays:
        raise RayclError(f"{path}: 'edges' (2, E) is needed; found: {', '.join(arrays)}")
    x: Features = arrays.get("x")
    if "x_data" in arrays:
        x = _sparse(path, *(arrays.get(f"x_{p}") for p in ("data", "indices", "indptr", "shape")))
    splits = {name: arrays[f"{name}_idx"] for name in SPLITS if f"{name}_idx" in arrays}
    return _graph(path, arrays["edges"], x, arrays.get("y"), splits)


def tables(folder: Path) -> Graph:
    """The graph of a folder of tables: `edge.csv` or `edge.csv.gz`, and what else it holds.

    Raises:
        RayclError: there are no edges, there is more than one graph, or a line is wrong.
    """

    def table(name: str, kind: type = np.int64) -> np.ndarray | None:
        paths = folder / f"{name}.csv", folder / f"{name}.csv.gz"
        return next((_table(path, kind) for path in paths if path.is_file()), None)

    edges, counts, labels = table("edge"), table("num-node-list"), table("node-label")
    if edges is None:
        raise RayclError(f"{folder}: there is no edge.csv or edge.csv.gz, of two nodes to a line")
    if counts is not None and len(counts) > 1:
        raise RayclError(f"{folder}: num-node-list is of {len(counts)} graphs, one is needed")
    splits = {"train": table("train"), "val": table("valid"), "test": table("test")}
    return _graph(
        folder,
        edges.T,
        table("node-feat", np.float32),
        None if labels is None else labels[:, 0],
        {name: rows.ravel() for name, rows in splits.items() if rows is not None},
        None if counts is None else int(counts[0, 0]),
    )


def planetoid(folder: Path, name: str) -> Graph:
    """A graph in the files of Planetoid (Yang, Cohen, Salakhutdinov 2016) with its public split.

    The validation set are the 500 nodes after the training set. Nodes that the test index leaves
    out, Citeseer's isolated ones, have neither features nor a label.

    Raises:
        RayclError: a file is missing, or holds something else than it should.
    """
    of = {key: folder / f"ind.{name}.{key}" for key in ("y", "allx", "tx", "ally", "ty", "graph")}
    found = {key: _unpickled(path) for key, path in of.items()}
    x = {}
    for key in ("allx", "tx"):
        parts = (getattr(found[key], p, None) for p in ("data", "indices", "indptr", "_shape"))
        x[key] = _sparse(of[key], *parts).tocoo()
    for key, rows in {"y": None, "ally": x["allx"].shape[0], "ty": x["tx"].shape[0]}.items():
        value = found[key]
        if (
            not isinstance(value, np.ndarray)
            or value.ndim != 2
            or len(value) != (rows or len(value))
        ):
            raise RayclError(
                f"{of[key]}: labels ({rows or 'n'}, classes), one of a row 1, are needed"
            )
    if not isinstance(found["graph"], dict):
        raise RayclError(f"{of['graph']}: a dictionary from a node to its neighbours is needed")
    index = folder / f"ind.{name}.test.index"
    test, known = _table(index)[:, 0], len(found["ally"])
    if len(test) != len(found["ty"]) or test.min() < known or len(np.unique(test)) != len(test):
        raise RayclError(f"{index}: {len(found['ty'])} different nodes from {known} on are needed")
    rows = np.concatenate([x["allx"].row, test[x["tx"].row]])
    columns = np.concatenate([x["allx"].col, x["tx"].col])
    values = np.concatenate([x["allx"].data, x["tx"].data])
    nodes = int(test.max()) + 1
    labels = np.full(nodes, -1)
    for at, one_hot in ((np.arange(known), found["ally"]), (test, found["ty"])):
        labels[at] = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)
    edges = [(node, other) for node, others in found["graph"].items() for other in others]
    train = np.arange(len(found["y"]))
    return _graph(
        of["graph"],
        np.array(edges).T,
        csr_array((values, (rows, columns)), (nodes, x["allx"].shape[1])),
        labels,
        {"train": train, "val": len(train) + np.arange(500), "test": np.sort(test)},
        nodes,
    )


def tu_text(path: Path) -> list[Graph]:
    """A set of graphs in the text form of GIN (Xu et al. 2019).

    Raises:
        RayclError: naming the first line that is not as it should be.
    """
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RayclError(f"{path}: not a readable text: {error}") from error
    at, graphs = 1, []
    try:
        for _ in range(int(rows[0][0])):
            nodes, label = map(int, rows[at])
            at, edges, tags, attributes = at + 1, [], [], []
            for node in range(nodes):
                tag, degree, *others = rows[at]
                near = list(map(int, others[: int(degree)]))
                if len(near) != int(degree) or not all(0 <= other < nodes for other in near):
                    raise ValueError
                edges += [(node, other) for other in near]
                tags.append(int(tag))
                attributes.append(list(map(float, others[int(degree) :])))
                at += 1
            x = np.array(attributes, np.float32)
            pairs = np.array(edges, np.int64).reshape(-1, 2).T
            graphs.append(Graph(nodes, pairs, x if x.size else None, label, np.array(tags)))
    except (ValueError, IndexError) as error:
        where = f"line {at + 1}" if at < len(rows) else f"ends at line {len(rows)}"
        raise RayclError(
            f"{path}: {where}: expected are the number of graphs, and for each 'nodes label' and a "
            f"line 'tag degree neighbours... [attributes...]' for each of its nodes, from 0"
        ) from error
    return _indexed(graphs)


def tu(folder: Path, name: str) -> list[Graph]:
    """A set of graphs in the raw files of TUDataset (Morris et al. 2020), which count from 1.

    Raises:
        RayclError: a file is missing, or its lines do not go with those of another.
    """

    def table(part: str, kind: type = np.int64) -> np.ndarray | None:
        path = folder / f"{name}_{part}.txt"
        return _table(path, kind) if path.is_file() or part in needed else None

    needed = ("A", "graph_indicator", "graph_labels")
    edges, of, classes = (table(part) for part in needed)
    tags, x = table("node_labels"), table("node_attributes", np.float32)
    assert edges is not None and of is not None and classes is not None
    at, of, edges = folder / f"{name}_A.txt", of[:, 0] - 1, edges.T - 1
    sizes = np.bincount(of.clip(min=0), minlength=len(classes))
    if of.min() < 0 or (np.diff(of) < 0).any() or len(sizes) != len(classes):
        raise RayclError(
            f"{folder / f'{name}_graph_indicator.txt'}: ascending numbers from 1 to "
            f"{len(classes)}, the graphs of {name}_graph_labels.txt, are needed"
        )
    for part, rows in {"node_labels": tags, "node_attributes": x}.items():
        if rows is not None and len(rows) != len(of):
            raise RayclError(
                f"{folder / f'{name}_{part}.txt'}: {len(of)} lines are needed, one each"
            )
    wrong = np.flatnonzero(((edges < 0) | (edges >= len(of))).any(axis=0))
    if not len(wrong):
        wrong = np.flatnonzero(of[edges[0]] != of[edges[1]])
    if len(wrong):
        raise RayclError(f"{at}: line {wrong[0] + 1}: two nodes of one graph are needed, from 1 on")
    edges = edges[:, np.argsort(of[edges[0]], kind="stable")]
    starts = np.cumsum([0, *sizes])
    bounds = np.searchsorted(of[edges[0]], np.arange(len(sizes) + 1))
    graphs = []
    for graph, (first, end) in enumerate(pairwise(starts)):
        own = slice(first, end)
        graphs.append(
            Graph(
                int(end - first),
                edges[:, bounds[graph] : bounds[graph + 1]] - first,
                None if x is None else x[own],
                int(classes[graph, 0]),
                None if tags is None else tags[own, 0],
            )
        )
    return _indexed(graphs)


def features(graphs: Sequence[Graph]) -> list[np.ndarray | csr_array]:
    """Features (n, F) of each of a set's graphs, as MVGRL's released code takes them.

    A node's attributes where there are any; else its tag, one-hot, beside its degree, one-hot. A
    tag that all nodes have is left out.
    """
    given = [graph.x for graph in graphs if graph.x is not None]
    if len(given) == len(graphs):
        return given
    degrees = [adjacency(graph.edges, graph.nodes).sum(axis=1) for graph in graphs]
    tags = [g.labels if g.labels is not None else np.zeros(g.nodes, np.int64) for g in graphs]
    ends = np.cumsum([0, *(graph.nodes for graph in graphs)])
    parts = []
    for values in (np.concatenate(tags), np.concatenate(degrees)):
        found, column = np.unique(values, return_inverse=True)
        ones = np.ones(len(values), np.float32), column, np.arange(len(values) + 1)
        parts.append(csr_array(ones, (len(values), len(found))))
    x = hstack(parts if parts[0].shape[1] > 1 else parts[1:], format="csr")
    return [x[start:end] for start, end in pairwise(ends)]


def _graph(
    path: Path,
    edges: np.ndarray,
    x: Features,
    labels: np.ndarray | None,
    splits: Mapping[str, np.ndarray],
    nodes: int | None = None,
) -> Graph:
    """A graph whose parts go together; without their number, nodes are as many as are known."""
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise RayclError(f"{path}: edges (2, E) of integers are needed, not {_form(edges)}")
    if nodes is None:
        rows = [len(labels)] if labels is not None else []
        rows += [x.shape[0]] if x is not None else []
        nodes = max(rows, default=int(edges.max(initial=-1)) + 1)
    for what, count in {
        "features": None if x is None else x.shape[0],
        "labels": None if labels is None else len(labels),
    }.items():
        if count not in (None, nodes):
            raise RayclError(f"{path}: {what} of {count} nodes do not go with {nodes} nodes")
    for what, values in {"edge": edges, **splits}.items():
        wrong = np.flatnonzero(
            ((values < 0) | (values >= nodes)).reshape(-1, values.shape[-1]).any(0)
        )
        if len(wrong):
            raise RayclError(
                f"{path}: {what} {wrong[0]} (from 0) names a node that is none of 0 to {nodes - 1}"
            )
    x = None if x is None else x.astype(np.float32)
    return Graph(
        nodes,
        edges.astype(np.int64),
        x,
        labels=None if labels is None else labels.astype(np.int64),
        splits={name: rows.astype(np.int64) for name, rows in splits.items()},
    )


def _indexed(graphs: list[Graph]) -> list[Graph]:
    """Graphs whose classes are 0 to K - 1, in the order of the numbers in the files."""
    classes = np.unique([graph.y for graph in graphs]).tolist()
    return [replace(graph, y=classes.index(graph.y)) for graph in graphs]


def _sparse(path: Path, data: Any, indices: Any, indptr: Any, shape: Any) -> csr_array:
    """A sparse matrix of the parts of its CSR form, once they have been looked at."""
    try:
        matrix = csr_array((data, indices, indptr), tuple(shape))
        matrix.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise RayclError(f"{path}: the features are no sparse matrix (CSR): {error}") from error
    return matrix


def _table(path: Path, kind: type = np.int64) -> np.ndarray:
    """Rows of numbers with commas between them, plain or as .gz: (lines, numbers of a line)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file
            rows: np.ndarray = np.loadtxt(path, kind, delimiter=",", ndmin=2)
    except OSError as error:
        raise RayclError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise RayclError(
            f"{path}: line {_wrong(path, kind)}: numbers with commas between them are "
            f"needed, as many on each line"
        ) from error
    if not rows.size:
        raise RayclError(f"{path}: there is nothing in this file")
    return rows


def _wrong(path: Path, kind: type) -> int:
    """The first line that is no row of numbers, or of more or fewer than the first one, from 1."""
    width = 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            values = line.split(",") if line.strip() else []
            try:
                [kind(value) for value in values]
            except ValueError:
                return number
            width = width or len(values)
            if values and len(values) != width:
                return number
    return number


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Arrays(file, encoding="latin1").load()
    except OSError as error:
        raise RayclError(f"{path}: cannot be read: {error}") from error
    except Exception as error:  # damaged pickles raise anything
        raise RayclError(f"{path}: not a pickle of Planetoid: {error}") from error


class _Arrays(pickle.Unpickler):
    """Makes arrays of NumPy, matrices of SciPy and dictionaries of lists; nothing else."""

    # By the last part of a name: modules are called otherwise by Python 2 and by older libraries.
    ALLOWED: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.empty(0).__reduce__()[0],
        "_reconstructor": copyreg._reconstructor,  # type: ignore[attr-defined]
        "csr_matrix": csr_matrix,
        "defaultdict": defaultdict,
        "dtype": np.dtype,
        "list": list,
        "ndarray": np.ndarray,
        "object": object,
    }

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")


def _form(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
