"""How gradients are averaged over ranks: decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from raycl.nn.collectives import broadcast, world_size

_BUCKET_BYTES = 25 << 20


@dataclass
class _Bucket:
    """Parameters whose gradients travel together.

    `flat` holds their gradients one after the other, divided by the number of ranks, and then a
    flag for each: whether this rank had a gradient, and after the exchange whether any rank had.
    """

    parameters: list[Tensor]
    flat: Tensor
    views: list[Tensor]
    flags: Tensor
    waiting: set[int] = field(default_factory=set)
    missing: list[int] = field(default_factory=list)
    work: dist.Work | None = None

    def __post_init__(self) -> None:
        self.waiting.update(range(len(self.parameters)))

    def take(self, place: int) -> None:
        """Moves a gradient into the buffer, best while it is still in the cache."""
        parameter, view = self.parameters[place], self.views[place]
        self.waiting.remove(place)
        if parameter.grad is None:
            self.missing.append(place)
            view.zero_()
        else:
            # Divided before the sum, so that half precision does not overflow.
            torch.mul(parameter.grad.detach(), 1 / world_size(), out=view)
            parameter.grad = view

    def launch(self, group: dist.ProcessGroup) -> None:
        """Starts the exchange."""
        for place in sorted(self.waiting):
            self.take(place)
        self.flags.fill_(1)
        for place in self.missing:
            self.flags[place] = 0
        self.work = dist.all_reduce(self.flat, group=group, async_op=True)

    def finish(self) -> None:
        """Waits for the exchange; the parameters that only other ranks used get their gradient."""
        assert self.work is not None
        self.work.wait()
        if self.missing:
            # Only here the host must wait for the device; with all gradients there, all flags are.
            used = self.flags.tolist()
            for place in self.missing:
                if used[place] > 0:
                    self.parameters[place].grad = self.views[place]
        self.work, self.missing = None, []
        self.waiting.update(range(len(self.parameters)))


class GradientAverager:
    """Averages the gradients of one optimizer's parameters over ranks, overlapping with backward.

    Usage, after any number of backward passes that accumulate on this rank alone::

        with averager:
            loss.backward(inputs=parameters)
        optimizer.step()

    Inside the block, a bucket of gradients starts travelling as soon as it is complete; leaving it
    finishes. All ranks send the same buckets in the same order, whatever parameters they used: the
    order in which gradients arrive at rank 0 in the first turn. Of several averagers, for
    optimizers in turns, only the one in a block listens. A parameter without gradient on this rank
    contributes zeros, and receives a gradient only if some rank had one: with none at all it keeps
    None, and the optimizer passes it by as it would in one process.

    Every gradient that was averaged is a view into a buffer that the next turn overwrites. In one
    process nothing happens. Constructing and closing are collective: all ranks, same order.
    """

    def __init__(self, parameters: Iterable[Tensor], bucket_bytes: int = _BUCKET_BYTES) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._bucket_bytes = bucket_bytes
        self._buckets: list[_Bucket] = []
        self._place: dict[int, tuple[_Bucket, int]] = {}
        self._arrived: dict[int, None] = {}
        self._launched = 0
        self._armed = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._group: dist.ProcessGroup | None = None
        if world_size() == 1 or not self._parameters:
            return
        # A group of its own: ranks that use different parameters launch at different moments
        # between the collectives of a loss or a batch norm, and order counts only within a group.
        group = dist.new_group()
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        for index, parameter in enumerate(self._parameters):
            hook = partial(self._arrive, index)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))

    def __enter__(self) -> Self:
        self._armed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._armed = False
        if kind is None:
            self.finish()

    def finish(self) -> None:
        """Sends what has not been sent yet and waits until all gradients are the ranks' mean.

        By itself, it averages the gradients that are there, without overlap.
        """
        if self._group is None:
            return
        if not self._buckets:
            self._build(self._group)
        for bucket in self._buckets[self._launched :]:
            bucket.launch(self._group)
        for bucket in self._buckets:
            bucket.finish()
        self._launched = 0

    def close(self) -> None:
        """Stops listening to the parameters, before another averager takes them over."""
        for hook in self._hooks:
            hook.remove()
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self._group = None

    def _build(self, group: dist.ProcessGroup) -> None:
        rest = (i for i in reversed(range(len(self._parameters))) if i not in self._arrived)
        order = torch.tensor([*self._arrived, *rest], device=self._parameters[0].device)
        broadcast([order])
        for members in _partition(self._parameters, order.tolist(), self._bucket_bytes):
            bucket = _bucket([self._parameters[index] for index in members])
            self._buckets.append(bucket)
            for place, index in enumerate(members):
                self._place[index] = bucket, place

    def _arrive(self, index: int, _: Tensor) -> None:
        if not self._buckets:
            self._arrived.setdefault(index)
            return
        bucket, place = self._place[index]
        if place not in bucket.waiting:
            raise RuntimeError(
                "a gradient arrived after it was sent: call backward only once inside the "
                "averager's block, after the passes that accumulate"
            )
        if not self._armed or self._group is None:
            return
        bucket.take(place)
        while self._launched < len(self._buckets):
            if self._buckets[self._launched].waiting:
                break
            self._buckets[self._launched].launch(self._group)
            self._launched += 1


def _partition(parameters: list[Tensor], order: list[int], limit: int) -> list[list[int]]:
    """Consecutive parameters of one type and device, up to `limit` bytes or a single one."""
    parts: list[list[int]] = []
    size, kind = 0, None
    for index in order:
        parameter = parameters[index]
        if kind != (parameter.dtype, parameter.device) or size + parameter.nbytes > limit:
            parts.append([])
            size, kind = 0, (parameter.dtype, parameter.device)
        parts[-1].append(index)
        size += parameter.nbytes
    return parts


def _bucket(parameters: list[Tensor]) -> _Bucket:
    sizes = [parameter.numel() for parameter in parameters]
    flat = torch.zeros(
        sum(sizes) + len(sizes), dtype=parameters[0].dtype, device=parameters[0].device
    )
    *pieces, flags = flat.split([*sizes, len(sizes)])
    views = [
        # Gradients keep their parameter's memory format, which optimizers are fast with.
        piece.as_strided(parameter.shape, torch.empty_like(parameter, device="meta").stride())
        for piece, parameter in zip(pieces, parameters, strict=True)
    ]
    return _Bucket(parameters, flat, views, flags)
