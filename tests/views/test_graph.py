"""Diffusion as published, sparse against exact, and the cutting and packing of matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.sparse import csr_array

from raycl.views import graph
from tests.views.graphs import power_law

Golden = Callable[[str], dict[str, np.ndarray]]


def test_exact_matrices_are_those_of_the_published_code(golden: Golden) -> None:
    found = golden("mvgrl_diffusion")
    adjacency = csr_array(found["adj"])
    ours = {
        "adj_norm": graph.normalised(adjacency).toarray(),
        "ppr_alpha02": graph.ppr(adjacency),
        "ppr_alpha005": graph.ppr(adjacency, 0.05),
        "heat_t5": graph.heat(adjacency),
        "heat_t1": graph.heat(adjacency, 1),
        "feat_rownorm": graph.row_normalised(found["feat"]),
    }
    for name, matrix in ours.items():
        np.testing.assert_allclose(matrix, found[name], atol=1e-9, err_msg=name)
    sparse = graph.row_normalised(csr_array(found["feat"]))
    np.testing.assert_allclose(sparse.toarray(), found["feat_rownorm"], atol=1e-9)


def test_adjacency_counts_every_edge_once() -> None:
    edges = np.array([[0, 1, 1, 2, 2], [1, 0, 2, 2, 1]])  # both ways, a loop, and twice
    expected = [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(graph.adjacency(edges, 4).toarray(), expected)


def test_heat_is_the_exponential_of_the_matrix() -> None:
    adjacency = power_law(60, 150)
    looped = adjacency.toarray() + np.eye(60)
    expected = expm(2.5 * (looped / looped.sum(0) - np.eye(60)))
    np.testing.assert_allclose(graph.heat(adjacency, 2.5), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["ppr", "heat"])
def test_sparse_diffusion_tends_to_the_exact_one(kind: str) -> None:
    adjacency = power_law(300, 900)
    exact = getattr(graph, kind)(adjacency)
    degree = adjacency.sum(1) + 1
    power = 0.5 if kind == "ppr" else 1.0
    # A step loses at most epsilon d_j of P^k_ij, and walks last a few steps.
    unit = degree[:, None] ** power * degree ** (1 - power)
    for epsilon in (1e-3, 1e-5):
        sparse = getattr(graph, f"sparse_{kind}")(adjacency, top=300, epsilon=epsilon).toarray()
        assert (sparse <= exact + 1e-6).all()
        assert ((exact - sparse) / unit).max() < 10 * epsilon
    assert sparse.sum() > 0.98 * exact.sum()


def test_sparse_rows_hold_the_largest_entries() -> None:
    adjacency = power_law(300, 900)
    exact = graph.ppr(adjacency)
    sparse = graph.sparse_ppr(adjacency, top=16, epsilon=1e-6)
    assert np.diff(sparse.indptr).max() == 16
    for node in range(300):
        chosen = sparse.indices[sparse.indptr[node] : sparse.indptr[node + 1]]
        assert exact[node, chosen].min() >= np.sort(exact[node])[-16] - 1e-5
    kept = graph.top_k(csr_array(exact), 16).toarray()
    np.testing.assert_allclose(np.sort(kept)[:, -16:], np.sort(exact)[:, -16:], atol=1e-9)
    assert (kept > 0).sum(1).max() == 16


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    adjacency = power_law(300, 900)
    whole = graph.sparse_ppr(adjacency, top=8)
    monkeypatch.setattr(graph, "ENTRIES", 70_000)  # 7 nodes at once
    parts = graph.sparse_ppr(adjacency, top=8)
    np.testing.assert_array_equal(whole.toarray(), parts.toarray())


def test_nodes_without_edges_keep_to_themselves() -> None:
    adjacency = graph.adjacency(np.array([[0], [1]]), 4)
    for matrix in (graph.sparse_ppr(adjacency), graph.sparse_heat(adjacency)):
        np.testing.assert_allclose(matrix.toarray()[2:, 2:], np.eye(2), atol=2e-4)


def test_the_threshold_keeps_the_mean_degree() -> None:
    exact = graph.ppr(power_law(300, 900))
    for degree in (300, 5):
        counts = {e: abs((exact >= e).sum() / 300 - degree) for e in graph.EPSILONS}
        expected = np.where(exact >= min(counts, key=counts.__getitem__), exact, 0)
        np.testing.assert_array_equal(graph.thresholded(exact, degree).toarray(), expected)


def test_columns_are_scaled_between_their_extremes() -> None:
    draw = np.random.default_rng(0)
    dense = draw.random((6, 6)) * (draw.random((6, 6)) > 0.4)
    dense[:, 0] += 1  # a column without a 0
    dense[:, 1] = 0
    span = np.ptp(dense, axis=0)
    expected = (dense - dense.min(axis=0)) / np.where(span, span, 1)
    np.testing.assert_allclose(graph.min_max(csr_array(dense)).toarray(), expected, atol=1e-12)


def test_cut_takes_rows_and_columns() -> None:
    matrix = graph.sparse_ppr(power_law(100, 300))
    for nodes in (np.arange(20, 60), np.array([3, 4, 50, 99])):
        expected = matrix.toarray()[np.ix_(nodes, nodes)]
        np.testing.assert_array_equal(graph.cut(matrix, nodes).toarray(), expected)


def test_packed_matrices_are_blocks() -> None:
    parts = [graph.normalised(power_law(n, 3 * n)) for n in (4, 1, 7)]
    index, weight = graph.pack(parts)
    packed = np.zeros((12, 12), np.float32)
    packed[*index] = weight
    for part, (start, end) in zip(parts, ((0, 4), (4, 5), (5, 12)), strict=True):
        np.testing.assert_array_equal(packed[start:end, start:end], part.toarray().astype("f4"))
    assert np.count_nonzero(packed) == sum(part.nnz for part in parts)
    assert index.dtype == np.int64 and weight.dtype == np.float32
    assert (np.diff(index[0]) >= 0).all()
