"""The page of a sweep: what came out of it, from its recipe and its events alone."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from raycl import recipe as recipes
from raycl.errors import RayclError
from raycl.recipe import Recipe
from raycl.report import sweep_figures as figures
from raycl.report.figures import number
from raycl.report.frame import Missing, duration, html, items, write
from raycl.report.sweep_figures import label
from raycl.report.sweep_statistics import (
    CERTAIN,
    Effects,
    Field,
    effects,
    rank_correlation,
    shortened,
    text,
)
from raycl.space import Tune
from raycl.sweep import Event, Row, best_recipe, read, settings_of, trials, winner

ROWS = 20  # of the table of trials
REACHED = 0.9  # of the measured trials, at the epoch at which they are compared
IMPORTANCE, CURVE, RANKING = 8, 6, 5  # trials that each needs at least
UNLABELLED = {"rank_me": "RankMe", "alpha_req": "alpha-ReQ, nearness to 1"}
CHANGING = ("pbt", "pb2")  # give trials other values under way


def write_report(place: Path) -> Path:
    """Writes `report.html` into a sweep's directory and returns its path.

    Reads recipe.yaml and events.jsonl, also while the sweep goes on; a section that cannot be shown
    yet says so in a line. The file holds no reference to anything outside it, and the same inputs
    give the same file.

    Raises:
        RayclError: the directory holds no sweep, or cannot be written to.
    """
    place = Path(place)
    tune = settings_of(place)
    try:
        best = winner(place, tune)
    except RayclError:
        best = None
    # The events are read after the winner, so that it is among them while the sweep goes on.
    sweep = Sweep(place, recipes.load(place), tune, best, read(place))
    sections: list[tuple[str, Callable[[], str]]] = [
        ("Best score over cost", lambda: _cost(sweep)),
        ("Trials", lambda: _trials(sweep)),
        ("Importance of the fields", lambda: _importance(sweep)),
        ("Field by field", lambda: _responses(sweep)),
        ("Learning curves", lambda: _learning(sweep)),
        ("Rungs", lambda: _rungs(sweep)),
        ("Repeats with other seeds", lambda: _repeats(sweep)),
        ("Metrics without labels", lambda: _unlabelled(sweep)),
        ("Failures", lambda: _failures(sweep)),
        ("The winner's recipe", lambda: _recipe(sweep)),
    ]
    return write(place / "report.html", html(_title(sweep), _header(sweep), sections))


@dataclass(frozen=True)
class Sweep:
    place: Path
    recipe: Recipe
    tune: Tune
    best: tuple[Row, list[float]] | None
    events: list[Event]

    @cached_property
    def rows(self) -> list[Row]:
        """The trials of the search, the best first."""
        return trials(self.events, self.tune, "search")

    @cached_property
    def repeats(self) -> list[Row]:
        return trials(self.events, self.tune, "repeats")

    @cached_property
    def measured(self) -> list[Row]:
        """The winner, and all others that have measured anything, the best first."""
        if self.best is None:
            raise Missing(f"No trial has measured {self.tune.metric} yet.")
        first = self.best[0].trial
        return sorted((r for r in self.rows if r.measured), key=lambda row: row.trial != first)

    @cached_property
    def fields(self) -> list[Field]:
        """Those searched, the temperature first."""
        names = sorted(self.tune.search, key="method.temperature".__ne__)
        values = {n: [r.values[n] for r in self.rows if n in r.values] for n in names}
        return [Field.of(name, self.tune.search[name], values[name]) for name in names]

    @cached_property
    def effects(self) -> Effects:
        rows, scores, _ = _comparable(self)
        x = np.array([[field.at(row) for field in self.fields] for row in rows])
        return effects(self.fields, x, scores, self.tune.mode)

    def ended(self, phase: str) -> bool:
        return any(e["event"] == "over" and e["phase"] == phase for e in self.events)

    @property
    def over(self) -> bool:
        follows = self.tune.repeats.seeds > 0 and self.best is not None
        return self.ended("repeats" if follows else "search")

    def how(self, row: Row) -> str:
        """In words; a trial that the end of the search has left behind was out of time."""
        running = "cut off" if self.ended("search") else "running"
        return {"stopped": "stopped early", "running": running}.get(row.how, row.how)

    @property
    def percent(self) -> bool:
        return self.tune.metric == "knn"

    def shown(self, score: float) -> str:
        return number(score, self.percent)

    def spread(self, scores: Sequence[float]) -> str:
        """Mean and, with two digits, standard deviation."""
        mean = self.shown(statistics.mean(scores))
        if len(scores) < 2:
            return mean
        return f"{mean} ± {self.shown(float(f'{statistics.stdev(scores):.2g}'))}"


def _title(sweep: Sweep) -> str:
    count = len(sweep.rows)
    many = f"{count} trial{'s' * (count != 1)}"
    return f"{sweep.recipe.method['name']}: {sweep.tune.metric} over {many}"


def _header(sweep: Sweep) -> str:
    tune, rows = sweep.tune, sweep.rows
    known = "finished", "stopped early", "failed", "running", "cut off"
    counts = Counter(sweep.how(row) for row in rows)
    outcomes = [f"{counts[how]} {how}" for how in known if counts[how]]
    planned = f" of {tune.samples}" if not sweep.over and tune.searcher != "grid" else ""
    facts: dict[str, Any] = {
        "State": "over" if sweep.over else "running",
        "Trials": f"{len(rows)}{planned}: {', '.join(outcomes) or 'none began'}",
        "Metric": f"{tune.metric}, {'higher' if tune.mode == 'max' else 'lower'} is better",
        "Scheduler": tune.scheduler.name,
        "Searcher": tune.searcher,
        "Epochs": f"{sweep.recipe.trainer.stop.epochs} at most",
    }
    begins = [event["at"] for event in sweep.events if event["event"] == "begin"]
    if begins:
        last = sweep.events[-1]["at"]
        facts["Last event"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last))
        facts["From begin to last event"] = duration(last - begins[0])
    facts["Training time in all"] = duration(sum(r.seconds for r in [*rows, *sweep.repeats]))
    if sweep.best:
        best, repeats = sweep.best
        facts["Best score"] = f"{sweep.shown(best.score(tune.metric))}, of {best.trial}"
        facts["The same with other seeds"] = sweep.spread(repeats) if repeats else None
    return (
        f'<header>\n<p class="kicker">raycl sweep {escape(sweep.place.resolve().name)}</p>\n'
        f"<h1>{escape(_title(sweep))}</h1>\n{items(facts, '')}</header>\n"
    )


def _cost(sweep: Sweep) -> str:
    results = [e for e in sweep.events if e["event"] == "result" and e["phase"] == "search"]
    if not results:
        raise Missing("Nothing has been measured yet.")
    # With pbt a run goes on where another one was, and its clock too.
    clock = "trial" if sweep.tune.scheduler.name in CHANGING else "run"
    before: dict[str, float] = {}
    spent: list[float] = []
    for event in results:
        # A trial that was lost repeats what was counted already.
        cost = max(0.0, event["time"] - before.get(event[clock], 0.0))
        spent.append(cost + (spent[-1] if spent else 0.0))
        before[event[clock]] = event["time"]
    scores = [event[sweep.tune.metric] for event in results]
    best = max(scores) if sweep.tune.mode == "max" else min(scores)
    dots = f"{len(results):,} results{', a part of them' * (len(results) > figures.DOTS)} as dots"
    return _wide(figures.cost_curve(spent, scores, sweep.tune.mode, sweep.percent)) + _note(
        f"The best result so far over the training time of all trials together, {dots}. The best "
        f"of all, {sweep.shown(best)}, was there after {duration(spent[scores.index(best)])} of "
        f"{duration(spent[-1])}."
    )


def _trials(sweep: Sweep) -> str:
    if not sweep.rows:
        raise Missing("No trial has begun.")
    metric, names = sweep.tune.metric, [field.name for field in sweep.fields]
    figure, best = _note(f"No trial has measured {escape(metric)} yet."), ""
    if sweep.best:
        best = sweep.best[0].trial
        svg = figures.parallel(sweep.fields, sweep.measured, metric, sweep.tune.mode)
        figure = _wide(svg) + _note(
            "A line a trial, from the worst (grey) to the winner (thick); trials that were stopped "
            "early are thin. The last axis is the score after each trial's last epoch."
        )
    body = []
    for row in sweep.rows[:ROWS]:
        values = [shortened(text(row.values[n]), 30) if n in row.values else "" for n in names]
        score = sweep.shown(row.score(metric)) if row.measured else ""
        body.append([row.trial, score, str(row.epochs), sweep.how(row), *values])
    head = ["Trial", metric, "Epochs", "How", *(label(name, names) for name in names)]
    more = f"; {len(sweep.rows) - ROWS} more are not listed" if len(sweep.rows) > ROWS else ""
    note = _note(f"Those that went on for longer come first{more}.")
    return figure + _table(head, body, best) + note


def _comparable(sweep: Sweep) -> tuple[list[Row], np.ndarray, str]:
    """Trials, their scores after as many epochs, and words for which these are."""
    if sweep.tune.scheduler.name in CHANGING:
        raise Missing(
            f"With {sweep.tune.scheduler.name} a trial has several values one after the other, and "
            "its score tells of none of them."
        )
    measured = sweep.measured
    counts = Counter(epoch for row in measured for epoch in row.measured)
    epoch = max((e for e, n in counts.items() if n >= REACHED * len(measured)), default=0)
    rows = [row for row in measured if epoch in row.measured]
    scores = np.array([row.measured[epoch][sweep.tune.metric] for row in rows])
    if len(set(scores)) < 2:
        raise Missing("There are no two trials with different scores to compare.")
    note = (
        f"Scores are those after epoch {epoch}, the last that {100 * REACHED:.0f} % of the "
        f"measured trials have come to: {len(rows)} of {len(measured)} trials."
    )
    return rows, scores, note


def _importance(sweep: Sweep) -> str:
    rows, _, note = _comparable(sweep)
    if len(rows) < IMPORTANCE:
        raise Missing(f"Importances need {IMPORTANCE} measured trials; there are {len(rows)}.")
    found = sweep.effects
    order = np.argsort(-found.importance, kind="stable")
    names = [sweep.fields[i].name for i in order]
    verdict = (
        f"The sum of the curves below explains {100 * found.r2:.0f} % of the variance of trials "
        f"that it has not seen (R² = {found.r2:.2f})."
        if found.r2 > 0
        else "The sum of the curves below predicts trials that it has not seen no better than "
        f"their mean does (R² = {found.r2:.2f}): these importances mean nothing."
    )
    bars = figures.importances(names, found.importance[order], found.deviation[order])
    return _wide(bars) + _note(
        f"{verdict} A bar is how much lower R² is without the field, where each trial in turn is "
        f"left out; its whisker is the standard error over trials. {note}"
    )


def _responses(sweep: Sweep) -> str:
    rows, scores, note = _comparable(sweep)
    found = sweep.effects.trends if len(rows) >= CURVE else {}
    shown = ""
    for index, field in enumerate(sweep.fields):
        having = [i for i, row in enumerate(rows) if field.name in row.values]
        if not (field.numeric and having):
            continue
        x, y = [rows[i].values[field.name] for i in having], scores[having].tolist()
        fitted = found.get(field.name) if len(x) >= CURVE else None
        words = fitted.verdict if fitted else "too few trials for a curve"
        shown += (
            '<figure style="max-width: 30rem">\n'
            f"<figcaption><b>{escape(field.name)}</b> <span>{words}</span></figcaption>\n"
            f"{figures.response(f'field{index}', field, x, y, fitted, sweep.percent)}\n</figure>"
        )
    if not shown:
        raise Missing("No field with a range of numbers is searched.")
    return f'<div class="curves">\n{shown}\n</div>\n' + _note(
        "A dot a trial; the other fields are as they fell. The curve is what the field does by "
        "itself, in a sum of Gaussian processes over all fields (over the logarithm, where the "
        "axis is logarithmic): the mean of likely ones, whose band holds 95 % of them, the numbers "
        "in brackets 80 % of their optima; undecided is a field where these take up more than half "
        "of the range, or less than "
        f"{100 * CERTAIN:.0f} % agree whether they are inside it. {note}"
    )


def _learning(sweep: Sweep) -> str:
    svg = figures.learning_curves(sweep.measured, sweep.tune.metric)
    return _wide(svg) + _note(f"{escape(sweep.tune.metric)} of each trial, in its colour above.")


def _rungs(sweep: Sweep) -> str:
    rows = sweep.measured
    epochs = sorted({epoch for row in rows for epoch in row.measured})
    reached = {epoch: sum(row.epochs >= epoch for row in rows) for epoch in epochs}
    rungs = [f"{count} to epoch {epoch}" for epoch, count in figures.rungs(reached).items()]
    running = sum(sweep.how(row) == "running" for row in sweep.rows)
    return _wide(figures.survival(reached)) + _note(
        f"Of {len(sweep.rows)} trials came {', '.join(rungs)}."
        + f" {running} still run." * bool(running)
    )


def _repeats(sweep: Sweep) -> str:
    metric, own = sweep.tune.metric, {row.trial: row for row in sweep.measured}
    scores: dict[str, list[float]] = {}
    for row in sorted(sweep.repeats, key=lambda row: row.seed or 0):
        if row.how == "finished":
            scores.setdefault(row.of, []).append(row.score(metric))
    warning = "A trial's own score is the best of many and so too good"
    if not scores:
        why = "none has finished yet" if sweep.tune.repeats.seeds else "tune.repeats.seeds is 0"
        raise Missing(f"There are no repeats with other seeds: {why}. {warning}.")
    sign = -1 if sweep.tune.mode == "max" else 1
    body = []
    for trial in sorted(scores, key=lambda t: sign * statistics.mean(scores[t])):
        each = ", ".join(map(sweep.shown, scores[trial]))
        score = sweep.shown(own[trial].score(metric))
        body.append([trial, score, each, sweep.spread(scores[trial])])
    head = ["Trial", "Own score", "Repeats", "Mean ± standard deviation"]
    counts = Counter(row.how for row in sweep.repeats if row.how != "finished")
    others = "".join(f" Not finished: {n} {how}." for how, n in sorted(counts.items()))
    return _table(head, body, sweep.measured[0].trial) + _note(
        f"{warning}; those of its repeats are not. The winner is bold.{others}"
    )


def _unlabelled(sweep: Sweep) -> str:
    metric, body = sweep.tune.metric, []
    for key, name in UNLABELLED.items():
        pairs = []
        for row in sweep.measured if key != metric else []:
            having = [e for e, m in row.measured.items() if math.isfinite(m.get(key, math.nan))]
            if having:
                last = row.measured[max(having)]
                value = -abs(last[key] - 1) if key == "alpha_req" else last[key]
                pairs.append((value, last[metric]))
        if len(pairs) >= RANKING and all(
            len(set(column)) > 1 for column in zip(*pairs, strict=True)
        ):
            rho, low, high = rank_correlation(np.array(pairs))
            body.append([name, str(len(pairs)), f"{rho:.2f}", f"{low:.2f} to {high:.2f}"])
    if not body:
        raise Missing(
            f"RankMe and alpha-ReQ beside {metric} were not measured in {RANKING} trials."
        )
    head = ["Metric", "Trials", f"Spearman's correlation with {metric}", "95 % interval"]
    return _table(head, body, "") + _note(
        "How well it would have ranked these trials, each after its last epoch that has both: 1 is "
        f"the order by {escape(metric)}, -1 the reverse, 0 none. The interval is by bootstrap."
    )


def _failures(sweep: Sweep) -> str:
    errors: dict[tuple[str, str], list[str]] = {}
    for event in sweep.events:
        if event["event"] == "failure":
            errors.setdefault(("lost and tried again", event["error"]), []).append(event["trial"])
        elif event["event"] == "end" and event["how"] == "failed":
            errors.setdefault(("failed", event.get("error", "")), []).append(event["trial"])
    if not errors:
        raise Missing("No trial failed.")
    return "".join(
        f'<p class="alarm"><b>{escape(", ".join(names))}</b> {how}: {escape(error)}</p>\n'
        for (how, error), names in errors.items()
    )


def _recipe(sweep: Sweep) -> str:
    best = sweep.measured[0]
    try:
        recipe = best_recipe(sweep.place)
    except RayclError as error:
        raise Missing(f"The recipe of {best.trial} cannot be made: {error}") from error
    how = _note("Saved as best.yaml it is repeated by <code>raycl pretrain best.yaml</code>.")
    return f"{how}<pre>{escape(recipe.strip())}</pre>"


def _table(head: Sequence[str], body: Sequence[Sequence[str]], best: str) -> str:
    """The row whose first cell is `best` is bold."""
    rows = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = f"<thead>\n<tr>{rows}</tr>\n</thead>\n<tbody>\n"
    for first, *cells in body:
        mark = ' class="best"' if first == best else ""
        rest = "".join(f"<td{mark}>{escape(cell)}</td>" for cell in cells)
        rows += f'<tr><th scope="row">{escape(first)}</th>{rest}</tr>\n'
    return f'<div class="scroll"><table class="trials">\n{rows}</tbody>\n</table></div>\n'


def _wide(svg: str) -> str:
    """A figure that scrolls on a narrow screen, so that its letters stay readable."""
    width = 1.1 * float(svg.partition('viewBox="0 0 ')[2].split()[0])
    figure = f'<figure style="min-width: {width:.0f}px">{svg}</figure>'
    return f'<div class="scroll">{figure}</div>\n'


def _note(html: str) -> str:
    return f'<p class="note">{html}</p>\n'
