"""A batch in host memory: whose memory it is, what it cost, and its way to the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycl.views.image import ImageView

Batch = dict[str, Tensor]

QUEUE = 1  # finished batches that wait for the training step
IN_FLIGHT = 1  # batches that are being cut while the next one is put together
# In use at a time: one that is put together, those in flight, those in the queue, one on its way
# into the queue, and the one that the training step is taking.
SLOTS = IN_FLIGHT + QUEUE + 3


@dataclass
class Waits:
    """Seconds that the training step has waited for data, by what held it up.

    While a batch is missing because its bundle is, that is `read` (and, where the cluster decodes,
    `decode` and `crop`) for as long as that took, and `transfer` beyond that. Any other wait is
    divided between `decode` and `crop` as the threads' time was. `copy` is that to the device.
    """

    read: float = 0.0
    transfer: float = 0.0
    decode: float = 0.0
    crop: float = 0.0
    copy: float = 0.0

    def add(self, seconds: float, host: Host) -> None:
        """Charges the wait for one batch."""
        starved = min(seconds, host.starved)
        made = min(starved, sum(host.made.values()))
        self.transfer += starved - made
        for spent, waited in ((host.made, made), (host.cut, seconds - starved)):
            for name, value in spent.items():
                share = value / max(sum(spent.values()), 1e-9)
                setattr(self, name, getattr(self, name) + waited * share)

    @property
    def total(self) -> float:
        return sum(astuple(self))


@dataclass
class Slot:
    """Memory of one batch's pixels, page-locked where a GPU copies from it, used over and over."""

    pinned: bool
    _memory: dict[str, Tensor] = field(default_factory=dict)
    _copied: Any = None

    def take(self, name: str, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """Uninitialised uint8 memory, once the last copy from it is done."""
        if self._copied is not None:
            self._copied.synchronize()
        memory = self._memory.get(name)
        if memory is None or memory.shape[1:] != shape[1:] or len(memory) < shape[0]:
            pinned = self.pinned and device is None
            memory = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
            self._memory[name] = memory
        return memory[: shape[0]]

    def copied(self) -> None:
        """Says that the copies from this memory have been queued."""
        if self.pinned:
            self._copied = torch.cuda.Event()
            self._copied.record()


@dataclass
class Host:
    """A batch in host memory, what its views still need, and what it cost.

    Attributes:
        made: seconds that its bundles took, by `read`, `decode` and `crop`.
        starved: seconds that were waited for them.
        cut: seconds of this process's threads, by `decode` and `crop`.
    """

    batch: Batch
    plans: dict[str, dict[str, Tensor]]
    slot: Slot
    substituted: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # by lane
    made: dict[str, float] = field(default_factory=dict)
    starved: float = 0.0
    cut: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "crop": 0.0})


def slots_of(device: torch.device) -> Iterator[Slot]:
    slots = [Slot(device.type == "cuda") for _ in range(SLOTS)]
    while True:
        yield from slots


def move(host: Host, device: torch.device) -> Host:
    """A batch on the device, in one copy of each tensor; on a GPU the copies run by themselves."""
    pinned = device.type == "cuda"

    def moved(tensor: Tensor) -> Tensor:
        on_host = pinned and tensor.device.type == "cpu"
        ready = tensor.pin_memory() if on_host and not tensor.is_pinned() else tensor
        return ready.to(device, non_blocking=pinned)

    batch = {key: moved(value) for key, value in host.batch.items()}
    plans = {key: {k: moved(v) for k, v in plan.items()} for key, plan in host.plans.items()}
    host.slot.copied()
    return Host(batch, plans, host.slot)


def render(host: Host, views: Mapping[str, ImageView]) -> Batch:
    """Colours, blurs and normalises the views of a batch, where it is."""
    batch = dict(host.batch)
    for key, plan in host.plans.items():
        view = views[key.rpartition(".")[2]]
        batch[key] = view.render(batch[key].permute(0, 3, 1, 2), plan)
    return batch
