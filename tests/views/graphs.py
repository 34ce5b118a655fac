"""Graphs for tests."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from raycl.views.graph import adjacency


def power_law(nodes: int, edges: int, seed: int = 0) -> csr_array:
    """A random graph whose expected degrees fall off as a power law with exponent 2.5."""
    draw = np.random.default_rng(seed)
    weight = np.cumsum(np.arange(1, nodes + 1) ** (-1 / 1.5))
    ends = np.searchsorted(weight / weight[-1], draw.random((2, edges)))
    return adjacency(draw.permutation(nodes)[ends], nodes)
