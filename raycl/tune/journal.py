"""SWEEP/events.jsonl: everything that happens in a sweep, a JSON object a line, appended at once.

Ray Tune's own state is for going on. This is for people and reports: it outlives whatever is killed
and is read while the sweep runs. Events, each with the seconds `at` since 1970:

    begin    a phase, search or repeats, begins or goes on
    trial    has these values, and in the repeats is the same as trial `of` with another seed
    result   what a trial measured after an epoch
    failure  a trial was lost and is tried again
    end      of a trial: finished, stopped (by the scheduler) or failed
    over     the phase
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback

from raycl.tune.space import Space, as_drawn

_log = logging.getLogger(__name__)


class Journal(Callback):
    """Writes the events of one phase; Ray Tune keeps it, so that a resumed phase goes on with it.

    Args:
        phase: search or repeats.
    """

    def __init__(self, path: Path, space: Space, phase: str) -> None:
        self.path, self.space, self.phase = path, space, phase
        self._values: dict[str, Any] = {}
        self._ended = 0

    def write(self, event: str, **content: Any) -> None:
        line = json.dumps({"event": event, "at": time.time(), "phase": self.phase} | content)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:  # the trials are worth more than their record
            _log.warning("%s cannot be written: %s", self.path, error)

    def setup(self, *args: Any, **info: Any) -> None:
        self.write("begin")

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        again = as_drawn(trial.config)
        values = self.space.values(again["drawn"])
        if self._values.get(trial.trial_id) != values:
            self._values[trial.trial_id] = values
            self.write("trial", trial=trial.trial_id, values=values, **again)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "record" in result:
            self.write("result", trial=trial.trial_id, run=result["run"], **result["record"])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        last = trial.last_result
        if "failed" in last:
            self._end(trial, "failed", error=last["failed"])
        else:
            self._end(trial, "finished" if last.get("ended") else "stopped")

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.write("failure", trial=trial.trial_id, error=_error(trial))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(trial, "failed", error=_error(trial))

    def _end(self, trial: Any, how: str, error: str = "") -> None:
        self.write("end", trial=trial.trial_id, how=how, error=error)
        self._ended += 1
        metric, last = self.space.tune.metric, trial.last_result
        score = (
            f", {metric} {last[metric]:.4g} after {last['epoch']} epochs" if metric in last else ""
        )
        values = self._values.get(trial.trial_id, {}).items()
        shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values)
        _log.info("%s, trial %d %s%s: %s", self.phase, self._ended, how, score, error or shown)


def _error(trial: Any) -> str:
    """The last line of what a trial raised, from the file that Ray Tune keeps beside it."""
    path = Path(trial.error_file or "")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"
