"""What a sweep costs, and what it finds.

    python jobs/bench_tune.py overhead data.train=DATA/train data.test=DATA/test
    python jobs/bench_tune.py compare data.train=DATA/train data.test=DATA/test --out PLACE

`overhead` runs 32 trials to their end and sets the wall time between the first trial's start and
the last one's end, times the trials at a time, beside the trials' own training time; and looks for
actors and placement groups that are left. `compare` lets ASHA and random search take turns, with
the same first values, and tells the best score after every quarter of the epochs that both have
trained; and what the trials of random search say of each field, those of all rounds together. An
epoch costs the same in every trial, so other work on the machine changes nothing; called again, it
goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.state import list_actors, list_placement_groups
from rich.console import Console
from rich.table import Table

from raycl.errors import RayclError
from raycl.recipe import load
from raycl.report.machine import write_figures
from raycl.report.sweep_statistics import Field, effects
from raycl.sweep import read, settings_of, trials
from raycl.tune.search import search

NO_REPEATS = "tune.repeats.seeds=0"
ASHA = 3.75  # trials for one of random search: 2.4 epochs each of nine, with rungs after 1, 3 and 9


def overhead(recipe: str, changes: list[str], place: Path) -> dict[str, Any]:
    """Seconds of a sweep beside those of its trials."""
    ray.init(address="local", include_dashboard=True, logging_level="ERROR", log_to_driver=False)
    cpus = int(ray.cluster_resources()["CPU"])
    settings = ["tune.samples=32", "tune.scheduler.name=none", NO_REPEATS]
    search(load(recipe, [*changes, *settings]), place)
    alive = [actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])]
    groups = len(list_placement_groups(filters=[("state", "!=", "REMOVED")]))
    ray.shutdown()
    events = read(place)
    rows = trials(events, settings_of(place), "search")
    begin = min(event["at"] for event in events if event["event"] == "trial")
    end = max(event["at"] for event in events if event["event"] == "end")
    training = sum(row.seconds for row in rows)
    return {
        "trials": len(rows),
        "at a time": cpus,
        "wall seconds": end - begin,
        "seconds of a trial": training / len(rows),
        "overhead": (end - begin) * cpus / training - 1,
        "actors left": alive,
        "placement groups left": groups,
    }


def compare(recipe: str, changes: list[str], place: Path, samples: int) -> dict[str, list[float]]:
    """The best score after each quarter of the epochs, the epochs and the trials begun, of both."""
    found: dict[str, tuple[list[float], int]] = {}
    for name, count in (("asha", int(ASHA * samples)), ("none", samples)):
        here = place / name
        settings = [f"tune.scheduler.name={name}", f"tune.samples={count}", NO_REPEATS]
        search(load(recipe, [*changes, *settings]), here)
        tune, events = settings_of(here), read(here)
        scores = [event[tune.metric] for event in events if event["event"] == "result"]
        found[name] = scores, len(trials(events, tune, "search"))
    epochs = min(len(scores) for scores, _ in found.values())
    return {
        name: [*(max(scores[: epochs * part // 4]) for part in (1, 2, 3, 4)), len(scores), begun]
        for name, (scores, begun) in found.items()
    }


def learned(places: list[Path]) -> tuple[float, dict[str, tuple[float, float, str]]]:
    """R² of trials that were left out; importance, its deviation and the best value of a field.

    Args:
        places: sweeps over the same fields, none of which depends on another, in whole trials.
    """
    tune = settings_of(places[0])
    every = [row for place in places for row in trials(read(place), tune, "search")]
    rows = [row for row in every if row.measured]
    scores = [row.score(tune.metric) for row in rows]
    values = {name: [row.values[name] for row in rows] for name in tune.search}
    fields = [Field.of(name, tune.search[name], values[name]) for name in values]
    x = np.array([[field.at(row) for field in fields] for row in rows])
    found = effects(fields, x, np.array(scores), tune.mode)
    trends = [found.trends[name].verdict if name in found.trends else "" for name in values]
    columns = zip(found.importance.tolist(), found.deviation.tolist(), trends, strict=True)
    return found.r2, dict(zip(values, columns, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overhead", "compare"))
    parser.add_argument("changes", nargs="*", help="key=value")
    parser.add_argument("--recipe", default="simclr/cifar10-sweep")
    parser.add_argument("--samples", type=int, default=24, help="trials of random search")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where the sweeps lie")
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    arguments = parser.parse_intermixed_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="raycl-tune-"))
    print(f"sweeps: {out}", flush=True)
    if arguments.what == "overhead":
        figures: Any = overhead(arguments.recipe, arguments.changes, out / "overhead")
        print(json.dumps(figures, indent=1))
    else:
        figures = {"asha": [], "none": []}
        for seed in range(arguments.rounds):
            changes = [*arguments.changes, f"trainer.seed={seed}"]
            place = out / f"round-{seed}"
            found = compare(arguments.recipe, changes, place, arguments.samples)
            for name, row in found.items():
                figures[name].append(row)
            print(f"round {seed}: {json.dumps(found)}", flush=True)
        heads = ("best after 1/4", "1/2", "3/4", "all of the epochs", "epochs", "trials")
        table = Table("scheduler", *heads)
        for name, rounds in figures.items():
            cells = []
            for values in zip(*rounds, strict=True):
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.3f}{spread}")
            table.add_row(name, *cells)
        Console(width=120).print(table)
        r2, fields = learned([out / f"round-{seed}" / "none" for seed in range(arguments.rounds)])
        print(f"R² of trials left out: {r2:.2f}")
        for name, (mean, deviation, verdict) in fields.items():
            print(f"{name}: importance {mean:.2f} ± {deviation:.2f}, {verdict}")
        figures["fields"] = fields
    if arguments.json:
        write_figures(arguments.json, figures, ["raycl", "torch", "ray"])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RayclError as error:
        sys.exit(f"error: {error}")
