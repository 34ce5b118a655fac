"""Views of a graph: its normalised adjacency, and diffusion by PageRank or heat (MVGRL, 3.1).

An adjacency is symmetric, 0 or 1, without loops. A below is one with loops, D holds its degrees:

    A_hat = D^-1/2 A D^-1/2
    PPR:    S = alpha (I - (1 - alpha) A_hat)^-1
    heat:   S = exp(t (A D^-1 - I)), the exponential of a matrix

`ppr` and `heat` are exact and dense, for small graphs. Both are sums over walks,
S_ij = sum_k theta_k P^k_ij (d_i / d_j)^p with P = D^-1 A and p = 1/2 or 1, and `sparse_ppr` and
`sparse_heat` follow the walks that matter alone, on graphs of any size.

The paper is followed where the released code leaves it: its script for nodes adds loops to what has
them already, and its heat kernel takes the exponential of each element.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array, diags_array, eye_array, vstack

# That a step of walks from a block of nodes may make: 128 MiB; all steps, 1 / alpha times that.
ENTRIES = 1 << 24
EPSILONS = (1e-5, 1e-4, 1e-3, 1e-2)


def adjacency(edges: np.ndarray, nodes: int) -> csr_array:
    """A symmetric (n, n) 0/1 matrix of edges (2, E); directions, loops and repeats do not count."""
    rows, columns = edges[:, edges[0] != edges[1]]
    both = np.concatenate([rows, columns]), np.concatenate([columns, rows])
    matrix = csr_array((np.ones(len(both[0])), both), (nodes, nodes))
    matrix.data[:] = 1
    return matrix


def normalised(adjacency: csr_array) -> csr_array:
    """A_hat (n, n) of an adjacency (n, n)."""
    looped, degree = _looped(adjacency)
    scale = diags_array(degree**-0.5)
    return csr_array(scale @ looped @ scale)


def ppr(adjacency: csr_array, alpha: float = 0.2) -> np.ndarray:
    """Diffusion (n, n) by personalised PageRank, exact and dense; time n^3.

    Args:
        adjacency: (n, n).
        alpha: probability that a walk ends at each step.
    """
    walk = normalised(adjacency).toarray()
    return alpha * np.linalg.inv(np.eye(len(walk)) - (1 - alpha) * walk)


def heat(adjacency: csr_array, t: float = 5.0) -> np.ndarray:
    """Diffusion (n, n) by the heat kernel, exact and dense; time n^3.

    Args:
        adjacency: (n, n).
        t: how long heat flows, in mean steps of a walk.
    """
    root = _looped(adjacency)[1] ** 0.5
    # A D^-1 = D^1/2 A_hat D^-1/2, and of what is symmetric the spectrum gives the exponential.
    values, vectors = np.linalg.eigh(normalised(adjacency).toarray())
    return root[:, None] * ((vectors * np.exp(t * (values - 1))) @ vectors.T) / root


def sparse_ppr(
    adjacency: csr_array, alpha: float = 0.2, *, top: int = 64, epsilon: float = 1e-4
) -> csr_array:
    """The `top` largest entries of each row of `ppr`, up to `epsilon`: see `_walks`."""
    steps = np.arange(np.ceil(np.log(epsilon) / np.log(1 - alpha)))
    return _walks(adjacency, alpha * (1 - alpha) ** steps, 0.5, top, epsilon)


def sparse_heat(
    adjacency: csr_array, t: float = 5.0, *, top: int = 64, epsilon: float = 1e-4
) -> csr_array:
    """The `top` largest entries of each row of `heat`, up to `epsilon`: see `_walks`."""
    steps = np.arange(1, 10 + t + 10 * t**0.5)
    theta = np.exp(-t) * np.cumprod(np.concatenate([[1.0], t / steps]))
    return _walks(adjacency, theta, 1.0, top, epsilon)


def top_k(matrix: csr_array, k: int) -> csr_array:
    """The k largest entries of each row of a matrix of positive entries (m, n); others become 0."""
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    # By row, the largest first, the earlier of equals; a ninth of lexsort's time.
    order = np.argsort(rows - matrix.data / (2 * matrix.max()), kind="stable")
    place = np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], lengths)
    chosen = np.sort(order[place < k])
    starts = np.concatenate([[0], np.cumsum(np.minimum(lengths, k))])
    return csr_array((matrix.data[chosen], matrix.indices[chosen], starts), matrix.shape)


def thresholded(diffusion: np.ndarray | csr_array, degree: float) -> csr_array:
    """Leaves out what is below the one of `EPSILONS` that best keeps a graph's mean degree.

    So the released code does for Citeseer.

    Args:
        diffusion: (n, n).
        degree: mean number of entries of a row to come near to.
    """
    matrix = csr_array(diffusion)
    counts = [(matrix.data >= epsilon).sum() / matrix.shape[0] for epsilon in EPSILONS]
    epsilon = EPSILONS[int(np.argmin(np.abs(np.subtract(counts, degree))))]
    return _where(matrix, matrix.data >= epsilon)


def min_max(matrix: csr_array) -> csr_array:
    """Maps each column of non-negative entries (n, n) to [0, 1], as done for Citeseer (released).

    A column without an entry that is 0 has no row to spare, and its smallest becomes 0.
    """
    columns = matrix.tocsc()
    full = np.diff(columns.indptr) == matrix.shape[0]
    low = np.where(full, columns.min(axis=0).toarray(), 0)
    span = columns.max(axis=0).toarray() - low
    at = matrix.indices
    data = (matrix.data - low[at]) / np.where(span > 0, span, 1)[at]
    return csr_array((data, at, matrix.indptr), matrix.shape)


def row_normalised(x: np.ndarray | csr_array) -> np.ndarray | csr_array:
    """Features (n, F) whose rows sum to 1; rows of zeros stay.

    The released code does so for Citeseer, and the loader of DGL that it has its data from for all:
    with Cora's 0 and 1 as they are, accuracy on the public split is two points lower.
    """
    sums = np.asarray(x.sum(axis=1), np.float64)
    return diags_array(1 / np.where(sums == 0, 1, sums)) @ x


def cut(matrix: csr_array, nodes: np.ndarray) -> csr_array:
    """Rows and columns (m,) of a matrix (n, n), ascending: (m, m). Costs nothing per other row."""
    rows = matrix[nodes]
    at = np.searchsorted(nodes, rows.indices).clip(max=len(nodes) - 1)
    inside = _where(rows, nodes[at] == rows.indices)
    return csr_array(
        (inside.data, np.searchsorted(nodes, inside.indices), inside.indptr), (len(nodes),) * 2
    )


def pack(matrices: Sequence[csr_array]) -> tuple[np.ndarray, np.ndarray]:
    """The entries of a block-diagonal matrix of several graphs' matrices (n_i, n_i), in row order.

    Returns:
        index (2, E) int64 of rows and columns, and weight (E,) float32.
    """
    sizes = [m.shape[0] for m in matrices]
    starts = np.cumsum([0, *sizes[:-1]])
    rows = np.repeat(np.arange(sum(sizes)), np.concatenate([np.diff(m.indptr) for m in matrices]))
    columns = np.concatenate([m.indices + start for m, start in zip(matrices, starts, strict=True)])
    weight = np.concatenate([m.data for m in matrices]).astype(np.float32)
    return np.stack([rows, columns]).astype(np.int64), weight


def entries(matrix: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Index (2, E) int64 of rows and columns, and weight (E,) float32, in row order."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return np.stack([rows, matrix.indices]).astype(np.int64), matrix.data.astype(np.float32)


def _looped(adjacency: csr_array) -> tuple[csr_array, np.ndarray]:
    """An adjacency with loops, and its degrees (n,)."""
    looped = csr_array(adjacency + eye_array(adjacency.shape[0], format="csr"))
    return looped, looped.sum(axis=1)


def _walks(
    adjacency: csr_array, theta: np.ndarray, power: float, top: int, epsilon: float
) -> csr_array:
    """The `top` largest entries of each row of sum_k theta_k P^k_ij (d_i / d_j)^power; (n, n).

    Walks from a block of nodes go on together, a step at a time. Those of one node that come to j
    stop there if their probability, times what is left of theta, is at most epsilon d_j (as in the
    push of Andersen, Chung and Lang 2006). So the degrees of the nodes that a step goes on from sum
    to 1 / epsilon at most, whatever the graph, which bounds the time (PPR: n / (alpha epsilon)
    edges) and the memory of a block. A step loses epsilon d_j of an entry at most.
    """
    looped, degree = _looped(adjacency)
    nodes = len(degree)
    # Carried is P^k_ij / d_j, which is compared with epsilon alone.
    onward = csr_array(looped @ diags_array(1 / degree), dtype=np.float32)
    left = np.cumsum(theta[::-1])[::-1].astype(np.float32)
    before, after = degree**power, (degree ** (1 - power)).astype(np.float32)
    block, parts = max(1, int(ENTRIES * epsilon)), []
    for start in range(0, nodes, block):
        own = np.arange(start, min(start + block, nodes), dtype=np.int32)
        walks = csr_array(
            ((1 / degree[own]).astype(np.float32), own, np.arange(len(own) + 1)),
            (len(own), nodes),
        )
        steps = [walks]
        for rest in left[1:]:
            going = _where(walks, walks.data * rest > epsilon) if len(steps) > 1 else walks
            if not going.nnz:
                break
            walks = going @ onward
            steps.append(walks)
        # One product adds up all steps, in a tenth of the time of adding them one by one.
        each = np.arange(len(steps)) * len(own) + np.arange(len(own))[:, None]
        weights = np.tile(theta[: len(steps)].astype(np.float32), len(own))
        starts = np.arange(0, each.size + 1, len(steps))
        total = csr_array((weights, each.ravel(), starts), (len(own), each.size)) @ vstack(steps)
        total.data *= np.repeat(before[own], np.diff(total.indptr)) * after[total.indices]
        parts.append(top_k(total, top))
    return vstack(parts, format="csr")


def _where(matrix: csr_array, kept: np.ndarray) -> csr_array:
    """A matrix with those of its entries that a mask (nnz,) keeps."""
    counts = np.concatenate([[0], np.cumsum(kept)])
    starts = counts[matrix.indptr].astype(matrix.indptr.dtype)
    return csr_array((matrix.data[kept], matrix.indices[kept], starts), matrix.shape)
