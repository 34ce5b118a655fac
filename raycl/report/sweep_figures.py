"""Figures of a sweep's page: SVG elements in the page's colours, as those of a run's page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from raycl.report.figures import ACCENT, INK, MUTED, PAPER, RULE, STYLE, number, quiet, svg
from raycl.report.sweep_statistics import Field, Trend
from raycl.sweep import Row

WIDE = 9.2  # inches of a figure that is as wide as the page
LETTER = 0.065  # inches of a letter in axis labels, roughly: the browser chooses the font
DOTS = 1000  # of a figure, so that the page stays small


def cost_curve(seconds: Sequence[float], scores: Sequence[float], mode: str, percent: bool) -> str:
    """The best score so far over what was spent, and the results as dots, of very many a part.

    Args:
        seconds: spent until each result, ascending.
        scores: as long.
    """
    spent, unit = np.asarray(seconds, float), "seconds"
    for name, size in (("minutes", 60), ("hours", 3600)):
        if spent[-1] >= 2 * size:
            spent, unit = np.asarray(seconds, float) / size, name
    best = (np.maximum if mode == "max" else np.minimum).accumulate(scores)
    with matplotlib.style.context(STYLE):
        figure, axes = _wide(2.6, percent)
        few = slice(None, None, 1 + len(spent) // DOTS)
        _dots(axes, spent[few], scores[few])
        axes.step(spent, best, where="post", color=ACCENT, linewidth=1.8)
        axes.set_xlabel(f"{unit} of training", color=MUTED, fontsize=8, loc="right", labelpad=1)
        return _themed(figure, "cost")


def parallel(fields: Sequence[Field], rows: Sequence[Row], metric: str, mode: str) -> str:
    """A line a trial through its values and its score, the best end of each score's axis on top.

    Args:
        rows: measured, the best first.
    """
    scores = [row.score(metric) for row in rows]
    worst, best = (min(scores), max(scores)) if mode == "max" else (max(scores), min(scores))
    middle = (worst + best) / 2
    ends = [(0.0, worst), (0.5, middle), (1.0, best)] if best != worst else [(0.5, best)]
    names = [label(field.name, [f.name for f in fields]) for field in fields]
    ticks = [field.ticks for field in fields]
    ticks += [[(at, number(score, metric == "knn")) for at, score in ends]]
    last = len(fields)
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(max(WIDE, 0.85 * (last + 1)), 3.4))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for at, (name, marks) in enumerate(zip([*names, metric], ticks, strict=True)):
            axes.plot([at, at], [0, 1], color=RULE, linewidth=1)
            # Long names of neighbours would meet.
            up = 1.08 + 0.07 * (at % 2) * (last > 5)
            colour = INK if at == last else MUTED
            axes.text(at, up, name, color=colour, fontsize=8, ha="center", parse_math=False)
            for place, words in marks:
                mark = axes.text(at + 0.03, place, words, color=MUTED, fontsize=7, va="center")
                mark.set(parse_math=False, zorder=9)
                mark.set_bbox({"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.6})
        for rank, row in reversed(list(enumerate(rows))):
            share = (scores[rank] - worst) / (best - worst) if best != worst else 0.5
            places = [*(field.at(row) for field in fields), share]
            axes.plot(places, marker="o", **_look(rank, rows))
        axes.set(xlim=(-0.5, last + 0.5), ylim=(-0.05, 1.22 if last > 5 else 1.15))
        return _themed(figure, "parallel")


def label(name: str, names: Sequence[str]) -> str:
    """A field's name without its section, where no other field is called so."""
    short = name.partition(".")[2]
    return short if [n.partition(".")[2] for n in names].count(short) == 1 else name


