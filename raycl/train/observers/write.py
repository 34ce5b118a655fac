"""Observers that write into the run: metrics.jsonl and metrics.parquet, and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from raycl.train.observers import Event, Writer


class Metrics(Writer):
    """One JSON object per logged step or note in RUN/metrics.jsonl, and to whoever listens.

    A resumed run drops the lines after its checkpoint, and one that begins again all of them, so
    that no step stands there twice. At the end, whichever it is, the lines become the rows of
    RUN/metrics.parquet: a column of every key, null where a line has no such key.
    """

    def __init__(
        self, run: Path, steps: int, listen: Callable[[dict[str, Any]], None] = lambda record: None
    ) -> None:
        self.path, self.steps, self.listen = run / "metrics.jsonl", steps, listen
        self._before = 0.0
        self._begin = time.perf_counter()
        self._mode = "w"

    def write(self, event: Event, step: int) -> None:
        seconds = self._before + time.perf_counter() - self._begin
        place: dict[str, Any] = {"step": step, "epoch": step / self.steps, "time": seconds}
        records = [place | event.metrics, *(place | {"note": note} for note in event.notes)]
        with self.path.open(self._mode) as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        self._mode = "a"
        for record in records:
            self.listen(record)

    def state_dict(self) -> dict[str, Any]:
        return {
            "time": self._before + time.perf_counter() - self._begin,
            "bytes": self.path.stat().st_size if self._mode == "a" else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._begin = state.get("time", 0.0), time.perf_counter()
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(min(state.get("bytes", 0), self.path.stat().st_size))
            self._mode = "a"

    def close(self) -> None:
        if self._mode == "w":
            return
        whole = self.path.read_text().rpartition("\n")[0]  # a full disk cuts the last line
        records = [json.loads(line) for line in whole.splitlines()]
        names = dict.fromkeys(name for record in records for name in record)
        table = pa.table({name: [record.get(name) for record in records] for name in names})
        partial = self.path.with_name(".metrics.parquet.partial")
        parquet.write_table(table, partial)
        partial.replace(self.path.with_suffix(".parquet"))


class TensorBoard(Writer):
    """Scalars, and pictures of the views of the first batch (also in RUN/views.png)."""

    def __init__(self, run: Path, recipe: str, views: list[str]) -> None:
        self.run, self.recipe, self.views = run, recipe, views
        self._step = 0
        self._writer: Any = None

    @property
    def writer(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier start showed of steps that are done again is hidden, not shown twice.
            self._writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=self._step + 1)
        return self._writer

    def after_step(self, event: Event) -> None:
        if event.step.index == 0:
            self.writer.add_text("recipe", f"```yaml\n{self.recipe}```")
            self._show(event)
        super().after_step(event)

    def after_epoch(self, event: Event) -> None:
        super().after_epoch(event)
        self.writer.flush()

    def write(self, event: Event, step: int) -> None:
        for name, value in event.metrics.items():
            self.writer.add_scalar(name, value, step)
        for note in event.notes:
            self.writer.add_text("notes", note, step)
        self._step = step

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state.get("step", 0)

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
