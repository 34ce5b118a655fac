"""What a sweep's results say of its fields: importances, trends, rank correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycl.report.figures import number
from raycl.space import Distribution
from raycl.sweep import Row

SPLITS, TREES, SHUFFLES = 20, 20, 5  # of the forests
DRAWS = 1000  # likely curves
LENGTHS = (0.2, 0.4, 0.8, 1.6)  # over which a curve bends, of a field's range
NOISES = np.geomspace(1e-3, 30, 8)  # variance of scores, of the curve's
CERTAIN = 0.8  # share of them that must agree on where the best value lies
RESAMPLES = 1000


@dataclass(frozen=True)
class Field:
    """A searched field and where its values lie on an axis.

    Attributes:
        choice: its values, where it has no range.
        numeric: a range, or a choice of three numbers and more.
        low, high: of a numeric field, with values that went beyond its range (pbt's do).
        log: whether a numeric field's axis is logarithmic.
    """

    name: str
    choice: list[Any] | None
    numeric: bool
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @classmethod
    def of(cls, name: str, distribution: Distribution, values: Sequence[Any]) -> Field:
        """Of a field's distribution and the values that trials had."""
        choice = distribution.choice
        numbers = [v for v in choice or () if type(v) in (int, float)]  # and no booleans
        if choice and (len(numbers) < len(choice) or len(set(numbers)) < 3):
            return cls(name, choice, False)
        ends = [*(distribution.bounds or numbers), *values]
        low, high = min(ends), max(ends)
        wide = choice is not None and low > 0 and high >= 8 * low
        return cls(name, choice, True, low, high, wide or distribution.loguniform is not None)

    def share(self, value: float) -> float:
        """Of the way from the lowest to the highest number."""
        if self.log:
            return float(np.log(value / self.low) / np.log(self.high / self.low))
        return (value - self.low) / (self.high - self.low)

    def value(self, share: float) -> float:
        """The number that lies there."""
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)

    def place(self, value: Any) -> float:
        """In [0, 1]; choices lie in their order, equally far from each other."""
        if self.choice:
            return self.choice.index(value) / (len(self.choice) - 1)
        return self.share(value)

    def at(self, row: Row) -> float:
        """The place of a trial's value, NaN where the field does not count."""
        return self.place(row.values[self.name]) if self.name in row.values else np.nan

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places with what to write there: all choices, or both ends and the middle."""
        values = self.choice or [self.low, float(f"{self.value(0.5):.3g}"), self.high]
        return [(self.place(value), shortened(text(value), 12)) for value in values]


@dataclass(frozen=True)
class Trend:
    """A field's effect on the score, all other fields left as they fell.

    Attributes:
        value, middle, low, high: the curve and the band that holds 95 % of all likely ones, (101,).
        best: value at the curve's optimum; `span` holds 80 % of the optima of the likely ones.
        lower, inside, upper: share of the likely ones whose optimum is there in the range.
        wide: whether `span` is the better part of the range, and so tells nothing.
    """

    value: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: float
    span: tuple[float, float]
    lower: float
    inside: float
    upper: float
    wide: bool

    @property
    def verdict(self) -> str:
        at = f"{number(self.best)} ({number(self.span[0])} to {number(self.span[1])})"
        for share, where in (
            (self.inside * (not self.wide), "inside the range"),
            (self.lower, "at the lower end of the range: a wider one may hold better"),
            (self.upper, "at the upper end of the range: a wider one may hold better"),
        ):
            if share >= CERTAIN:
                return f"best at {at}, {where}"
        return "best value undecided"


def trend(field: Field, values: Sequence[float], scores: Sequence[float], mode: str) -> Trend:
    """Gaussian processes over the number or its logarithm (Rasmussen & Williams 2006, chapter 2).

    Their kernel is a constant and Matern's of 5/2; its length and the noise are drawn as well, as
    likely as the scores make them.

    Args:
        values, scores: (N,), N >= 6; the scores differ.
        mode: max or min, of the scores.
    """

    def kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
        r = np.sqrt(5) * np.abs(a[:, None] - b) / length
        return 1 + (1 + r + r**2 / 3) * np.exp(-r)

    grid, x = np.linspace(0, 1, 101), np.array([field.share(value) for value in values])
    y = (np.array(scores) - np.mean(scores)) / np.std(scores)
    fits, likelihoods = [], []
    for length in LENGTHS:
        variances, axes = np.linalg.eigh(kernel(x, x, length))
        for noise in NOISES:
            whiten = (axes / np.sqrt(variances + noise)).T
            scale = np.mean((whiten @ y) ** 2)
            fits.append((length, whiten, scale))
            likelihoods.append(-len(y) / 2 * np.log(scale) - np.log(variances + noise).sum() / 2)
    likely = np.exp(np.array(likelihoods) - max(likelihoods))
    rng = np.random.default_rng(0)
    drawn = []
    for (length, whiten, scale), count in zip(
        fits, rng.multinomial(DRAWS, likely / likely.sum()), strict=True
    ):
        known = whiten @ kernel(x, grid, length)
        spread = kernel(grid, grid, length) - known.T @ known + 1e-6 * np.eye(len(grid))
        noise = rng.normal(size=(count, len(grid))) @ np.linalg.cholesky(scale * spread).T
        drawn.append(known.T @ whiten @ y + noise)
    curves = np.mean(scores) + np.std(scores) * np.concatenate(drawn)
    middle, sign = curves.mean(0), 1 if mode == "max" else -1
    optima = grid[(sign * curves).argmax(1)]
    first, last = np.percentile(optima, (10, 90))
    low, high = np.percentile(curves, (2.5, 97.5), axis=0)
    return Trend(
        np.array([field.value(share) for share in grid]),
        *(middle, low, high),
        best=field.value(grid[(sign * middle).argmax()]),
        span=(field.value(first), field.value(last)),
        lower=float((optima == 0).mean()),
        inside=float(((optima > 0) & (optima < 1)).mean()),
        upper=float((optima == 1).mean()),
        wide=bool(last - first > 0.5),
    )


def importance(x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """How much a random forest's predictions depend on each column (Breiman 2001).

    Forests learn from bootstraps of the rows and are tested on the rows left out, whose columns are
    shuffled one at a time.

    Args:
        x: (N, D), N >= 8.
        y: (N,), not all the same.

    Returns:
        R² on rows left out; mean and standard deviation over bootstraps of its drop, (D,).
    """
    from sklearn.ensemble import RandomForestRegressor

    rng, (count, dims) = np.random.default_rng(0), x.shape
    errors, drops = [], []
    for split in range(SPLITS):
        chosen = rng.integers(count, size=count)
        left = np.setdiff1d(np.arange(count), chosen)
        if not len(left):
            continue
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=split, n_jobs=1)
        forest.fit(x[chosen], y[chosen])
        shuffled = np.tile(x[left], (dims, SHUFFLES, 1, 1))
        for d in range(dims):
            shuffled[d, ..., d] = rng.permuted(shuffled[d, ..., d], axis=1)
        # All at once: a call of the forest costs more than its rows.
        predicted = forest.predict(np.concatenate([x[left], shuffled.reshape(-1, dims)]))
        squares = (predicted.reshape(1 + dims * SHUFFLES, -1) - y[left]) ** 2
        errors.append(squares[0].mean())
        drops.append(squares[1:].reshape(dims, -1).mean(1) - errors[-1])
    share = np.array(drops) / y.var()
    return float(1 - np.mean(errors) / y.var()), share.mean(0), share.std(0, ddof=1)


def rank_correlation(pairs: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation of the columns of (N, 2), and its bootstrapped 95 % interval."""
    from scipy.stats import rankdata

    def correlation(samples: np.ndarray) -> np.ndarray:  # (B, N, 2) -> (B,)
        ranks = rankdata(samples, axis=1)
        ranks -= ranks.mean(1, keepdims=True)
        with np.errstate(invalid="ignore"):  # a resample of a single trial has no order
            return ranks.prod(2).sum(1) / np.sqrt((ranks**2).sum(1).prod(1))

    chosen = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    low, high = np.nanpercentile(correlation(pairs[chosen]), (2.5, 97.5))
    return float(correlation(pairs[None])[0]), float(low), float(high)


def text(value: Any) -> str:
    """A field's value in few letters."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return number(value) if isinstance(value, int | float) else str(value)


def shortened(words: str, letters: int) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "…"
