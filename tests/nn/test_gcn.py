from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raycl.nn.gcn import GCN, PageRank, Sparse
from raycl.views import graph
from tests.views.graphs import power_law


def sparse(rows: int, columns: int) -> tuple[Sparse, Tensor]:
    """A matrix with an empty row and column, also as a dense one."""
    draw = torch.manual_seed(0)
    dense = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    dense = dense * (torch.rand(rows, columns, generator=draw) < 0.3)
    dense[1] = dense[:, 2] = 0
    index = dense.nonzero().T
    return Sparse(index, dense[*index], (rows, columns)), dense


def test_products_and_gradients_are_those_of_the_dense_matrix() -> None:
    matrix, dense = sparse(7, 5)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(matrix @ x, dense @ x)
    weight = torch.randn(7, 3, dtype=torch.float64)
    gradients = [torch.autograd.grad((m @ x * weight).sum(), x)[0] for m in (matrix, dense)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(matrix.transposed @ dense, dense.T @ dense)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.9])
def test_page_rank_is_the_exact_diffusion(alpha: float) -> None:
    adjacency = power_law(80, 200)
    index, weight = map(torch.from_numpy, graph.pack([graph.normalised(adjacency)]))
    diffusion = PageRank(Sparse(index, weight.double(), (80, 80)), alpha)
    exact = torch.from_numpy(graph.ppr(adjacency, alpha))
    x = torch.randn(80, 3, dtype=torch.float64, requires_grad=True)
    assert (diffusion @ x - exact @ x).norm() < 0.01 * (exact @ x).norm()
    gradients = [torch.autograd.grad((m @ x)[:9].sum(), x)[0] for m in (diffusion, exact)]
    assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[1].norm()


def test_a_layer_is_what_the_paper_writes() -> None:
    index, weight = map(torch.from_numpy, graph.pack([graph.normalised(power_law(20, 60))]))
    matrix = Sparse(index, weight, (20, 20))
    features, dense = sparse(20, 6)
    layer = GCN(6, 4)
    torch.nn.init.normal_(layer.bias)
    z = torch.zeros(20, 20).index_put((index[0], index[1]), weight) @ dense.float() @ layer.weight.T
    expected = torch.where(z + layer.bias > 0, z + layer.bias, 0.25 * (z + layer.bias))
    torch.testing.assert_close(layer(matrix, dense.float()), expected)
    of_sparse = Sparse(features.index, features.weight.float(), features.shape)
    torch.testing.assert_close(layer(matrix, of_sparse), expected)


def test_gradients_reach_parameters_through_sparse_features() -> None:
    matrix = Sparse(torch.arange(20).expand(2, -1), torch.rand(20), (20, 20))
    features, dense = sparse(20, 6)
    gradients = []
    for x in (Sparse(features.index, features.weight.float(), features.shape), dense.float()):
        torch.manual_seed(0)
        layer = GCN(6, 4)
        layer(matrix, x).square().sum().backward()
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(*gradients)
    assert np.isclose(layer.weight.abs().max().item(), (6 / 10) ** 0.5, rtol=0.2)  # Xavier