def importances(names: Sequence[str], mean: np.ndarray, deviation: np.ndarray) -> str:
    """Bars with whiskers of one standard deviation, from top to bottom."""
    with matplotlib.style.context(STYLE):
        height, rows = 0.26 * len(names) + 0.4, np.arange(len(names))
        figure = Figure(figsize=(WIDE, height))
        left = (LETTER * max(map(len, names)) + 0.15) / WIDE
        axes = figure.add_axes((left, 0.36 / height, 0.88 - left, 1 - 0.4 / height))
        axes.barh(rows, mean, height=0.55, color=ACCENT, alpha=0.55)
        axes.errorbar(mean, rows, xerr=deviation, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        quiet(axes)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        for row, numbers in enumerate(zip(mean, deviation, strict=True)):
            both = " ± ".join(f"{round(part, 2) + 0.0:.2f}" for part in numbers)
            beside = axes.text(1.02, row, both, color=INK, fontsize=8, va="center")
            beside.set_transform(axes.get_yaxis_transform())
        axes.set_yticks(rows, labels=names, parse_math=False)
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
        axes.set_xlabel("drop in R²", color=MUTED, fontsize=8, loc="right", labelpad=1)
        return _themed(figure, "importance")


def response(
    name: str,
    field: Field,
    values: Sequence[float],
    scores: Sequence[float],
    fitted: Trend | None,
    percent: bool,
) -> str:
    """Scores over a field's values, with the trend and a mark where its optimum lies.

    Args:
        name: unique on the page.
        values, scores: (N,).
    """
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(4.6, 2.3))
        axes = figure.add_axes((0.125, 0.13, 0.855, 0.82))
        _dots(axes, values, scores)
        if fitted is not None:
            x, low, high = fitted.value, fitted.low, fitted.high
            axes.fill_between(x, low, high, color=ACCENT, alpha=0.16, linewidth=0)
            axes.plot(x, fitted.middle, color=ACCENT, linewidth=1.4)
            if fitted.verdict.startswith("best at"):
                axes.axvline(fitted.best, color=ACCENT, linewidth=1, linestyle=(0, (2, 2)))
                axes.axvspan(*fitted.span, color=ACCENT, alpha=0.07, linewidth=0)
        quiet(axes)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, percent)))
        if field.log:
            axes.set_xscale("log")
            decades = np.log10(field.high / field.low)
            subs = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 2.6 else (1,)
            axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            whole = isinstance(field.low, int) and isinstance(field.high, int)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 2.5, 5, 10]))
        if field.choice:
            axes.set_xticks(field.choice)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
        axes.margins(y=0.08)
        axes.set_xlim(field.value(-0.02), field.value(1.02))
        return _themed(figure, name)


def learning_curves(rows: Sequence[Row], metric: str) -> str:
    """The metric over epochs, a line a trial in the look of `parallel`; the best trial first."""
    mark = "o" if sum(len(row.measured) for row in rows) <= DOTS else ""
    with matplotlib.style.context(STYLE):
        figure, axes = _wide(2.8, metric == "knn")
        for rank, row in reversed(list(enumerate(rows))):
            epochs = sorted(row.measured)
            scores = [row.measured[epoch][metric] for epoch in epochs]
            point = mark if len(epochs) > 1 else "o"  # which is no line
            axes.plot(epochs, scores, marker=point, **_look(rank, rows))
        _epochs(axes)
        return _themed(figure, "learning")


def survival(reached: Mapping[int, int]) -> str:
    """Bars of how many trials reached each measured epoch."""
    epochs, counts = np.array([*reached]), np.array([*reached.values()])
    with matplotlib.style.context(STYLE):
        figure, axes = _wide(1.9, False)
        apart = np.diff(epochs).min() if len(epochs) > 1 else 1
        axes.bar(epochs, counts, width=0.7 * apart, color=ACCENT, alpha=0.55)
        for epoch, count in rungs(reached).items():
            axes.text(epoch, count, f"{count}", color=MUTED, fontsize=7.5, ha="center", va="bottom")
        _epochs(axes)
        axes.set_ylim(0, 1.18 * counts.max())
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return _themed(figure, "survival")


def rungs(reached: Mapping[int, int]) -> dict[int, int]:
    """The last epoch, and those that more trials reached than the one after."""
    after = [*list(reached.values())[1:], None]
    return {e: n for (e, n), later in zip(reached.items(), after, strict=True) if n != later}


def _look(rank: int, rows: Sequence[Row]) -> dict[str, Any]:
    """How the line of one of the rows is drawn; see `_themed` for its colour."""
    share = (1 - rank / max(1, len(rows) - 1)) ** 3
    crowd = min(1.0, (30 / len(rows)) ** 0.5)  # so that many lines do not become a surface
    stopped = rows[rank].how == "stopped"
    width, alpha, dot = (0.7, 0.45 * crowd, 2.2) if stopped else (1.2, 0.8 * crowd, 2.2)
    if rank == 0:
        width, alpha, dot = 2.6, 1.0, 4.5
    line = {"color": f"#0103{round(100 * share):02x}", "linewidth": width, "markersize": dot}
    return line | {"alpha": alpha, "zorder": 3 + share}


def _themed(figure: Figure, name: str) -> str:
    """With colours between muted (#010300) and accent (#010364)."""
    return re.sub(
        "#0103([0-9a-f]{2})",
        lambda m: f"color-mix(in srgb, var(--accent) {int(m[1], 16)}%, var(--muted))",
        svg(figure, name),
    )


def _wide(height: float, percent: bool) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDE, height))
    axes = figure.add_axes((0.06, 0.38 / height, 0.925, 1 - 0.5 / height))
    quiet(axes)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, percent)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    axes.margins(x=0.02, y=0.08)
    return figure, axes


def _epochs(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch", color=MUTED, fontsize=8, loc="right", labelpad=1)


def _dots(axes: Axes, x: Sequence[float] | np.ndarray, y: Sequence[float]) -> None:
    axes.plot(x, y, linestyle="", marker="o", markersize=3.4, color=MUTED, alpha=0.55, mew=0)
