"""What has come out of a sweep, from the events that `raycl.tune.journal` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raycl import recipe as recipes
from raycl.errors import RayclError
from raycl.space import Tune

Event = dict[str, Any]


@dataclass
class Row:
    """One trial.

    Attributes:
        values: of the searched fields, those that count; `drawn` is what the searcher gave.
        measured: metrics by epoch, of an epoch that was done again the later ones.
        how: finished, stopped, failed, or running.
        of, seed: of a repeat, the trial that is done again.
    """

    trial: str
    values: dict[str, Any]
    drawn: dict[str, Any]
    measured: dict[int, dict[str, float]] = field(default_factory=dict)
    run: str = ""
    how: str = "running"
    error: str = ""
    lost: int = 0
    of: str = ""
    seed: int | None = None

    @property
    def epochs(self) -> int:
        return max(self.measured, default=0)

    @property
    def seconds(self) -> float:
        """Of training and measuring, without the start of the trial."""
        return max((m["time"] for m in self.measured.values()), default=0.0)

    def score(self, metric: str) -> float:
        """At the last epoch that was measured."""
        return self.measured[self.epochs][metric]


def read(place: Path) -> list[Event]:
    """The events of a sweep; a line that was cut off as it was written is left out."""
    path = place / "events.jsonl"
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def trials(events: list[Event], tune: Tune, phase: str) -> list[Row]:
    """The trials of a phase, the best first.

    Those that went on for longer come before those that a scheduler stopped at an earlier rung, for
    they were better there; those that measured nothing come last.
    """
    rows: dict[str, Row] = {}
    for event in events:
        if event["phase"] != phase or "trial" not in event:
            continue
        name = event["trial"]
        if event["event"] == "trial":
            values, drawn = event["values"], event["drawn"]
            row = rows.setdefault(name, Row(name, values, drawn))
            row.values, row.drawn, row.how = values, drawn, "running"
            row.of, row.seed = event.get("of", ""), event.get("seed")
        elif name in rows:
            _add(rows[name], event)
    sign = 1 if tune.mode == "min" else -1
    return sorted(
        rows.values(), key=lambda r: (-r.epochs, sign * r.score(tune.metric) if r.measured else 0)
    )


def _add(row: Row, event: Event) -> None:
    if event["event"] == "result":
        numbers = {k: v for k, v in event.items() if isinstance(v, int | float) and k != "at"}
        row.measured[round(event["epoch"])] = numbers
        row.run = event["run"]
    elif event["event"] == "failure":
        row.lost, row.error = row.lost + 1, event["error"]
    elif event["event"] == "end":
        row.how, row.error = event["how"], event.get("error", "")


def settings_of(place: Path) -> Tune:
    """The section `tune` of a sweep.

    Raises:
        RayclError: the directory holds no sweep.
    """
    if not (place / "events.jsonl").is_file():
        raise RayclError(f"{place}: holds no events.jsonl, so it is no sweep's directory")
    tune = recipes.load(place).tune
    assert tune is not None
    return tune


def winner(place: Path, tune: Tune) -> tuple[Row, list[float]]:
    """The best trial, by the mean of its repeats where there are any, and their scores.

    A trial's own score is the best of many and so too good; its repeats' are not.

    Raises:
        RayclError: nothing was measured yet.
    """
    events = read(place)
    rows = [row for row in trials(events, tune, "search") if row.measured]
    if not rows:
        raise RayclError(f"{place}: no trial has measured {tune.metric} yet")
    repeats: dict[str, list[float]] = {}
    for row in trials(events, tune, "repeats"):
        if row.how == "finished":
            repeats.setdefault(row.of, []).append(row.score(tune.metric))
    sign = 1 if tune.mode == "max" else -1
    most = max(map(len, repeats.values()), default=0)
    whole = [row for row in rows if most and len(repeats.get(row.trial, ())) == most]
    best = max(whole, key=lambda r: sign * sum(repeats[r.trial]), default=rows[0])
    return best, repeats.get(best.trial, [])


def best_recipe(place: Path) -> str:
    """The winner's recipe as YAML, with how it did: what `raycl pretrain` repeats."""
    tune = settings_of(place)
    row, repeats = winner(place, tune)
    again = f", with other seeds {', '.join(f'{s:.4g}' for s in repeats)}" if repeats else ""
    head = (
        f"# Trial {row.trial} of {place.absolute().name}: {tune.metric} "
        f"{row.score(tune.metric):.4g} after {row.epochs} epochs{again}.\n"
    )
    recipe = recipes.with_values(recipes.load(place), row.values)
    return head + recipe.to_yaml()
