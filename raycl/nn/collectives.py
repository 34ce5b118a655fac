"""Exchange between ranks. Every function leaves its input as it is when there is one process.

A rank's loss is the mean over its own rows, and the ranks' parameter gradients are averaged. A
tensor that other ranks have used too must therefore receive the sum of all ranks' gradients: that
is what the backward passes here compute, and it makes N ranks give the gradient of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def rank() -> int:
    """This process's place among the ranks, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if _is_initialized() else 1


def concat(x: Tensor) -> Tensor:
    """Concatenates the ranks' tensors along the rows, without gradient: (N, ...) -> (W N, ...).

    Rank 0's rows come first; all ranks must hand over the same shape.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    return _all_gather(x)


def gather(x: Tensor) -> Tensor:
    """As `concat`, with gradient: every rank's use of a row counts for the rank that owns it.

    Without it only a rank's own terms reach its rows and the keys' share of the gradient is lost.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sums over ranks, with gradient (the sum of the ranks' gradients)."""
    if world_size() == 1:
        return x
    return _AllReduceSum.apply(x)


def all_reduce_mean(x: Tensor) -> Tensor:
    """Averages over ranks, without gradient."""
    x = x.detach()
    if world_size() == 1:
        return x
    return _sum(x) / world_size()


def average(tensors: Iterable[Tensor]) -> None:
    """Averages floating-point tensors over ranks in place, with one exchange per type."""

    def mean(flat: Tensor) -> None:
        dist.all_reduce(flat)
        flat /= world_size()

    _coalesced(tensors, mean)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copies rank 0's tensors to all ranks in place, with one exchange per type."""
    _coalesced(tensors, lambda flat: dist.broadcast(flat, src=0))


def agreed(number: int, device: torch.device | str = "cpu") -> int:
    """Rank 0's number, on every rank."""
    if world_size() == 1:
        return number
    shared = torch.tensor([number], device=device)
    dist.broadcast(shared, src=0)
    return int(shared.item())


def handed_on(value: Any, source: int) -> Any:
    """What rank `source` has, on every rank: tensors and plain data, which stay on the host."""
    shared = [value]
    dist.broadcast_object_list(shared, src=source)
    return shared[0]


def barrier() -> None:
    """Returns when all ranks have come to it."""
    if world_size() > 1:
        dist.barrier()


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _all_gather(x: Tensor) -> Tensor:
    rows = x.new_empty((world_size() * len(x), *x.shape[1:]))
    dist.all_gather_into_tensor(rows, x.contiguous())
    return rows


@torch.no_grad()
def _coalesced(tensors: Iterable[Tensor], exchange: Callable[[Tensor], Any]) -> None:
    if world_size() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for members in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in members])
        exchange(flat)
        for tensor, piece in zip(
            members, flat.split([tensor.numel() for tensor in members]), strict=True
        ):
            tensor.copy_(piece.view_as(tensor))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty((len(grad) // world_size(), *grad.shape[1:]))
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad)
