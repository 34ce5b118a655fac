from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raycl.evaluate import embedding_std, rank_me


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_rank_me_follows_the_published_formula(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 3
    singular = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = singular / np.abs(singular).sum() + 1e-7
    assert rank_me(x) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_rank_me_counts_equal_orthogonal_directions(rank: int) -> None:
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1))).Q
    assert rank_me(basis[:rank].repeat(4, 1)) == pytest.approx(rank, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rank_me_of_a_diverged_run_is_not_a_number(value: float) -> None:
    assert math.isnan(rank_me(torch.full((4, 3), value)))


def test_rank_me_of_nothing_is_finite() -> None:
    assert rank_me(torch.zeros(4, 3)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dim", [8, 128])
def test_embedding_std_is_one_over_root_dim_on_the_sphere(dim: int) -> None:
    x = torch.randn(4000, dim, generator=torch.Generator().manual_seed(2))
    assert embedding_std(x * 17) == pytest.approx(dim**-0.5, rel=0.03)


def test_embedding_std_sees_a_collapse() -> None:
    point = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    scales = torch.arange(1.0, 101).unsqueeze(1)
    assert embedding_std(point * scales) < 1e-6
