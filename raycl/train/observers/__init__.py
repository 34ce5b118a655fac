"""Observers watch a run and never change it.

They are called in order, so that those that measure come before those that write: what one adds to
`event.metrics` and `event.notes` the later ones see. Every rank has the same observers, because
measuring may need all ranks; writers are given to rank 0 alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from raycl.methods.base import Batch, Method, Step


@dataclass
class Event:
    """What an observer is shown.

    Attributes:
        metrics: scalars of this moment; an observer may add its own.
        batch, embedding: of the step, empty and None at the end of an epoch.
        logged: whether this step's metrics are written.
        last: whether this is the end of the run.
        notes: warnings in words, written and shown where the run was started; an observer may add
            its own where metrics are written, once for each onset.
    """

    step: Step
    metrics: dict[str, float]
    batch: Batch
    embedding: Tensor | None
    method: Method
    logged: bool = False
    last: bool = False
    notes: list[str] = field(default_factory=list)


class Observer:
    """Does nothing; an observer overrides what it is interested in."""

    def after_step(self, event: Event) -> None:
        pass

    def after_epoch(self, event: Event) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Writer(Observer):
    """Hands on what is logged, with the number of steps that are done."""

    def after_step(self, event: Event) -> None:
        if event.logged:
            self.write(event, event.step.index + 1)

    def after_epoch(self, event: Event) -> None:
        if event.metrics:
            self.write(event, event.step.index)

    def write(self, event: Event, step: int) -> None:
        raise TypeError(f"{type(self).__name__} does not define write()")
