"""Graphs and sets of graphs as samples: one for each graph, or for each window of a large one.

A graph above `LARGE` nodes, or above the window that was asked for, is cut into windows of nodes
that follow each other, as MVGRL's released code samples sub-graphs; edges between windows are left
out. Before, its nodes are put in the order of Cuthill and McKee (1969), reversed, so that what is
near in the graph comes near in the order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from scipy.sparse.csgraph import reverse_cuthill_mckee

from raycl.data.importers import PAGE, Item, Split, graphs, stamp
from raycl.errors import RayclError
from raycl.views.graph import adjacency
from raycl.views.packing import Graph

LARGE = 50_000
WINDOW = 2_000  # nodes, as published
_FORMS = (
    "an .npz with `edges`, a folder with edge.csv, Planetoid's ind.NAME.graph and its like, "
    "TUDataset's NAME_A.txt and its like, or the text form of GIN"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Graphs that become a sample each."""

    graphs: Sequence[Graph]
    origin: str
    first: int = 0

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.graphs[part], self.origin, self.first + part.indices(len(self))[0])

    def __iter__(self) -> Iterator[Item]:
        for number, graph in enumerate(self.graphs, self.first):
            yield Item(graph.stored(), graph.y, f"{self.origin}, graph {number}")


def splits(source: Path, window: int | None) -> list[Split]:
    """The one split of a graph or a set of graphs.

    Args:
        window: nodes of a sub-graph; None: large graphs alone are cut.

    Raises:
        RayclError: the source is of no known form, or a file is damaged.
    """
    found = read(source)
    if isinstance(found, list):
        if window:
            raise RayclError(
                f"window: {source} is a set of graphs, which are not cut; leave it out"
            )
        parts = [replace(g, x=x) for g, x in zip(found, graphs.features(found), strict=True)]
    elif found.nodes > (window or LARGE):
        parts = windows(found, window or WINDOW, str(source))
    else:
        parts = [found]
    largest = len(max(parts, key=_size).stored())
    return [
        Split(
            "",
            Samples(parts, str(source)),
            labelled=parts[0].y is not None,
            classes=None,
            field="graph",
            page=max(PAGE, 1 << (largest - 1).bit_length()),
            stamp=stamp([source] if source.is_file() else sorted(source.iterdir())),
        )
    ]


def read(source: Path) -> Graph | list[Graph]:
    """What a file, or a folder with the files of one data set, holds."""
    files = [source] if source.is_file() else sorted(source.iterdir())
    known = [path for path in files if _reads(path, source)]
    if source.is_dir() and any(path.name.startswith("edge.csv") for path in files):
        return graphs.tables(source)
    if len(known) != 1:
        several = known or [path for path in files if path.suffix in (".npz", ".txt")]
        names = f"; of its files, give one: {', '.join(p.name for p in several)}" if several else ""
        raise RayclError(f"{source}: expected is {_FORMS}{names}")
    (path,) = known
    if path.suffix == ".npz":
        return graphs.npz(path)
    if path.suffix == ".graph":
        return graphs.planetoid(path.parent, path.name.split(".")[1])
    if path.name.endswith("_A.txt"):
        return graphs.tu(path.parent, path.name.removesuffix("_A.txt"))
    return graphs.tu_text(path)


def _reads(path: Path, source: Path) -> bool:
    """Whether a data set is read from this file; a folder's own name tells that of a text."""
    text = path == source or path.stem == source.name
    named = path.name.startswith("ind.") and path.suffix == ".graph"
    return named or path.name.endswith("_A.txt") or (path.suffix in (".npz", ".txt") and text)


def _size(graph: Graph) -> int:
    return graph.edges.size + (0 if graph.x is None else graph.x.size)


def windows(graph: Graph, size: int, origin: str) -> list[Graph]:
    """The sub-graphs of windows of `size` nodes."""
    matrix = adjacency(graph.edges, graph.nodes)
    order = reverse_cuthill_mckee(matrix, symmetric_mode=True)
    matrix = matrix[order][:, order]
    place = np.argsort(order)
    placed = {name: np.sort(place[rows]) for name, rows in graph.splits.items()}
    parts = []
    for start in range(0, graph.nodes, size):
        own, end = order[start : start + size], start + size
        inner = matrix[start:end, start:end].tocoo()
        once = inner.row < inner.col
        parts.append(
            Graph(
                len(own),
                np.stack([inner.row[once], inner.col[once]]),
                None if graph.x is None else graph.x[own],
                labels=None if graph.labels is None else graph.labels[own],
                splits={n: p[(p >= start) & (p < end)] - start for n, p in placed.items()},
            )
        )
    kept = sum(part.edges.shape[1] for part in parts)
    _log.warning(
        "%s: cut into %d windows of %d nodes; of its edges %.0f %% lie within one, the others are "
        "left out",
        origin,
        len(parts),
        size,
        100 * kept / max(matrix.nnz / 2, 1),
    )
    return parts
