"""Graphs for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from raycl.views.graph import adjacency


def power_law(nodes: int, edges: int, seed: int = 0) -> csr_array:
    """A random graph whose expected degrees fall off as a power law with exponent 2.5."""
    draw = np.random.default_rng(seed)
    weight = np.cumsum(np.arange(1, nodes + 1) ** (-1 / 1.5))
    ends = np.searchsorted(weight / weight[-1], draw.random((2, edges)))
    return adjacency(draw.permutation(nodes)[ends], nodes)


def ring(nodes: int) -> np.ndarray:
    """Edges (2, nodes)."""
    at = np.arange(nodes)
    return np.stack([at, (at + 1) % nodes])


def path(nodes: int) -> np.ndarray:
    """Edges (2, nodes - 1)."""
    return ring(nodes)[:, :-1]


def star(nodes: int) -> np.ndarray:
    """Edges (2, nodes - 1) from the first node."""
    return np.stack([np.zeros(nodes - 1, int), np.arange(1, nodes)])


def gin(file: Path, graphs: Sequence[tuple[np.ndarray, int]]) -> Path:
    """Writes edges (2, E) and classes as GIN's text, where all nodes have the tag 0."""
    lines = [f"{len(graphs)}"]
    for edges, label in graphs:
        both = np.concatenate([edges, edges[::-1]], axis=1)
        near = [both[1, both[0] == node] for node in range(edges.max() + 1)]
        lines += [f"{len(near)} {label}"]
        lines += [" ".join(map(str, (0, len(others), *others))) for others in near]
    file.write_text("\n".join(lines) + "\n")
    return file
