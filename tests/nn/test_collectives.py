from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raycl.nn import collectives
from tests.nn.distributed import run


def test_one_process_leaves_everything_as_it_is() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (collectives.rank(), collectives.world_size()) == (0, 1)
    assert collectives.gather(x) is x
    assert collectives.all_reduce_sum(x) is x
    assert torch.equal(collectives.concat(x), x) and not collectives.concat(x).requires_grad
    assert torch.equal(collectives.all_reduce_mean(x), x)
    before = x.detach().clone()
    collectives.broadcast([x])
    collectives.average([x])
    assert torch.equal(x, before)


def _rows(world: int) -> Tensor:
    return torch.randn(2 * world, 3, dtype=torch.float64, generator=torch.manual_seed(0))


def _weights(world: int) -> Tensor:
    return torch.randn(world, 2 * world, 3, dtype=torch.float64, generator=torch.manual_seed(1))


def _ranks() -> dict[str, Any]:
    rank, world = collectives.rank(), collectives.world_size()
    x = _rows(world).chunk(world)[rank].clone().requires_grad_()
    weights = _weights(world)[rank]

    gathered = collectives.gather(x)
    (grad_gather,) = torch.autograd.grad((weights * gathered.square()).sum(), x)
    total = collectives.all_reduce_sum(x)
    (grad_sum,) = torch.autograd.grad((weights[:2] * total.square()).sum(), x)

    mixed = [
        torch.full((2, 2), float(rank)),
        torch.tensor(rank),
        torch.full((3,), 10.0 + rank).double(),
        torch.arange(4.0).view(2, 2).T + rank,
    ]
    collectives.broadcast(mixed)
    means = [torch.full((2,), float(rank)), torch.full((1, 2), 3.0 + rank).double()]
    collectives.average(means)
    return {
        "rank": rank,
        "gathered": gathered.detach(),
        "concatenated": collectives.concat(x),
        "mean": collectives.all_reduce_mean(x),
        "total": total.detach(),
        "grad_gather": grad_gather,
        "grad_sum": grad_sum,
        "broadcast": mixed,
        "averaged": means,
    }


def test_three_ranks() -> None:
    world = 3
    rows, weights = _rows(world), _weights(world)
    parts = torch.stack(rows.chunk(world))
    for rank, result in enumerate(run(world, _ranks)):
        own = parts[rank]
        assert result["rank"] == rank
        assert torch.equal(result["gathered"], rows)
        assert torch.equal(result["concatenated"], rows)
        assert not result["concatenated"].requires_grad
        torch.testing.assert_close(result["mean"], parts.mean(0))
        torch.testing.assert_close(result["total"], parts.sum(0))
        # Each row has the gradient of the sum of all ranks' losses.
        uses = weights.sum(0)[2 * rank : 2 * rank + 2]
        torch.testing.assert_close(result["grad_gather"], 2 * own * uses)
        torch.testing.assert_close(result["grad_sum"], 2 * parts.sum(0) * weights[:, :2].sum(0))
        matrix, scalar, vector, transposed = result["broadcast"]
        assert torch.equal(matrix, torch.zeros(2, 2)) and scalar == 0
        assert torch.equal(vector, torch.full((3,), 10.0).double())
        assert torch.equal(transposed, torch.arange(4.0).view(2, 2).T)
        assert torch.equal(result["averaged"][0], torch.ones(2))
        assert torch.equal(result["averaged"][1], torch.full((1, 2), 4.0).double())
