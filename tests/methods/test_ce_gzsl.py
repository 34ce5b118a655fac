"""CE-GZSL as published: losses, gradients of both updates, scaling; where gradients may flow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.methods.base import DataInfo, Output, Step
from raycl.methods.ce_gzsl import CEGZSL, Embedding, leaky
from raycl.nn.losses import supervised_contrast

Golden = Callable[[str], dict[str, np.ndarray]]
STEP = Step(0, 0, 10)


def method_of(data: DataInfo, **changes: object) -> CEGZSL:
    sizes = {"hidden": 16, "embedding": 12, "projection": 8, "comparator": 10}
    return CEGZSL(CEGZSL.Config.model_validate(sizes | changes), data)


def published(found: dict[str, np.ndarray]) -> tuple[CEGZSL, dict[str, nn.Linear]]:
    """The networks with the published weights, and their layers by the names of the golden file."""
    classes = torch.from_numpy(found["attribute_seen"])
    data = DataInfo(10, arrays={"features": (9,)}, class_embeddings=classes, seen=torch.arange(5))
    method = method_of(data, generator_weight=float(found["g_weight"]))
    method.critic = nn.Sequential(*leaky([15, 14, 1]))
    layers = {
        "G_fc1": method.generator[0],
        "G_fc2": method.generator[2],
        "D_fc1": method.critic[0],
        "D_fc2": method.critic[2],
        "E_fc1": method.encoder.layer,
        "E_fc2": method.projector,
        "F_fc1": method.comparator.first,
        "F_fc2": method.comparator.second,
    }
    for name, layer in layers.items():
        layer.weight.data = torch.from_numpy(found[f"{name}_weight"])
        layer.bias.data = torch.from_numpy(found[f"{name}_bias"])
    return method.double(), layers


def tensors(found: dict[str, np.ndarray], *names: str) -> list[Tensor]:
    return [torch.from_numpy(found[name]).double() for name in names]


def test_updates_are_those_of_the_published_code(golden: Golden) -> None:
    found = golden("ce_gzsl_losses")
    method, layers = published(found)
    y = torch.from_numpy(found["label"])
    x, noise_d, noise_g, alpha = tensors(found, "x_real", "noise_d", "noise_g", "alpha")
    critic = method._critic_output(x, y, noise_d, alpha)
    assert critic.loss.item() == pytest.approx(found["d_cost"], rel=1e-8)
    wanted = {
        "wasserstein": found["critic_real"] - found["critic_fake"],
        "penalty": found["gradient_penalty"],
        "instance": found["ins_loss_real"],
        "class": found["cls_loss_real"],
    }
    for name, value in wanted.items():
        assert critic.metrics[name].item() == pytest.approx(float(value), rel=1e-8), name
    generator = method._generator_output(x, y, noise_g)
    assert generator.loss.item() == pytest.approx(found["g_cost"], rel=1e-8)
    for prefix, output in {"grad_d": critic, "grad_g": generator}.items():
        method.zero_grad()
        output.loss.backward()
        for name, layer in layers.items():
            for kind in ("weight", "bias"):
                known = found.get(f"{prefix}_{name}_{kind}")
                if known is not None:
                    gradient = getattr(layer, kind).grad
                    np.testing.assert_allclose(gradient, known, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("name", "temperature"), [("t01", 0.1), ("t007", 0.07), ("t10", 1.0)])
def test_instance_contrast(golden: Golden, name: str, temperature: float) -> None:
    found = golden("ce_gzsl_losses")
    (z,) = tensors(found, "supcon_z")
    loss = supervised_contrast(z, torch.from_numpy(found["supcon_label"]), temperature)
    assert loss.item() == pytest.approx(found[f"supcon_loss_{name}"], rel=1e-6)


def test_scaling(golden: Golden) -> None:
    found = golden("gzsl_scaling")
    train, test = (torch.from_numpy(found[name]) for name in ("train", "test"))
    encoder = Embedding(train.shape[1], 4)
    encoder.fit(train, signed=False)
    for part, scaled in ((train, "train_scaled"), (test, "test_scaled")):
        np.testing.assert_allclose(encoder.scaled(part), found[scaled], atol=1e-6)


def test_signed_features_are_standardised() -> None:
    x = torch.randn(50, 3) * torch.tensor([5.0, 0.1, 0.0]) - 2
    encoder = Embedding(3, 4)
    encoder.fit(x, signed=True)
    torch.testing.assert_close(encoder.scaled(x).mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoder.scaled(x).std(0), torch.tensor([1.0, 1.0, 0.0]))


def toy(rows: int = 12) -> tuple[CEGZSL, dict[str, Tensor]]:
    torch.manual_seed(0)
    data = DataInfo(
        rows,
        arrays={"features": (6,)},
        class_embeddings=torch.randn(5, 3),
        seen=torch.tensor([0, 2, 4]),
    )
    label = torch.tensor([0, 2, 4])[torch.arange(rows) % 3]
    batch = {"id": torch.arange(rows), "features": torch.rand(rows, 6), "label": label}
    return method_of(data, critic_steps=2).double(), batch


def test_updates_take_turns_and_each_moves_its_own_networks() -> None:
    method, batch = toy()
    batch["features"] = batch["features"].double()
    outputs: list[Output] = []
    for output in method.training_step(batch, STEP):
        outputs.append(output)
        method.zero_grad()
        groups = method.parameter_groups()[output.optimizer]
        own = [p for group in groups for p in group["params"]]
        output.loss.backward(inputs=own)
        moved = [p.grad is not None and bool(p.grad.any()) for p in own if p.ndim > 1]
        assert all(moved) and moved, output.optimizer
    assert [output.optimizer for output in outputs] == ["critic", "critic", "generator"]
    every = {id(p) for g in method.parameter_groups().values() for d in g for p in d["params"]}
    assert every == {id(p) for p in method.parameters()}


def test_no_gradient_of_the_generator_reaches_real_projections() -> None:
    method, batch = toy()
    x = batch["features"].double().requires_grad_()
    noise = torch.randn(12, method.noise).double()
    method._generator_output(x, batch["label"], noise).loss.backward()
    assert x.grad is None


def test_rows_that_do_not_make_equal_batches_are_refused() -> None:
    method, batch = toy(9)
    with pytest.raises(RayclError, match=r"trainer\.batch: 9 rows .* multiple of .*critic_steps=2"):
        next(iter(method.training_step(batch, STEP)))


def test_class_embeddings_are_needed() -> None:
    with pytest.raises(RayclError, match=r"data\.classes"):
        CEGZSL(data=DataInfo(3, arrays={"features": (4,)}))
