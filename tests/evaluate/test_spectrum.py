from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raycl.evaluate import alpha_req, embedding_std, rank_me


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


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_is_the_exponent_of_a_power_law(alpha: float) -> None:
    """Of embeddings whose covariance has exactly these eigenvalues, and any mean."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(200, 64, generator=generator, dtype=torch.float64)
    white = torch.linalg.qr(rows - rows.mean(0)).Q
    turn = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
    scale = torch.arange(1, 65, dtype=torch.float64) ** (-alpha / 2)
    x = white * scale @ turn + 7
    assert alpha_req(x) == pytest.approx(alpha, rel=1e-6)
    assert alpha_req(3 * x) == pytest.approx(alpha, rel=1e-6)


def test_alpha_req_weighs_the_first_eigenvalues_most() -> None:
    """As the published fit does: numpy's, with weights 1/j, gives the same slope."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(500, 30, generator=generator, dtype=torch.float64).cumsum(1)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T)))[::-1][2:]
    j = np.arange(3, 31)
    slope = np.polyfit(np.log(j), np.log(eigenvalues), 1, w=np.sqrt(1 / j))[0]
    assert alpha_req(x) == pytest.approx(-slope, rel=1e-9)


def test_alpha_req_of_what_has_no_spectrum_is_not_a_number() -> None:
    assert math.isnan(alpha_req(torch.full((4, 3), float("nan"))))
    assert math.isnan(alpha_req(torch.ones(8, 8)))
    assert math.isnan(alpha_req(torch.randn(8, 2)))
