from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from raycl.nn import collectives
from raycl.nn.losses import negative_cosine, nt_xent
from tests.nn.distributed import run

Golden = Callable[[str], dict[str, np.ndarray]]


def _views(rows: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.manual_seed(rows)
    z1, z2 = torch.randn(2, rows, width, dtype=dtype, generator=generator)
    return z1.requires_grad_(), z2.requires_grad_()


def _written_out(z1: Tensor, z2: Tensor, temperature: float) -> float:
    """The paper's equation, term by term."""
    z = torch.cat([z1, z2]).detach().numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    count = len(z1)
    losses = []
    for i in range(2 * count):
        others = [k for k in range(2 * count) if k != i]
        scores = [math.exp(float(z[i] @ z[k]) / temperature) for k in others]
        positive = float(z[i] @ z[(i + count) % (2 * count)]) / temperature
        losses.append(math.log(sum(scores)) - positive)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_equation(rows: int, temperature: float) -> None:
    z1, z2 = _views(rows, 5)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(
        _written_out(z1, z2, temperature), abs=1e-12
    )


@pytest.mark.parametrize("rows", [2, 16])
def test_equal_embeddings(rows: int) -> None:
    z = torch.ones(rows, 4, dtype=torch.float64)
    assert nt_xent(z, 3 * z, 0.2).item() == pytest.approx(math.log(2 * rows - 1))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_orthogonal_pairs(temperature: float) -> None:
    z = torch.eye(8, dtype=torch.float64)
    expected = math.log(1 + 14 * math.exp(-1 / temperature))
    assert nt_xent(z, 2 * z, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("temperature", "name"), [(0.1, "t01"), (0.5, "t05")])
def test_published_values_and_gradients(golden: Golden, temperature: float, name: str) -> None:
    arrays = golden("simclr_ntxent")
    z1, z2 = (torch.tensor(arrays[key], dtype=torch.float64) for key in ("hidden1", "hidden2"))
    z1.requires_grad_()
    z2.requires_grad_()
    loss = nt_xent(z1, z2, temperature)
    assert loss.item() == pytest.approx(float(arrays[f"loss_paper_{name}"]), abs=1e-9)
    assert 2 * loss.item() == pytest.approx(float(arrays[f"loss_official_{name}"]), rel=1e-5)
    gradient = torch.cat(torch.autograd.grad(2 * loss, (z1, z2)))
    np.testing.assert_allclose(gradient, arrays[f"grad_official_{name}"], atol=2e-6)


def test_single_precision_agrees_with_double(golden: Golden) -> None:
    arrays = golden("simclr_ntxent")
    z1, z2 = (torch.tensor(arrays[key]) for key in ("hidden1", "hidden2"))
    loss = nt_xent(z1, z2, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(arrays["loss_paper_t01"]), rel=1e-6)


def test_half_precision_is_promoted_also_under_autocast() -> None:
    z1, z2 = (z.detach().bfloat16() for z in _views(32, 16, torch.float32))
    expected = nt_xent(z1.double(), z2.double(), 0.05)
    for z in (z1, z2):
        z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z1, z2, 0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert z1.grad is not None and z1.grad.dtype == torch.bfloat16


def test_a_cosine_under_autocast_is_computed_in_single_precision() -> None:
    p, z = (z.detach().bfloat16() for z in _views(32, 16, torch.float32))
    expected = negative_cosine(p.double(), z.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = negative_cosine(p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_the_direction_counts() -> None:
    z1, z2 = _views(5, 4)
    small = nt_xent(1e-5 * z1, 1e5 * z2, 0.1).item()
    assert small == pytest.approx(nt_xent(z1, z2, 0.1).item(), abs=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_extreme_projections_stay_finite(scale: float) -> None:
    z1, z2 = (scale * z for z in _views(4, 3, torch.float32))
    z1, z2 = z1.detach().requires_grad_(), z2.detach().requires_grad_()
    loss = nt_xent(z1, z2, 0.001)
    loss.backward()
    assert loss.isfinite()
    for z in (z1, z2):
        assert z.grad is not None and z.grad.isfinite().all()


def _two_ranks(hidden: Tensor) -> dict[str, Tensor]:
    """A rank's losses, the gradient of its projections and the averaged one of a parameter."""
    own = hidden.chunk(collectives.world_size(), dim=1)[collectives.rank()]
    weight = _weight().requires_grad_()
    loss = nt_xent(own[0] @ weight, own[1] @ weight, 0.1)
    loss.backward()
    assert weight.grad is not None
    projections = own.clone().requires_grad_()
    plain = nt_xent(projections[0], projections[1], 0.1)
    plain.backward()
    assert projections.grad is not None
    return {
        "loss": loss.detach(),
        "weight": collectives.all_reduce_mean(weight.grad),
        "plain": plain.detach(),
        "projections": projections.grad,
    }


def _weight() -> Tensor:
    return torch.randn(16, 16, dtype=torch.float64, generator=torch.manual_seed(3))


def test_two_ranks_give_the_loss_and_gradient_of_one(golden: Golden) -> None:
    arrays = golden("simclr_ntxent")
    hidden = torch.tensor(np.stack([arrays["hidden1"], arrays["hidden2"]]), dtype=torch.float64)
    weight = _weight().requires_grad_()
    one = nt_xent(hidden[0] @ weight, hidden[1] @ weight, 0.1)
    one.backward()

    ranks = run(2, _two_ranks, hidden)
    losses = torch.stack([rank["loss"] for rank in ranks])
    torch.testing.assert_close(losses.mean(), one.detach(), rtol=0, atol=1e-12)
    for rank in ranks:
        torch.testing.assert_close(rank["weight"], weight.grad, rtol=0, atol=1e-10)

    # In the published run each replica back-propagates half its scalar, which is our loss.
    scalars = [2 * rank["plain"].item() for rank in ranks]
    np.testing.assert_allclose(scalars, arrays["loss_replica_t01"], rtol=1e-5)
    gradient = torch.cat([rank["projections"] for rank in ranks], dim=1).flatten(0, 1)
    np.testing.assert_allclose(gradient, arrays["grad_two_replica_t01"], atol=2e-6)
