"""BYOL as published: loss, gradients, and the momentum that rises to 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from raycl.methods import Step
from raycl.methods.byol import BYOL
from raycl.nn.ema import cosine_momentum, follow
from tests.methods.maps import Given, fill

Golden = Callable[[str], dict[str, np.ndarray]]


def head(found: dict[str, np.ndarray], name: str) -> nn.Sequential:
    """Linear-BN-ReLU-Linear; the first bias, which the batch norm takes off again, is left out."""
    first, last = (found[f"byol_{name}_fc{i}_weight"] for i in (0, 1))
    made = nn.Sequential(
        nn.Linear(first.shape[1], first.shape[0], bias=False),
        nn.BatchNorm1d(first.shape[0]),
        nn.ReLU(),
        nn.Linear(first.shape[0], last.shape[0], bias=False),
    )
    buffers = {f"1.{k}": v.numpy() for k, v in made[1].named_buffers()}
    norm = {f"1.{kind}": found[f"byol_{name}_bn0_{kind}"] for kind in ("weight", "bias")}
    fill(made, {"0.weight": first, "3.weight": last} | norm | buffers)
    return made.double()


def test_loss_and_gradients_are_those_of_the_published_code(golden: Golden) -> None:
    """The released loss is without the constant 4, which makes the paper's a squared distance."""
    found = golden("byol_simsiam")
    method = BYOL(BYOL.Config.model_validate({"encoder": {"depth": 18, "width": 8}}))
    method.encoder = method.target_encoder = Given(10)
    method.projector, method.predictor = head(found, "proj"), head(found, "pred")
    method.target_projector = head(found, "target_proj").requires_grad_(False)
    views = {f"view{i}": torch.from_numpy(found[f"feat{i}"]).double() for i in (1, 2)}
    loss = method.objective(method.embed(views), Step(0, 0, 1)).loss
    assert loss.item() - 4 == pytest.approx(found["byol_loss"], rel=1e-8)
    loss.backward()
    for part, name in ((method.projector[0], "proj_fc0"), (method.predictor[3], "pred_fc1")):
        expected = found[f"byol_grad_{name}_weight"]
        np.testing.assert_allclose(part.weight.grad, expected, rtol=1e-7, atol=1e-10)  # type: ignore[union-attr]


def test_the_target_follows_ever_more_slowly(golden: Golden) -> None:
    found = golden("byol_simsiam")
    start, steps = found["ema_m0_K"]
    slow, fast = (nn.Linear(2, 2, bias=False).double() for _ in range(2))
    fill(slow, {"weight": found["ema_init"]})
    for index, expected in enumerate(found["ema_after"], 1):
        fill(fast, {"weight": found["ema_source"][index]})
        follow(slow, fast, cosine_momentum(float(start), index / float(steps)))
        np.testing.assert_allclose(slow.weight.detach(), expected, rtol=1e-8)


def test_no_gradient_reaches_the_target() -> None:
    method = BYOL(BYOL.Config.model_validate({"encoder": {"depth": 18, "width": 8}}))
    views = {f"view{i}": torch.rand(4, 3, 32, 32) for i in (1, 2)}
    method.objective(method.embed(views), Step(0, 0, 1)).loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("target"), name


def test_views_are_unlike() -> None:
    one, two = BYOL.views(BYOL.Config())["images"].views.values()
    assert one.blur is not None and one.blur.p == 1.0 and one.solarize is None
    assert two.blur is not None and two.blur.p == 0.1
    assert two.solarize is not None and two.solarize.p == 0.2
