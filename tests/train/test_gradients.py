from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycl.nn import collectives
from raycl.nn.batchnorm import BatchNorm
from raycl.nn.losses import nt_xent
from raycl.train.gradients import GradientAverager
from tests.nn.distributed import run

ROWS = 8
TINY = 200  # bytes: one parameter or two in a bucket


class Net(nn.Module):
    """Has a batch norm, whose collectives mix with the averager's, and parts that may go unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # Without bias: behind a batch norm its gradient would be rounding errors alone.
        self.first = nn.Linear(4, 6, bias=False)
        self.norm = BatchNorm(6, "global")
        self.second = nn.Linear(6, 3)
        self.sometimes = nn.Linear(3, 3)
        self.never = nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor, extra: bool) -> Tensor:
        y = self.second(self.norm(self.first(x)).relu())
        return y + self.sometimes(y) if extra else y


def _views(step: int) -> Tensor:
    """Two views of all rows, (2, ROWS, 4)."""
    return torch.randn(2, ROWS, 4, dtype=torch.float64, generator=torch.manual_seed(step))


def _own(rows: Tensor) -> Tensor:
    return rows.chunk(collectives.world_size(), dim=-2)[collectives.rank()]


def _copies(parameters: list[Tensor]) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in parameters]


def _train() -> dict[str, Any]:
    """Several ways to train for some steps; the same code for one rank and for two."""
    world, results = collectives.world_size(), {}

    def loss_of(net: Net, step: int) -> Tensor:
        z1, z2 = net(_own(_views(step)).flatten(0, 1), step % 2 == 1).chunk(2)
        return nt_xent(z1, z2, 0.5)

    for name, limit in (("one bucket", 1 << 20), ("many buckets", TINY)):
        net = Net()
        parameters = list(net.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.5)
        averager = GradientAverager(parameters, limit)
        for step in range(4):
            optimizer.zero_grad(set_to_none=step < 2)
            with averager:
                loss_of(net, step).backward(inputs=parameters)
            optimizer.step()
        results[name] = [p.detach() for p in parameters]

        net = Net()
        parameters = list(net.parameters())
        averager = GradientAverager(parameters, limit)
        for turn in range(2):
            net.zero_grad()
            for step in range(2):
                loss_of(net, step).backward()
            with averager:
                loss_of(net, 2).backward()
            results[f"{name}, accumulation {turn}"] = _copies(parameters)
        net.zero_grad()
        loss_of(net, 0).backward()
        averager.finish()
        results[f"{name}, finish alone"] = _copies(parameters)
        averager.close()

    # A part that only the first rank uses, to which the second one brings zeros.
    net = Net()
    parameters = list(net.parameters())
    averager = GradientAverager(parameters, TINY)
    for turn in range(3):
        net.zero_grad()
        x = _views(0)[0]
        if world == 1:
            # Rank means: the first half with the part, the second half without.
            y = net.second(net.norm(net.first(x)).relu())
            loss = ((y[:4] + net.sometimes(y[:4])).square().sum() + y[4:].square().sum()) / 2
        else:
            loss = net(_own(x), collectives.rank() == 0).square().sum()
        with averager:
            loss.backward()
        results[f"part of one rank {turn}"] = _copies(parameters)

    results |= _critic_and_generator()
    return results


def _critic_and_generator() -> dict[str, Any]:
    """Optimizers in turns: five critic updates with a gradient penalty, then the generator."""
    torch.manual_seed(1)
    critic, generator = nn.Linear(4, 1).double(), nn.Linear(4, 4).double()
    critic_body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), critic).double()
    parts = {"critic": list(critic_body.parameters()), "generator": list(generator.parameters())}
    optimizers = {name: torch.optim.SGD(part, lr=0.1, momentum=0.9) for name, part in parts.items()}
    averagers = {name: GradientAverager(part, TINY) for name, part in parts.items()}

    def update(name: str, loss: Tensor) -> None:
        optimizers[name].zero_grad()
        with averagers[name]:
            loss.backward(inputs=parts[name])
        optimizers[name].step()

    for step in range(3):
        for turn in range(5):
            real, noise = _own(_views(10 * step + turn))
            fake = generator(noise)
            mixed = ((real + fake) / 2).detach().requires_grad_()
            (slope,) = torch.autograd.grad(critic_body(mixed).sum(), mixed, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            update("critic", critic_body(fake).mean() - critic_body(real).mean() + penalty)
        update("generator", -critic_body(fake).mean())
    return {name: [p.detach() for p in part] for name, part in parts.items()}


def _two_ranks() -> dict[str, Any]:
    results = _train()
    messages = []
    weight = nn.Parameter(torch.ones(3))
    averager = GradientAverager([weight])
    for _ in range(2):
        try:
            with averager:
                weight.sum().backward()
                weight.sum().backward()
        except RuntimeError as error:
            messages.append(str(error))
    results["twice"] = messages
    # Memory format: what an optimizer sees is laid out as its parameter.
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with GradientAverager(conv.parameters()):
        conv(torch.randn(1, 3, 4, 4)).sum().backward()
    assert conv.weight.grad is not None
    results["strides"] = [conv.weight.stride(), conv.weight.grad.stride()]
    return results


def test_two_ranks_train_as_one() -> None:
    one = _train()
    for rank in run(2, _two_ranks):
        for name, expected in one.items():
            for index, (value, wanted) in enumerate(zip(rank[name], expected, strict=True)):
                if wanted is None:
                    assert value is None, f"{name} {index}"
                else:
                    torch.testing.assert_close(
                        value, wanted, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
                    )
        assert len(rank["twice"]) == 1 and "only once" in rank["twice"][0]
        assert rank["strides"][0] == rank["strides"][1]
    # The reference itself must hold what is to be shown: unused parts without a gradient.
    unused = [value is None for value in one["one bucket, finish alone"]]
    assert unused == [False] * 5 + [True] * 4
    assert [value is None for value in one["part of one rank 2"]] == [False] * 7 + [True] * 2


def test_one_process_is_left_alone() -> None:
    net = Net()
    averager = GradientAverager(net.parameters())
    with averager:
        net(_views(0)[0], True).sum().backward()
    before = _copies(list(net.parameters()))
    averager.finish()
    averager.close()
    for parameter, gradient in zip(net.parameters(), before, strict=True):
        assert not parameter._post_accumulate_grad_hooks
        if gradient is None:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


def test_an_error_in_the_block_is_passed_on() -> None:
    with pytest.raises(KeyError), GradientAverager([nn.Parameter(torch.ones(1))]):
        raise KeyError
