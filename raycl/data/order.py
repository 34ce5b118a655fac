"""Order: the pure function of (seed, epoch, lanes, batch) that says which sample goes where.

It belongs to lanes, never to ranks, so an epoch has the same global batches on any number of ranks.
Entries may be single samples, a subset (few labels, folds), or tuples of samples (pairs). Nothing
here stores a permutation: the sample at any step of any epoch is computed when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import numpy as np

from raycl.errors import RayclError
from raycl.views.random import mix, mix_key, uniforms

PADDING = -1
_VIEW = -1  # keys of the order never meet those of the views, which count from 0
_ROUNDS = 6  # even, so that the sides end where they began
_CHUNK = 1 << 16  # indices permuted at a time, so that they stay in the processor's cache
_GROUP = 1024  # pages summed up in one entry of an index of pages
_BLOCK = 1024  # slots of a mixture in which every share is met exactly


class Draw(Protocol):
    """Which entries an epoch hands out, and in which order."""

    def __call__(self, order: Order, epoch: int, lane: int, at: np.ndarray) -> np.ndarray:
        """Entries (n,) at the positions `at` (n,) of a lane, which counts steps * batch of them."""
        ...


@dataclass(frozen=True, eq=False)
class Order:
    """Which entry goes to which lane at which step.

    Attributes:
        entries: (M, k) sample ids; row m is what travels together (k = 1: single samples). A
            number M stands for the samples 0 to M - 1.
        lanes, batch: a step hands `batch` entries to each lane.
        draw: `shuffled`, `sequential`, or a `Weighted`, `Pages` or `Mixture`.
        drop_last: leave out the entries that fill no whole step (training), or fill the last step
            up with PADDING rows (evaluation, which walks every entry once).
    """

    entries: int | np.ndarray
    lanes: int
    batch: int
    seed: int = 0
    draw: Draw = field(default_factory=lambda: shuffled)
    drop_last: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.entries, int) and self.entries.ndim != 2:
            raise RayclError(f"order: entries must be (M, k), got shape {self.entries.shape}")
        if self.steps == 0:
            raise RayclError(
                f"data: {len(self)} samples do not fill one global batch of "
                f"{self.lanes} lanes x {self.batch}; lower trainer.batch or trainer.lanes"
            )

    def __len__(self) -> int:
        return self.entries if isinstance(self.entries, int) else len(self.entries)

    @property
    def width(self) -> int:
        """Samples of an entry, k."""
        return 1 if isinstance(self.entries, int) else int(self.entries.shape[1])

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        rows = self.lanes * self.batch
        return len(self) // rows if self.drop_last else -(-len(self) // rows)

    def ids(self, step: int, lane: int) -> np.ndarray:
        """Sample ids of a lane at a step counted from the start of the run, (batch, k).

        Rows of PADDING are no samples.
        """
        epoch, within = divmod(step, self.steps)
        index = self.draw(self, epoch, lane, within * self.batch + np.arange(self.batch))
        if isinstance(self.entries, int):
            return index[:, None]
        return np.where((index == PADDING)[:, None], PADDING, self.entries[index])

    def plan(self, epoch: int) -> np.ndarray:
        """Sample ids of a whole epoch, (steps, lanes, batch, k)."""
        first = epoch * self.steps
        steps = range(first, first + self.steps)
        return np.array([[self.ids(step, lane) for lane in range(self.lanes)] for step in steps])

    def across(self, lane: int, at: np.ndarray) -> np.ndarray:
        """Positions of a lane as positions of the epoch, in which lanes take turns by batches."""
        return (at // self.batch * self.lanes + lane) * self.batch + at % self.batch


def sequential(order: Order, epoch: int, lane: int, at: np.ndarray) -> np.ndarray:
    """The entries as they stand."""
    index = order.across(lane, at)
    return np.where(index < len(order), index, PADDING)


def shuffled(order: Order, epoch: int, lane: int, at: np.ndarray) -> np.ndarray:
    """A new permutation of all entries every epoch."""
    index = sequential(order, epoch, lane, at)
    index[index != PADDING] = permute(index[index != PADDING], len(order), order.seed, epoch, _VIEW)
    return index


@dataclass(frozen=True, eq=False)
class Weighted:
    """Entries drawn with replacement, in proportion to their weights.

    Args:
        weights: epoch -> (M,) finite, non-negative numbers with a positive sum. It is asked when
            the epoch is read, so weights may follow what the run has learned by then.
    """

    weights: Callable[[int], np.ndarray]

    def __call__(self, order: Order, epoch: int, lane: int, at: np.ndarray) -> np.ndarray:
        total = _cumulative(self, len(order), epoch)
        draws = uniforms(order.seed, epoch, order.across(lane, at), _VIEW, 1)[:, 0]
        return np.searchsorted(total, draws * total[-1], side="right")


@dataclass(frozen=True, eq=False)
class Pages:
    """Every page is read once an epoch, by one lane, and samples mix over a window of pages.

    An epoch puts the pages in a random order and cuts it into windows. Laid end to end, the samples
    of all windows are dealt out in equal, unbroken parts, one per lane; within its part of each
    window a lane takes the samples at random. So a lane has at most `window` pages open, a page is
    read twice only where one lane ends and the next begins, and a batch mixes the pages of its
    windows: those of one lane, and of other lanes others.

    Attributes:
        counts: (P,) entries in each page.
        window: pages to mix.
        index: (M,) the entries in the order of the pages; None where they ascend with the pages.
    """

    counts: np.ndarray
    window: int
    index: np.ndarray | None = None

    def __call__(self, order: Order, epoch: int, lane: int, at: np.ndarray) -> np.ndarray:
        part = order.steps * order.batch  # of a lane
        position = lane * part + at
        starts = _window_starts(self, order.seed, epoch)
        windows = np.searchsorted(starts, position, side="right") - 1
        found = np.empty_like(position)
        for window in np.unique(windows):
            here = windows == window
            low, high = np.clip(starts[window : window + 2], lane * part, (lane + 1) * part)
            mixed = permute(
                position[here] - low, int(high - low), order.seed, epoch, _VIEW, lane, int(window)
            )
            found[here] = self._entries(
                order.seed, epoch, int(window), low - starts[window] + mixed
            )
        return found if self.index is None else self.index[found]

    def _entries(self, seed: int, epoch: int, window: int, at: np.ndarray) -> np.ndarray:
        """Entries at positions of a window, by the order of pages in it."""
        first = window * self.window
        slots = np.arange(first, min(first + self.window, len(self.counts)))
        pages = permute(slots, len(self.counts), seed, epoch, _VIEW)
        ends = np.cumsum(self.counts[pages], dtype=np.int64)
        which = np.searchsorted(ends, at, side="right")
        groups = _group_starts(self)
        begins = np.array(
            [
                groups[page // _GROUP]
                + self.counts[page // _GROUP * _GROUP : page].sum(dtype=np.int64)
                for page in pages.tolist()
            ]
        )
        return begins[which] + at - (ends - self.counts[pages])[which]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Several data sets in fixed shares of every batch, each in permutations of its own.

    The small ones are gone through more often than the large ones; an epoch is as long as all of
    them together.

    Attributes:
        sizes: entries of each data set; they lie one after another.
        shares: of each in a batch; any positive numbers.
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]

    def __call__(self, order: Order, epoch: int, lane: int, at: np.ndarray) -> np.ndarray:
        rows = order.steps * order.lanes * order.batch
        block, within = np.divmod(epoch * rows + order.across(lane, at), _BLOCK)
        pattern, before, quota = _shares(self)
        which = pattern[within]
        drawn = block * quota[which] + before[within]  # how many of its data set came earlier
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        found = np.empty_like(drawn)
        for number in np.unique(which):
            size = self.sizes[number]
            passes, place = np.divmod(drawn[which == number], size)
            mixed = np.empty_like(place)
            for one in np.unique(passes):
                mixed[passes == one] = permute(
                    place[passes == one], size, order.seed, int(one), _VIEW, int(number)
                )
            found[which == number] = starts[number] + mixed
        return found


def singles(ids: np.ndarray) -> np.ndarray:
    """Entries of one sample each."""
    return np.asarray(ids).astype(np.int64).reshape(-1, 1)


def permute(index: np.ndarray, count: int, *key: int) -> np.ndarray:
    """A keyed bijection of [0, count), in no memory but that of the indices asked for.

    A Feistel network over a grid just large enough, with another turn for whoever falls outside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
        index: (n,) integers in [0, count).
        key: any integers; another key is another permutation.

    Returns:
        (n,) int64.
    """
    rows = math.isqrt(count - 1) + 1
    columns = -(-count // rows)
    keys = mix(mix_key(key) + np.arange(_ROUNDS, dtype=np.uint64))
    found = np.empty(len(index), np.int64)
    for start in range(0, len(index), _CHUNK):
        part = _rounds(index[start : start + _CHUNK].astype(np.uint64), rows, columns, keys)
        while (outside := part >= count).any():
            part[outside] = _rounds(part[outside], rows, columns, keys)
        found[start : start + _CHUNK] = part
    return found


def _rounds(index: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    sides = (np.uint64(rows), np.uint64(columns))
    left, right = np.divmod(index, sides[1])
    for number, key in enumerate(keys):
        side = sides[number % 2]
        # The upper half of the hash, scaled to [0, side): sides are below 2**32.
        left = left + ((mix(right + key) >> np.uint64(32)) * side >> np.uint64(32))
        left -= side * (left >= side)
        left, right = right, left
    return left * sides[1] + right


@lru_cache(maxsize=4)
def _cumulative(draw: Weighted, count: int, epoch: int) -> np.ndarray:
    weights = draw.weights(epoch)
    if (
        weights.shape != (count,)
        or not np.isfinite(weights).all()
        or weights.min() < 0
        or weights.sum() <= 0
    ):
        raise RayclError(
            f"data.weights: {count} finite, non-negative numbers with a positive sum are needed, "
            f"got an array of shape {weights.shape}"
        )
    return np.cumsum(weights, dtype=np.float64)


@lru_cache(maxsize=4)
def _window_starts(pages: Pages, seed: int, epoch: int) -> np.ndarray:
    """Position of each window's first entry in the epoch, and the end, (windows + 1,)."""
    count = len(pages.counts)
    step = max(_CHUNK // pages.window, 1) * pages.window
    sizes = []
    for first in range(0, count, step):
        slots = np.arange(first, min(first + step, count))
        held = pages.counts[permute(slots, count, seed, epoch, _VIEW)]
        sizes.append(np.add.reduceat(held, range(0, len(held), pages.window), dtype=np.int64))
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes))])


@lru_cache(maxsize=4)
def _group_starts(pages: Pages) -> np.ndarray:
    """Entries before every _GROUP-th page."""
    sums = np.add.reduceat(pages.counts, range(0, len(pages.counts), _GROUP), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(sums)])


@lru_cache(maxsize=4)
def _shares(mixture: Mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Data set of each slot of a block, its earlier slots in the block, and each one's slots."""
    exact = np.array(mixture.shares) / sum(mixture.shares) * _BLOCK
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: _BLOCK - quota.sum()]] += 1
    which = np.repeat(np.arange(len(quota)), quota)
    before = np.concatenate([np.arange(n) for n in quota])
    spread = np.argsort((before + 0.5) / quota[which], kind="stable")  # evenly over the block
    return which[spread], before[spread], quota
