"""Losses without golden data: the same numbers and gradients as lightly's on the same tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, SwaVLoss, VICRegLoss
from torch import Tensor

from raycl.nn.losses import barlow_twins, sinkhorn, supervised_contrast, swapped, vicreg


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


def test_swav_is_as_lightlys() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 12, 5, generator=generator, dtype=torch.float64) * 2 - 1
    named = dict(zip(("view1", "view2", "small1", "small2"), scores, strict=True))
    codes = {name: sinkhorn(named[name], 0.05) for name in ("view1", "view2")}
    expected = SwaVLoss()([scores[0], scores[1]], [scores[2], scores[3]])[0]
    torch.testing.assert_close(swapped(codes, named, 0.1), expected)
    torch.testing.assert_close(codes["view1"].sum(1), torch.ones(12, dtype=torch.float64))


def test_dino_is_as_lightlys() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 12, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(2, 12, 5, generator=generator, dtype=torch.float64)
    named = dict(zip(("view1", "view2", "small1"), student, strict=True))
    codes = {f"view{i + 1}": (y / 0.04).softmax(1) for i, y in enumerate(teacher)}
    expected = DINOLoss(output_dim=5)(list(teacher), list(student))
    torch.testing.assert_close(swapped(codes, named, 0.1), expected)


def test_supervised_contrast_is_the_papers_equation() -> None:
    """Anchor by anchor; the fourth row is alone with its label."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2, 1])
    z = torch.cat([z, z[:1] + 0.1])
    labels = torch.cat([labels, labels[:1]])
    rows = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            total = sum((rows[i] @ rows[j] / 0.2).exp() for j in others)
            terms = [((rows[i] @ rows[p] / 0.2).exp() / total).log() for p in positives]
            losses.append(-sum(terms) / len(terms))
    assert len(losses) == 5
    torch.testing.assert_close(supervised_contrast(z, labels, 0.2), sum(losses) / 5)
