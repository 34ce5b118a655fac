"""When a loss that still is a number tells that a run has gone wrong."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

LONG = 25  # logged values in a row: what lasts so long is no accident


class Divergence:
    """Watches the logged losses of one run.

    A loss has diverged when it has lost all that it had gained and as much on top of it, for long:
    the median of the last 25 logged losses is above `line`, which is `ceiling + (ceiling - best)`.
    `ceiling` is the highest of the first 25, `best` the lowest median since.

    A multiple of the best would not do: losses may be negative, BYOL's dips before its target
    moves, and MoCo's starts near zero and rises while the queue fills. All of that stays under the
    line, and single peaks do not move a median. Losses of optimizers in turns are not judged: those
    of an adversarial game may go anywhere.
    """

    def __init__(self) -> None:
        self.recent: list[tuple[int, float]] = []
        self.ceiling = self.best = math.inf
        self.diverged = False

    @property
    def line(self) -> float:
        """NaN, which nothing is above, until 25 losses are known."""
        return 2 * self.ceiling - self.best

    @property
    def high(self) -> bool:
        """Whether the latest loss is above the line."""
        return bool(self.recent) and self.recent[-1][1] > self.line

    def see(self, step: int, loss: float) -> int | None:
        """Takes the logged loss of a step; returns the step that a divergence began with, once."""
        self.recent = [*self.recent, (step, loss)][-LONG:]
        if len(self.recent) < LONG:
            return None
        if self.ceiling == math.inf:
            self.ceiling = max(loss for _, loss in self.recent)
        median = statistics.median(loss for _, loss in self.recent)
        self.best = min(self.best, median)
        if self.diverged or not median > self.line:
            self.diverged = self.diverged and median > self.ceiling
            return None
        self.diverged = True
        stretch = itertools.takewhile(lambda seen: seen[1] > self.line, reversed(self.recent))
        return min(step for step, _ in stretch)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
