"""Graphs as they are stored, and the view that packs those of a batch into block-diagonal matrices.

Stored is an .npz archive, which NumPy reads: `nodes` (), `edges` (2, E), features `x` (n, F) or
`x_data`, `x_indices`, `x_indptr` and `x_shape` of a sparse matrix, and where they are known the
classes of nodes, `labels` (n,), -1 for none, and the nodes of the splits `train`, `val` and `test`.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from raycl.errors import RayclError
from raycl.views.image import Fraction, ImageView, MaskView, Positive, _Part

if TYPE_CHECKING:  # SciPy takes a while, which a recipe without graphs is spared
    from scipy.sparse import csr_array

Features: TypeAlias = "np.ndarray | csr_array | None"

SPLITS = ("train", "val", "test")
ROOM = 1 << 29  # bytes of matrices that a process keeps
_SPARSE = ("data", "indices", "indptr", "shape")


@dataclass(frozen=True)
class Graph:
    """One graph.

    Attributes:
        nodes: their number, n.
        edges: (2, E) nodes; directions, loops and repeats as in the files.
        x: (n, F) float32 features, sparse where the files' are.
        y: class of the graph, an index.
        labels: (n,) classes of nodes, -1 where there is none; of a set of graphs, their tags.
        splits: positions of nodes by "train", "val" and "test".
    """

    nodes: int
    edges: np.ndarray
    x: Features = None
    y: int | None = None
    labels: np.ndarray | None = None
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)

    def stored(self) -> bytes:
        """The archive of this graph, but for its class."""
        arrays: dict[str, Any] = {"nodes": self.nodes, "edges": self.edges.astype(np.int32)}
        if isinstance(self.x, np.ndarray):
            arrays["x"] = self.x
        elif self.x is not None:
            arrays |= {f"x_{part}": getattr(self.x, part) for part in _SPARSE}
        if self.labels is not None:
            arrays["labels"] = self.labels.astype(np.int32)
        content = io.BytesIO()
        np.savez(content, **(arrays | dict(self.splits)))
        return content.getvalue()

    @classmethod
    def of(cls, content: Any) -> Graph:
        """The graph of an archive.

        Raises:
            RayclError: it is damaged.
        """
        from scipy.sparse import csr_array

        try:
            if bytes(content[:2]) != b"PK":  # NumPy would advise to unpickle it
                raise ValueError("it does not begin as an .npz")
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            x = arrays.get("x")
            if "x_data" in arrays:
                data, indices, starts, shape = (arrays[f"x_{part}"] for part in _SPARSE)
                x = csr_array((data, indices, starts), tuple(shape))
            nodes, edges = int(arrays["nodes"]), arrays["edges"].astype(np.int64)
            if edges.ndim != 2 or len(edges) != 2 or (x is not None and x.shape[0] != nodes):
                raise ValueError(f"edges (2, E) and features of its {nodes} nodes are needed")
            if edges.size and not 0 <= edges.min() <= edges.max() < nodes:
                raise ValueError(f"edges name nodes that are none of its {nodes}")
        except Exception as error:  # damaged archives raise anything
            raise RayclError(f"its graph is no archive that can be read: {error}") from error
        splits = {name: arrays[name] for name in SPLITS if name in arrays}
        return cls(nodes, edges, x, labels=arrays.get("labels"), splits=splits)


class Matrices(NamedTuple):
    """What a method sees of one graph: features (n, F), A_hat (n, n) and S (n, n)."""

    x: np.ndarray | csr_array
    adjacency: csr_array
    diffusion: csr_array | None

    @property
    def bytes(self) -> int:
        return sum(
            m.nbytes if isinstance(m, np.ndarray) else m.data.nbytes + m.indices.nbytes
            for m in self
            if m is not None
        )


class GraphView(_Part):
    """A graph as features X, normalised adjacency A_hat and a diffusion S; see `raycl.views.graph`.

    Attributes:
        field: the sample's field that holds the graph.
        diffusion: by personalised PageRank, or by heat.
        entries: of S: "exact", of small graphs; "walks", the `top` largest of a row, of any; or
            "none", the method multiplies by S without them (PageRank alone).
        alpha: probability that a walk ends at each step.
        t: how long heat flows, in mean steps of a walk.
        pruned: exact entries below the threshold that best keeps the mean degree are left out, and
            columns mapped to [0, 1], as the released MVGRL does for Citeseer.
        row_normalised: whether the features of a node sum to 1.
    """

    field: str = "graph"
    diffusion: Literal["ppr", "heat"] = "ppr"
    entries: Literal["exact", "walks", "none"] = "exact"
    alpha: Fraction = Field(0.2, lt=1)
    t: Positive = 5.0
    top: int = Field(64, ge=1)
    pruned: bool = False
    row_normalised: bool = False

    @model_validator(mode="after")
    def _entries(self) -> GraphView:
        if self.diffusion == "heat" and self.entries == "none":
            raise ValueError("entries=none is for diffusion=ppr: give exact or walks")
        if self.pruned and self.entries != "exact":
            raise ValueError("pruned is for exact entries: leave it out")
        return self

    def open(self, content: Any) -> Matrices:
        """A graph's matrices; the ones made last are kept, because a diffusion costs more.

        Raises:
            RayclError: the archive is damaged.
        """
        key = (self, bytes(content))
        return _kept.get(key) or _kept.put(key, self._made(Graph.of(content)))

    def _made(self, graph: Graph) -> Matrices:
        from scipy.sparse import csr_array

        from raycl.views import graph as views

        edges = views.adjacency(graph.edges, graph.nodes)
        x = np.ones((graph.nodes, 1), np.float32) if graph.x is None else graph.x
        x = views.row_normalised(x).astype(np.float32) if self.row_normalised else x
        heat, s = self.diffusion == "heat", None
        if self.entries == "walks":
            walked, length = (views.sparse_heat, self.t) if heat else (views.sparse_ppr, self.alpha)
            s = walked(edges, length, top=self.top)
        elif self.entries == "exact":
            dense = views.heat(edges, self.t) if heat else views.ppr(edges, self.alpha)
            s = csr_array(dense.astype(np.float32))
            if self.pruned:
                s = views.min_max(views.thresholded(s, edges.sum() / graph.nodes))
        return Matrices(x, views.normalised(edges), s)

    def pack(self, graphs: Sequence[Matrices]) -> dict[str, np.ndarray]:
        """The graphs of a batch in one: arrays by the names of the batch, for MVGRL and its like.

        Returns:
            `graph` (n,) int64, the row of the batch that a node belongs to; `x` (n, F) float32, or
            of sparse features `x.index` (2, E) int64, `x.weight` (E,) float32 and `x.columns`, F;
            of the matrices of all, which are block-diagonal (n, n), `adjacency.index`,
            `adjacency.weight`, `diffusion.index` and `diffusion.weight`. Entries ascend by row.

        Raises:
            RayclError: graphs differ in the values of a node.
        """
        from scipy.sparse import csr_array, vstack

        from raycl.views.graph import entries, pack

        sizes = [g.adjacency.shape[0] for g in graphs]
        widths = {g.x.shape[1] for g in graphs}
        if len(widths) > 1:
            raise RayclError(f"nodes have {' or '.join(map(str, sorted(widths)))} features")
        packed = {"graph": np.repeat(np.arange(len(graphs)), sizes)}
        if isinstance(graphs[0].x, np.ndarray):
            packed["x"] = np.concatenate([g.x for g in graphs]).astype(np.float32)
        else:
            x = vstack([csr_array(g.x) for g in graphs], format="csr")
            packed["x.index"], packed["x.weight"] = entries(x)
            packed["x.columns"] = np.array(x.shape[1])
        for name in ("adjacency", "diffusion"):
            matrices = [getattr(g, name) for g in graphs]
            if matrices[0] is not None:
                packed[f"{name}.index"], packed[f"{name}.weight"] = pack(matrices)
        return packed


View = ImageView | MaskView | GraphView


class _Kept:
    """Matrices by view and archive, the last used of them up to `ROOM` bytes."""

    def __init__(self) -> None:
        self._found: OrderedDict[Any, Matrices] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Any) -> Matrices | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: Any, value: Matrices) -> Matrices:
        with self._lock:
            if key not in self._found:
                self._found[key] = value
                self._bytes += value.bytes + len(key[1])
            while self._bytes > ROOM:
                old, dropped = self._found.popitem(last=False)
                self._bytes -= dropped.bytes + len(old[1])
        return value


_kept = _Kept()
