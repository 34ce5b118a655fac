"""Losses without golden data: the same numbers and gradients as lightly's on the same tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, VICRegLoss
from torch import Tensor

from raycl.nn.losses import barlow_twins, vicreg


def ours_vicreg(z1: Tensor, z2: Tensor) -> Tensor:
    invariance, variance, covariance = vicreg(z1, z2)
    return 25 * invariance + 25 * variance + covariance


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda z1, z2: barlow_twins(z1, z2, 0.005), BarlowTwinsLoss(lambda_param=0.005)),
        (ours_vicreg, VICRegLoss(lambda_param=25, mu_param=25, nu_param=1)),
    ],
    ids=["Barlow Twins", "VICReg"],
)
def test_as_lightly(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 24, 6, generator=generator, dtype=torch.float64)
    views = views * torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 0.02]) + 3
    found = []
    for loss in (ours, theirs):
        z1, z2 = (view.clone().requires_grad_() for view in views)
        value = loss(z1, z2)
        value.backward()
        found.append((value.detach(), z1.grad, z2.grad))
    for one, two in zip(*found, strict=True):
        assert one is not None and two is not None
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
