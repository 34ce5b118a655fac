"""MoCo v2 as published: losses, queue and momentum update step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from raycl.errors import RayclError
from raycl.methods import Step
from raycl.methods.moco import MoCo
from tests.methods.maps import Given, batch_of, fill

Golden = Callable[[str], dict[str, np.ndarray]]


def given(found: dict[str, np.ndarray]) -> MoCo:
    settings = {
        "queue": found["queue_init"].shape[1],
        "key_groups": 1,
        "momentum": float(found["ema_momentum"]),
        "temperature": float(found["temperature"]),
        "projector": {"hidden": 16, "dim": 8},
        "encoder": {"name": "vit", "size": "tiny", "patch": 4, "image": 8},
    }
    method = MoCo(MoCo.Config.model_validate(settings))
    method.encoder, method.key_encoder = Given(12), Given(12)
    method.projector[0] = torch.nn.Linear(12, 16)
    method.key_projector[0] = torch.nn.Linear(12, 16).requires_grad_(False)
    for network, name in ((method.projector, "q"), (method.key_projector, "k")):
        parts = ((i, kind) for i in (0, 2) for kind in ("weight", "bias"))
        fill(network, {f"{i}.{kind}": found[f"{name}_mlp_{i}_{kind}"] for i, kind in parts})
    method.double()
    method.queue.rows.copy_(torch.from_numpy(found["queue_init"].T))
    return method


def test_steps_are_those_of_the_published_code(golden: Golden) -> None:
    found = golden("moco_loss")
    method = given(found)
    for index in range(len(found["loss"])):
        batch = batch_of(found["feat_q"][index], found["feat_k"][index])
        for output in method.training_step(batch, Step(index, 0, 5)):
            assert output.loss.item() == pytest.approx(found["loss"][index], rel=1e-9)
            if index == 0:
                output.loss.backward()
                gradient = method.projector[0].weight.grad
                np.testing.assert_allclose(gradient, found["grad0_mlp_0_weight"], rtol=1e-8)
        weight = method.key_projector[2].weight
        np.testing.assert_allclose(weight, found["k_after_mlp_2_weight"][index], rtol=1e-9)
        np.testing.assert_allclose(method.queue.rows.T, found["queue_after"][index], rtol=1e-9)
        assert method.queue.at == found["queue_ptr_after"][index]


def test_defaults_are_the_papers() -> None:
    config = MoCo.Config()
    assert (config.temperature, config.momentum, config.queue) == (0.2, 0.999, 65536)
    assert (config.projector.hidden, config.projector.dim) == (2048, 128)


def test_a_queue_that_no_batch_fits_is_refused(golden: Golden) -> None:
    found = golden("moco_loss")
    found["queue_init"] = found["queue_init"][:, :15]
    steps = given(found).training_step(
        batch_of(found["feat_q"][0], found["feat_k"][0]), Step(0, 0, 5)
    )
    with pytest.raises(RayclError, match=r"method\.queue: 15 rows .* global batch of 4; 12 would"):
        list(steps)


def test_an_untrained_network_is_at_chance() -> None:
    settings = {"queue": 256, "key_groups": 2, "encoder": {"depth": 18, "width": 8}}
    method = MoCo(MoCo.Config.model_validate(settings | {"temperature": 10.0}))
    views = torch.rand(2, 8, 3, 32, 32)
    batch = {"view1": views[0], "view2": views[1], "id": torch.arange(8)}
    output = next(iter(method.training_step(batch, Step(0, 0, 1))))
    assert output.loss.item() == pytest.approx(math.log(257), rel=0.02)
