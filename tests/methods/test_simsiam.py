"""SimSiam as published."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from raycl.methods import Step
from raycl.methods.simsiam import SimSiam
from raycl.nn.heads import mlp
from raycl.nn.losses import negative_cosine
from tests.methods.maps import Given

Golden = Callable[[str], dict[str, np.ndarray]]


def test_loss_and_gradients_are_those_of_the_published_code(golden: Golden) -> None:
    found = golden("byol_simsiam")
    settings = {"encoder": {"depth": 18, "width": 8}, "dim": 8}
    method = SimSiam(SimSiam.Config.model_validate(settings))
    method.encoder = Given(10)
    method.projector = mlp([10, 14, 14, 8], last_norm="plain")
    method.predictor = mlp([8, 12, 8], last_bias=True)
    method.double()
    places = {
        "proj": {0: "fc0", 1: "bn0", 3: "fc1", 4: "bn1", 6: "fc2"},
        "pred": {0: "fc0", 1: "bn0", 3: "fc1"},
    }
    for name, network in (("proj", method.projector), ("pred", method.predictor)):
        for index, part in places[name].items():
            for kind, parameter in network[index].named_parameters():
                values = torch.from_numpy(found[f"simsiam_{name}_{part}_{kind}"])
                parameter.data.copy_(values)
    views = {f"view{i}": torch.from_numpy(found[f"feat{i}"]).double() for i in (1, 2)}
    loss = method.objective(method.embed(views), Step(0, 0, 1)).loss
    assert loss.item() == pytest.approx(found["simsiam_loss"], rel=1e-8)
    loss.backward()
    for weight, name in (
        (method.projector[0].weight, "proj_fc0"),
        (method.predictor[3].weight, "pred_fc1"),
    ):
        expected = found[f"simsiam_grad_{name}_weight"]
        np.testing.assert_allclose(weight.grad, expected, rtol=1e-7, atol=1e-10)  # type: ignore[arg-type]


def test_the_distance_is_that_of_the_published_code(golden: Golden) -> None:
    found = golden("byol_simsiam")
    p, z = (torch.from_numpy(found[name]).double().requires_grad_() for name in "pz")
    distance = negative_cosine(p, z)
    distance.backward()
    assert distance.item() == pytest.approx(found["neg_cosine"], rel=1e-8)
    np.testing.assert_allclose(p.grad, found["neg_cosine_grad_p"], rtol=1e-8)  # type: ignore[arg-type]
    assert z.grad is None


def test_the_predictors_rate_does_not_decay() -> None:
    method = SimSiam(SimSiam.Config.model_validate({"encoder": {"depth": 18, "width": 8}}))
    networks, predictor = method.parameter_groups()["main"]
    assert "schedule" not in networks and predictor["schedule"] == "fixed"
    own = {id(parameter) for parameter in method.predictor.parameters()}
    assert {id(parameter) for parameter in predictor["params"]} == own
