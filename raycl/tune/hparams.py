"""TensorBoard's HParams tab: what was searched, and each trial's values beside its curves.

    tensorboard --logdir SWEEP

A trial's values lie in its run's own TensorBoard directory, in a file of their own that is older
than its curves: TensorBoard reads the newest file of a directory only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import FileWriter

from raycl.tune.space import Space


def describe(place: Path, space: Space) -> None:
    """Tells of the sweep as a whole which fields there are, and which metric counts."""
    example = {name: _plain(d.extremes[0]) for name, d in space.fields.items()}
    choices = {name: [*map(_plain, d.choice)] for name, d in space.fields.items() if d.choice}
    _write(place / "tensorboard", hparams(example, {space.tune.metric: 0}, choices)[0])


def begin(run: Path, space: Space, values: Mapping[str, Any]) -> None:
    """Writes the values of a trial, before anything else is written to its TensorBoard."""
    plain = {name: _plain(value) for name, value in values.items()}
    _write(run / "tensorboard", hparams(plain, {space.tune.metric: 0})[1])


def end(run: Path) -> None:
    _write(run / "tensorboard", hparams({}, {})[2])


def _plain(value: Any) -> bool | float | str:
    if isinstance(value, bool | float | str):
        return value
    return float(value) if isinstance(value, int) else str(value)


def _write(folder: Path, summary: Any) -> None:
    writer = FileWriter(str(folder), filename_suffix=".hparams")
    writer.add_summary(summary)
    writer.close()
