from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raycl.errors import RayclError
from raycl.evaluate import geometry
from raycl.evaluate.geometry import alignment, linear_cka, uniformity


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("alpha", [1, 2])
def test_alignment_is_the_mean_distance_of_pairs(alpha: float) -> None:
    x, y = features(2, 7, 4)
    pairs = [(a / a.norm() - b / b.norm()).norm() ** alpha for a, b in zip(x, y, strict=True)]
    assert alignment(x, y, alpha) == pytest.approx(float(sum(pairs)) / 7, abs=1e-6)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 30, 1 << 24])
def test_uniformity_is_the_log_mean_potential(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "CHUNK", chunk)
    x = features(11, 4)
    unit = x / x.norm(dim=1, keepdim=True)
    potential = [
        math.exp(-2 * float((unit[i] - unit[j]).square().sum()))
        for i in range(11)
        for j in range(i)
    ]
    assert uniformity(x) == pytest.approx(math.log(sum(potential) / len(potential)), abs=1e-5)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)
    with pytest.raises(RayclError, match="there is one sample"):
        uniformity(x[:1])


def naive_cka(x: Tensor, y: Tensor) -> float:
    """By the Gram matrices and the centring matrix (Kornblith et al., section 3)."""
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(k: Tensor, m: Tensor) -> float:
        return float((k @ h @ m @ h).trace()) / (n - 1) ** 2

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("samples", [5, 9, 40])
def test_cka_agrees_with_its_definition(samples: int) -> None:
    x = features(samples, 8) + 3
    y = features(samples, 6, seed=1) + x[:, :6]
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), rel=1e-9)
    rotation = torch.linalg.qr(features(8, 8, seed=2))[0]
    assert linear_cka(x, 0.1 * x @ rotation - 5) == pytest.approx(1, rel=1e-9)


def test_what_cka_cannot_compare_is_refused() -> None:
    with pytest.raises(RayclError, match="features of 5 and 6 samples"):
        linear_cka(features(5, 2), features(6, 2))
    with pytest.raises(RayclError, match="the encoder has collapsed"):
        linear_cka(features(5, 2), torch.ones(5, 2))
