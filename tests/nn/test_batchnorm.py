from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycl.nn import collectives, lanes
from raycl.nn.batchnorm import BatchNorm, Scope, average_statistics
from raycl.nn.lanes import Layout
from tests.nn.distributed import run

CHANNELS = 3
SHAPES = [(CHANNELS,), (CHANNELS, 4, 5)]


def _random(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(seed))
    # Unequal rows and channels, so that wrong groups show.
    return values * torch.linspace(1, 3, shape[0]).view(-1, *[1] * (len(shape) - 1)) + 5


def _norm(scope: Scope, **options: bool) -> BatchNorm:
    norm = BatchNorm(CHANNELS, scope, **options).double()
    with torch.no_grad():
        for index, parameter in enumerate(norm.parameters()):
            parameter.copy_(torch.tensor([0.5, 2.0, -1.0]) + index)
    return norm


def _run(norm: BatchNorm, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """One forward and backward of a mean loss; everything that it leaves."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * target).flatten(1).sum(1).mean().backward()
    assert x.grad is not None
    gradients = {
        f"grad_{name}": parameter.grad
        for name, parameter in norm.named_parameters()
        if parameter.grad is not None
    }
    buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    return {"y": y.detach(), "grad_x": x.grad, **gradients, **buffers}


def _close(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert result.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            result[name], expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("scope", ["lane", "global"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_lane_is_torchs_batch_norm(scope: Scope, shape: tuple[int, ...]) -> None:
    x, target = _random(6, *shape), _random(6, *shape, seed=1)
    ours = _norm(scope)
    theirs = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(CHANNELS).double()
    theirs.load_state_dict(ours.state_dict())
    _close(_run(ours, x, target), _run(theirs, x, target))  # type: ignore[arg-type]
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(target), theirs(target), rtol=0, atol=0)


def test_without_scale_or_shift() -> None:
    x = _random(6, CHANNELS)
    normalised = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    assert list(dict(_norm("lane", bias=False).named_parameters())) == ["weight"]
    plain = _norm("lane", weight=False, bias=False)
    assert not list(plain.parameters())
    torch.testing.assert_close(plain(x), normalised)
    scaled = _norm("lane", bias=False)
    torch.testing.assert_close(scaled(x), normalised * scaled.weight)


def _lane_by_lane(x: Tensor, target: Tensor, lane_count: int, batch: int) -> dict[str, Tensor]:
    """Reference: every lane by itself through torch's batch norm, statistics averaged."""
    norm = _norm("lane")
    x = x.clone().requires_grad_()
    lane_of = (torch.arange(len(x)) // batch) % lane_count
    y = torch.empty_like(x)
    means, variances = [], []
    for lane in range(lane_count):
        rows = x[lane_of == lane]
        y[lane_of == lane] = F.batch_norm(rows, None, None, norm.weight, norm.bias, True)
        flat = rows.detach().transpose(0, 1).flatten(1)
        means.append(flat.mean(1))
        variances.append(flat.var(1))
    (y * target).flatten(1).sum(1).mean().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    return {
        "y": y.detach(),
        "grad_x": x.grad,
        "grad_weight": norm.weight.grad,
        "grad_bias": norm.bias.grad,
        "running_mean": 0.1 * torch.stack(means).mean(0),
        "running_var": 0.9 + 0.1 * torch.stack(variances).mean(0),
        "num_batches_tracked": torch.tensor(1),
    }


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_lanes_have_their_own_statistics(parts: int, shape: tuple[int, ...]) -> None:
    rows = parts * 4 * 3
    x, target = _random(rows, *shape), _random(rows, *shape, seed=1)
    with lanes.use(Layout(lanes=4, batch=3)):
        result = _run(_norm("lane"), x, target)
    _close(result, _lane_by_lane(x, target, 4, 3))


@pytest.mark.parametrize("scope", ["lane", "global"])
@pytest.mark.parametrize("count", [1, 2])
def test_statistics_can_be_left_alone(scope: Scope, count: int) -> None:
    norm = _norm(scope)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    x = _random(4, CHANNELS)
    with lanes.use(Layout(lanes=count, batch=4 // count)):
        moved = _norm(scope)(x)
    with lanes.use(Layout(lanes=count, batch=4 // count, update_statistics=False)):
        torch.testing.assert_close(norm(x), moved)
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, before[name])


def test_lanes_keep_half_precision_and_memory_format() -> None:
    x = _random(4, CHANNELS, 4, 5).float()
    norm = BatchNorm(CHANNELS)
    with lanes.use(Layout(lanes=2, batch=2)):
        exact = norm(x)
        half = norm(x.bfloat16().contiguous(memory_format=torch.channels_last))
    assert half.dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.05)


def _two_ranks() -> dict[str, Any]:
    rank = collectives.rank()
    results: dict[str, Any] = {}
    for shape in SHAPES:
        x, target = _random(12, *shape), _random(12, *shape, seed=1)
        own = slice(rank * 6, rank * 6 + 6)
        for weight, bias in [(True, True), (True, False), (False, False)]:
            norm = _norm("global", weight=weight, bias=bias)
            results[f"global{shape}{weight}{bias}"] = _reduced(_run(norm, x[own], target[own]))
        with lanes.use(Layout(lanes=2, batch=3)):
            norm = _norm("lane")
            result = _run(norm, x[own], target[own])
        average_statistics(norm)
        result |= {name: buffer.clone() for name, buffer in norm.named_buffers()}
        results[f"lane{shape}"] = _reduced(result)

    uneven = _random(12, CHANNELS)
    norm = _norm("global")
    results["uneven"] = norm(uneven[:5] if rank == 0 else uneven[5:]).detach()
    results["uneven_var"] = norm.running_var

    half = BatchNorm(CHANNELS, "global")
    x = _random(4, CHANNELS, 4, 5, seed=rank).bfloat16().requires_grad_()
    y = half(x)
    y.float().square().sum().backward()
    assert x.grad is not None and half.weight.grad is not None
    results["half"] = [y.dtype, x.grad.dtype, half.weight.grad.dtype, half.running_mean.dtype]

    # Averaging once, after several steps, against averaging after every step.
    once, always = nn.Sequential(BatchNorm(2), BatchNorm(2)), nn.Sequential(BatchNorm(2))
    always.append(BatchNorm(2))
    for step in range(4):
        x = torch.randn(8, 2, generator=torch.manual_seed(10 * rank + step)) + 3 * rank
        once(x)
        always(x)
        average_statistics(always)
    results["before"] = once.state_dict()["0.running_mean"].clone()
    average_statistics(once)
    results["once"], results["always"] = once.state_dict(), always.state_dict()
    return results


def _reduced(result: dict[str, Tensor]) -> dict[str, Tensor]:
    """Averages parameter gradients as training does; undoes the ranks' means for the input's."""
    for name in ("grad_weight", "grad_bias"):
        if name in result:
            result[name] = collectives.all_reduce_mean(result[name])
    return result | {"grad_x": result["grad_x"] / collectives.world_size()}


def _joined(ranks: list[dict[str, Any]], key: str) -> dict[str, Tensor]:
    first, second = (rank[key] for rank in ranks)
    rows = ("y", "grad_x")
    for name in first.keys() - set(rows):
        assert torch.equal(first[name], second[name]), name
    return first | {name: torch.cat([first[name], second[name]]) for name in rows}


def test_two_ranks() -> None:
    ranks = run(2, _two_ranks)
    for shape in SHAPES:
        x, target = _random(12, *shape), _random(12, *shape, seed=1)
        for weight, bias in [(True, True), (True, False), (False, False)]:
            one = _run(_norm("global", weight=weight, bias=bias), x, target)
            _close(_joined(ranks, f"global{shape}{weight}{bias}"), one)
        with lanes.use(Layout(lanes=4, batch=3)):
            one = _run(_norm("lane"), x, target)
        _close(one, _lane_by_lane(x, target, 4, 3))
        _close(_joined(ranks, f"lane{shape}"), one)

    norm = _norm("global")
    whole = norm(_random(12, CHANNELS))
    torch.testing.assert_close(torch.cat([rank["uneven"] for rank in ranks]), whole)
    for rank in ranks:
        torch.testing.assert_close(rank["uneven_var"], norm.running_var)
        assert rank["half"] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]

    assert not torch.allclose(ranks[0]["before"], ranks[1]["before"])
    for rank in ranks:
        for name, value in rank["always"].items():
            torch.testing.assert_close(rank["once"][name], value, msg=name)
            torch.testing.assert_close(ranks[0]["once"][name], rank["once"][name], rtol=0, atol=0)
