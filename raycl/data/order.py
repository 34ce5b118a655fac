"""Order: the pure function of (seed, epoch, lanes, batch) that says which sample goes where.

A plan belongs to lanes, never to ranks, so an epoch has the same global batches on any number of
ranks. Entries may be single samples, a subset (few labels, folds), or tuples of samples (pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from raycl.errors import RayclError
from raycl.views.random import uniforms

PADDING = -1
_VIEW = -1  # keys of the order never meet those of the views, which count from 0


@dataclass(frozen=True, eq=False)
class Order:
    """Which entry goes to which lane at which step.

    Attributes:
        entries: (M, k) sample ids; row m is what travels together (k = 1: single samples).
        lanes, batch: a step hands `batch` entries to each lane.
        kind: "random" draws a new permutation every epoch, "sequential" keeps the entries' order.
        weights: (M,) draw M entries with replacement in proportion to these, instead.
        drop_last: leave out the entries that fill no whole step (training), or fill the last step
            up with PADDING rows (evaluation, which walks every entry once).
    """

    entries: np.ndarray
    lanes: int
    batch: int
    seed: int = 0
    kind: Literal["random", "sequential"] = "random"
    weights: np.ndarray | None = None
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.entries.ndim != 2 or not len(self.entries):
            raise RayclError(f"order: entries must be (M, k) with M > 0, got {self.entries.shape}")
        if self.weights is not None and (
            self.weights.shape != (len(self.entries),)
            or not np.isfinite(self.weights).all()
            or self.weights.min() < 0
            or self.weights.sum() <= 0
        ):
            raise RayclError(
                f"data.weights: {len(self.entries)} finite, non-negative numbers with a positive "
                f"sum are needed, the file holds shape {self.weights.shape}"
            )
        if self.steps == 0:
            raise RayclError(
                f"data: {len(self.entries)} samples do not fill one global batch of "
                f"{self.lanes} lanes x {self.batch}; lower trainer.batch or trainer.lanes"
            )

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        rows = self.lanes * self.batch
        return len(self.entries) // rows if self.drop_last else -(-len(self.entries) // rows)

    def plan(self, epoch: int) -> np.ndarray:
        """Sample ids of an epoch, (steps, lanes, batch, k); rows of PADDING are no samples."""
        rows = self.steps * self.lanes * self.batch
        chosen = self.entries[self._indices(epoch)[:rows]]
        padding = np.full((rows - len(chosen), chosen.shape[1]), PADDING, np.int64)
        plan = np.concatenate([chosen, padding])
        return plan.reshape(self.steps, self.lanes, self.batch, -1)

    def _indices(self, epoch: int) -> np.ndarray:
        index = np.arange(len(self.entries), dtype=np.int64)
        if self.weights is None and self.kind == "sequential":
            return index
        draws = uniforms(self.seed, epoch, index, _VIEW, 1)[:, 0]
        if self.weights is None:
            return np.argsort(draws, kind="stable")
        cumulative = np.cumsum(self.weights, dtype=np.float64)
        return np.searchsorted(cumulative, draws * cumulative[-1], side="right")


def singles(count: int | np.ndarray) -> np.ndarray:
    """Entries of one sample each: all of 0..count-1, or the ids given."""
    ids = np.arange(count) if isinstance(count, int) else np.asarray(count)
    return ids.astype(np.int64).reshape(-1, 1)


@lru_cache(maxsize=4)
def epoch_plan(order: Order, epoch: int) -> np.ndarray:
    """`order.plan(epoch)`, kept for the streams and ranks of a process, which ask repeatedly."""
    return order.plan(epoch)


def step_ids(order: Order, step: int) -> np.ndarray:
    """Ids of a step counted from the start of the run, (lanes, batch, k)."""
    epoch, within = divmod(step, order.steps)
    return epoch_plan(order, epoch)[within]
