"""FCN: the loss over labelled pixels, and labels that no class has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from raycl.errors import RayclError
from raycl.methods import FCN, Step
from raycl.methods.fcn import pixelwise

SMALL = {"classes": 3, "ignore": 9, "hidden": 8, "encoder": {"depth": 18, "width": 8}}


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    truth = torch.randint(0, 3, (2, 8, 10), generator=generator)
    truth[0, :3] = 9
    up = F.interpolate(logits, (8, 10), mode="bilinear", align_corners=False)
    chances = up.log_softmax(1).movedim(1, -1)[truth != 9]
    expected = -chances[torch.arange(len(chances)), truth[truth != 9]].mean()
    assert pixelwise(logits, truth, 9).item() == pytest.approx(expected.item(), rel=1e-12)
    assert pixelwise(logits, torch.full_like(truth, 9), 9).item() == 0


def test_a_label_that_no_class_has_is_named() -> None:
    method = FCN(FCN.Config.model_validate(SMALL))
    batch = {"view1": torch.randn(2, 3, 32, 32), "mask1": torch.full((2, 32, 32), 2)}
    assert method.logits(batch["view1"]).shape == (2, 3, 1, 1)
    method.objective(method.embed(batch), Step(0, 0, 10))
    batch["mask1"][1, 0, 0] = 11
    with pytest.raises(RayclError, match=r"label 11, and method\.classes=3.*method\.ignore=11"):
        method.objective(method.embed(batch), Step(0, 0, 10))
