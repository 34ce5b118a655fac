"""Observers that write: metrics.jsonl, TensorBoard, and the driver's display."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycl.train.observers import Event, Observer


class Metrics(Observer):
    """One JSON object per logged step in RUN/metrics.jsonl, and to whoever listens.

    A resumed run drops the lines after its checkpoint, so that no step stands there twice.
    """

    def __init__(
        self, run: Path, steps: int, listen: Callable[[dict[str, Any]], None] = lambda record: None
    ) -> None:
        self.path, self.steps, self.listen = run / "metrics.jsonl", steps, listen
        self._before = 0.0
        self._begin = time.perf_counter()

    def after_step(self, event: Event) -> None:
        if event.logged:
            self._write(event, event.step.index + 1)

    def after_epoch(self, event: Event) -> None:
        if event.metrics:
            self._write(event, event.step.index)

    def _write(self, event: Event, step: int) -> None:
        seconds = self._before + time.perf_counter() - self._begin
        record = {"step": step, "epoch": step / self.steps, "time": seconds, **event.metrics}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.listen(record)

    def state_dict(self) -> dict[str, Any]:
        return {
            "time": self._before + time.perf_counter() - self._begin,
            "bytes": self.path.stat().st_size if self.path.exists() else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._begin = state.get("time", 0.0), time.perf_counter()
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(min(state.get("bytes", 0), self.path.stat().st_size))


class TensorBoard(Observer):
    """Scalars, and pictures of the views of the first batch (also in RUN/views.png)."""

    def __init__(self, run: Path, recipe: str, views: list[str]) -> None:
        self.run, self.recipe, self.views = run, recipe, views
        self._step = 0
        self._resumed: int | None = None
        self._writer: Any = None

    @property
    def writer(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Steps after the checkpoint that a run resumes from are hidden, not shown twice.
            purge = self._resumed + 1 if self._resumed is not None else None
            self._writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=purge)
        return self._writer

    def after_step(self, event: Event) -> None:
        if event.step.index == 0:
            self.writer.add_text("recipe", f"```yaml\n{self.recipe}```")
            self._show(event)
        if event.logged:
            self._scalars(event, event.step.index + 1)

    def after_epoch(self, event: Event) -> None:
        self._scalars(event, event.step.index)
        self.writer.flush()

    def _scalars(self, event: Event, step: int) -> None:
        for name, value in event.metrics.items():
            self.writer.add_scalar(name, value, step)
        self._step = step

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = self._step = state.get("step", 0)

    def _show(self, event: Event) -> None:
        from raycl.views.sheet import contact_sheet

        pictures = [event.batch[name][:12] for name in self.views if name in event.batch]
        if not pictures or pictures[0].dim() != 4:
            return
        rows = [[_picture(view[i]) for view in pictures] for i in range(len(pictures[0]))]
        sheet = contact_sheet([list(column) for column in zip(*rows, strict=True)], self.views)
        sheet.save(self.run / "views.png")
        self.writer.add_image("views", np.asarray(sheet.convert("RGB")), 0, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _picture(view: Tensor) -> np.ndarray:
    """(3, S, S) float to (S, S, 3) uint8; a normalised view is stretched to what can be shown."""
    image = view.detach().float().cpu()
    if image.min() < 0 or image.max() > 1:
        image = (image - image.min()) / (image.max() - image.min())
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
