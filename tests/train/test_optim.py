from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.train.optim import LARS, build, rate, scaled_lr, set_rate

Golden = Callable[[str], dict[str, np.ndarray]]


@dataclass
class Config:
    name: str = "lars"
    lr: float = 0.3
    lr_scaling: str = "linear"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    schedule: str = "cosine"


NAMES = ("weight", "bias", "bn_gamma", "zero_weight")


@pytest.mark.parametrize("variant", ["classic", "nesterov", "popular"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lars_follows_the_published_code(golden: Golden, variant: str, dtype: torch.dtype) -> None:
    arrays = golden("simclr_lars")
    weights = {
        name: nn.Parameter(torch.tensor(arrays[f"{name}_init"], dtype=dtype)) for name in NAMES
    }
    optimizer = LARS(
        [
            {"params": [weights["weight"], weights["zero_weight"]]},
            {"params": [weights["bias"], weights["bn_gamma"]], "weight_decay": 0, "adapt": False},
        ],
        lr=float(arrays["lr"]),
        momentum=float(arrays["momentum"]),
        weight_decay=float(arrays["weight_decay"]),
        trust=float(arrays["eeta"]),
        variant=variant,  # type: ignore[arg-type]
    )
    for step in range(4):
        for name, weight in weights.items():
            weight.grad = torch.tensor(arrays[f"{name}_grads"][step], dtype=dtype)
        optimizer.step()
        for name, weight in weights.items():
            _close(weight, arrays[f"{name}_{variant}"][step])
            if variant == "classic":
                velocity = optimizer.state[weight]["momentum_buffer"]
                _close(velocity, arrays[f"{name}_momentum_classic"][step])


def _close(actual: Tensor, expected: np.ndarray) -> None:
    tolerance = 1e-5 * float(np.abs(expected).max())
    np.testing.assert_allclose(actual.detach(), expected, rtol=0, atol=tolerance)


def test_lars_leaves_gradients_and_unused_parameters_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([used, unused], lr=0.1, weight_decay=0.5)
    used.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(used.grad, torch.ones(2, 2))
    assert torch.equal(unused, torch.ones(2, 2)) and unused not in optimizer.state
    assert not torch.equal(used, torch.ones(2, 2))


def test_lars_goes_on_from_its_state() -> None:
    def train(optimizer: LARS, weight: nn.Parameter, steps: range) -> None:
        for step in steps:
            weight.grad = torch.full((2, 2), 1.0 + step)
            optimizer.step()

    whole = nn.Parameter(torch.ones(2, 2))
    train(LARS([whole], lr=0.1), whole, range(4))
    first = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([first], lr=0.1)
    train(optimizer, first, range(2))
    second = nn.Parameter(first.detach().clone())
    resumed = LARS([second], lr=5.0)
    resumed.load_state_dict(optimizer.state_dict())
    train(resumed, second, range(2, 4))
    assert torch.equal(second, whole)


def test_lars_calls_a_closure_with_gradients_on() -> None:
    weight = nn.Parameter(torch.ones(1))

    def closure() -> float:
        loss = (3 * weight).sum()
        loss.backward()
        return loss.item()

    assert LARS([weight], lr=0.1).step(closure) == 3.0


def test_cosine_rate_is_the_published_schedule(golden: Golden) -> None:
    arrays = golden("simclr_lars")
    *_, total, warmup = arrays["sched_config"].tolist()
    rates = [0.3 * rate("cosine", step, total, warmup) for step in arrays["sched_steps"].tolist()]
    np.testing.assert_allclose(rates, arrays["sched_lr"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "step", "warmup", "expected"),
    [
        ("cosine", 0, 0, 1.0),
        ("cosine", 5, 0, 0.5),
        ("cosine", 10, 0, 0.0),
        ("cosine", 12, 0, 0.0),
        ("cosine", 3, 20, 0.15),
        ("cosine", 10, 10, 1.0),
        ("poly", 2, 4, 0.5),
        ("poly", 5, 0, 0.5**0.9),
        ("poly", 10, 0, 0.0),
        ("constant", 2, 4, 0.5),
        ("constant", 9, 4, 1.0),
        ("fixed", 0, 4, 1.0),
    ],
)
def test_rate(kind: str, step: int, warmup: int, expected: float) -> None:
    assert rate(kind, step, 10, warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("scaling", "expected"), [("none", 0.3), ("linear", 0.6), ("sqrt", 0.3 * math.sqrt(512))]
)
def test_learning_rate_scales_with_the_batch(scaling: str, expected: float) -> None:
    assert scaled_lr(Config(lr_scaling=scaling), 512) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["lars", "sgd", "adam", "adamw"])
def test_build_and_set_rate(name: str) -> None:
    model = nn.Linear(2, 2)
    predictor = nn.Parameter(torch.ones(2))
    config = Config(name=name)
    optimizer = build(
        [
            {"params": [model.weight]},
            {"params": [model.bias], "decay": False, "lr_scale": 0.5},
            {"params": [predictor], "schedule": "fixed"},
        ],
        config,
        global_batch=512,
    )
    assert type(optimizer).__name__.lower() == name
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0, 1e-4]
    if name == "lars":
        assert [group["adapt"] for group in optimizer.param_groups] == [True, False, True]
        assert optimizer.param_groups[0]["momentum"] == 0.9
    if name.startswith("adam"):
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)

    assert set_rate(optimizer, config, step=2, total=20, warmup=4) == pytest.approx(0.3)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.3, 0.15, 0.6])
    set_rate(optimizer, config, step=12, total=20, warmup=4)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.3, 0.15, 0.6])
    set_rate(optimizer, config, step=20, total=20, warmup=4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["lars", "sgd"])
