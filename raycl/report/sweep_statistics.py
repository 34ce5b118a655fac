"""What a sweep's results say of its fields: importances, trends, rank correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycl.report.figures import number
from raycl.space import Distribution
from raycl.sweep import Row

MOST = 150  # trials that curves are made of; the time grows with the cube of them
# Of Metropolis's algorithm: rounds before the first draw, rounds, and curves of each of them.
WARM, DRAWS, EACH = 100, 400, 3
APART = 10  # rounds between those that trials are left out of
# Variance of a field's effect, of the scores', and the length over which it bends, of its range.
LIKELY = np.array([(1e-2, 0.2), (10.0, 1.6)])  # from, to
FAR = 1e3  # between values that have nothing in common
NOISE = (1e-3, 1.0)  # variance of what no field explains
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


@dataclass(frozen=True)
class Effects:
    """What fields do to the score.

    Attributes:
        r2: R² on trials that are left out, one at a time.
        importance: how much lower it is without a field, (D,).
        deviation: the standard error of this over trials, (D,).
        trends: of the fields with a range of numbers of which three occur at least, by name.
    """

    r2: float
    importance: np.ndarray
    deviation: np.ndarray
    trends: dict[str, Trend]


def effects(fields: Sequence[Field], x: np.ndarray, scores: np.ndarray, mode: str) -> Effects:
    """What each field does by itself: scores as a sum of Gaussian processes, one of each field.

    As Duvenaud, Nickisch and Rasmussen (2011) have it, without their products: what other fields do
    is no noise in a field's curve, but neither is it in it what two do together. Kernels are
    Matern's of 5/2 over a number or its logarithm, and equality of choices; how much a field does,
    over which length, and the noise are drawn by Metropolis's algorithm from all that are likely.

    Args:
        x: (N, D) places of the fields' values, NaN where one does not count; N >= 6;
            of more than 150 some are left out.
        scores: (N,), not all the same.
        mode: max or min, of the scores.
    """
    from scipy.linalg import solve_triangular

    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(x))[:MOST]
    x, scores = x[chosen], scores[chosen]
    count, dims = x.shape
    y = (scores - scores.mean()) / scores.std()

    def gaps(d: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        far = np.abs(a[:, None] - b)
        far = far if fields[d].numeric else FAR * (far > 0)
        one = np.isnan(a)[:, None] != np.isnan(b)
        return np.nan_to_num(np.where(one, FAR, far))  # two that do not count are the same

    def part(d: int, gaps: np.ndarray) -> np.ndarray:
        strength, length = LIKELY[0] * (LIKELY[1] / LIKELY[0]) ** drawn[d]
        r = np.sqrt(5) / length * gaps
        return strength * (1 + r + r**2 / 3) * np.exp(-r)

    def likelihood() -> tuple[float, np.ndarray]:
        noise = NOISE[0] * (NOISE[1] / NOISE[0]) ** drawn[dims, 0]
        root = np.linalg.cholesky(1 + sum(parts) + noise * np.eye(count))
        white = solve_triangular(root, y, lower=True)
        return -np.log(np.diag(root)).sum() - (white**2).sum() / 2, root

    drawn = np.full((dims + 1, 2), 0.5)  # of their ranges, which are closed to circles
    own = [gaps(d, x[:, d], x[:, d]) for d in range(dims)]
    parts = [part(d, own[d]) for d in range(dims)]
    grid, (likely, root) = np.linspace(0, 1, 101), likelihood()
    along = np.abs(grid[:, None] - grid)
    missed = []  # (1 + D, N) each: errors of trials that are left out, also without a field
    curves: dict[int, list[np.ndarray]] = {
        d: []
        for d, field in enumerate(fields)
        if field.numeric and len(set(x[~np.isnan(x[:, d]), d])) > 2
    }
    for sweep in range(-WARM, DRAWS):
        for d in range(dims + 1):
            kept, known = drawn[d].copy(), parts[d] if d < dims else None
            drawn[d] = (kept + rng.normal(size=2) * rng.choice((0.05, 0.3))) % 1
            if d < dims:
                parts[d] = part(d, own[d])
            other, another = likelihood()
            if np.log(rng.random()) < other - likely:
                likely, root = other, another
            else:
                drawn[d] = kept
                if known is not None:
                    parts[d] = known
        if sweep >= 0 and sweep % APART == 0:
            whole = root @ root.T
            inverses = np.linalg.inv(np.stack([whole, *(whole - part for part in parts)]))
            # Rasmussen & Williams, section 5.4.2.
            missed.append(inverses @ y / np.diagonal(inverses, axis1=1, axis2=2))
        for d in curves if sweep >= 0 else ():
            both = np.column_stack([y, part(d, gaps(d, x[:, d], grid))])
            white, known = np.split(solve_triangular(root, both, lower=True), [1], axis=1)
            spread = part(d, along) - known.T @ known + 1e-6 * np.eye(len(grid))
            noise = rng.normal(size=(EACH, len(grid))) @ np.linalg.cholesky(spread).T
            curve = white.T @ known + noise
            at = np.rint(100 * x[~np.isnan(x[:, d]), d]).astype(int)
            curves[d].append(curve - curve[:, at].mean(1, keepdims=True))
    squares = np.mean(missed, axis=0) ** 2
    worse = squares[1:] - squares[0]
    return Effects(
        float(1 - squares[0].mean()),
        worse.mean(1),
        worse.std(1, ddof=1) / np.sqrt(count),
        {
            fields[d].name: _trend(
                fields[d], scores.mean() + scores.std() * np.concatenate(each), mode
            )
            for d, each in curves.items()
        },
    )


def _trend(field: Field, curves: np.ndarray, mode: str) -> Trend:
    """Of likely curves (K, 101)."""
    grid, middle, sign = np.linspace(0, 1, 101), curves.mean(0), 1 if mode == "max" else -1
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