def test_build_passes_nesterov_on(name: str) -> None:
    weights = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    for weight, nesterov in zip(weights, (True, False), strict=True):
        optimizer = build([{"params": [weight]}], Config(name=name, nesterov=nesterov), 256)
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("name", "nesterov", "momentum"),
    [
        ("sgd", False, 0.9),
        ("sgd", True, 0.9),
        ("sgd", False, 0.0),
        ("adam", False, 0.9),
        ("adamw", False, 0.9),
    ],
)
def test_fused_steps_are_those_of_torchs_plain_loops(
    name: str, nesterov: bool, momentum: float
) -> None:
    config = Config(name=name, nesterov=nesterov, momentum=momentum, lr_scaling="none")
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    own = {"momentum": momentum, "nesterov": nesterov} if name == "sgd" else {"betas": config.betas}

    def train(fused: bool) -> list[Tensor]:
        torch.manual_seed(0)
        trunk, head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 1)
        # Fused kernels walk through memory: a gradient in another order would be taken as it lies.
        both = nn.ModuleList([trunk, head]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = [{"params": [trunk.weight, head.weight]}, {"params": [trunk.bias], "decay": False}]
        if fused:
            optimizer = build(groups, config, 1)
        else:
            settings = {"lr": config.lr, "foreach": False, **own}
            optimizer = kind([trunk.weight, head.weight], weight_decay=1e-4, **settings)  # type: ignore[arg-type]
            optimizer.add_param_group({"params": [trunk.bias], "weight_decay": 0.0})
        for step in range(5):
            optimizer.zero_grad()
            x = torch.randn(2, 3, 5, 5)
            loss = trunk(x).square().mean()
            if step in (1, 2, 4):  # a head that comes later, and is reset in between
                loss = loss + head(x).square().mean()
            if step == 3:
                optimizer.state.pop(head.weight, None)
            loss.backward()
            optimizer.step()
        return [parameter.detach() for parameter in both.parameters()]

    for one, two in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(one, two)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    group = [{"params": [nn.Parameter(torch.ones(1))]}]
    with pytest.raises(RayclError, match=r"optimizer 'lamb' .* lars, sgd, adam or adamw"):
        build(group, Config(name="lamb"), 1)
    with pytest.raises(RayclError, match=r"lr_scaling 'cubic' .* none, linear or sqrt"):
        build(group, Config(lr_scaling="cubic"), 1)
    with pytest.raises(RayclError, match=r"schedule 'step' .* cosine, poly, constant or fixed"):
        rate("step", 0, 1, 0)
