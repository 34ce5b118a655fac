"""What a sweep costs, and what it finds.

    python jobs/bench_tune.py overhead data.train=DATA/train data.test=DATA/test
    python jobs/bench_tune.py compare data.train=DATA/train data.test=DATA/test [--minutes 12]

`overhead` runs 32 trials to their end and sets the wall time between the first trial's start and
the last one's end, times the trials at a time, beside the trials' own training time; and looks for
actors and placement groups that are left. `compare` lets ASHA and random search take turns, equally
long on the same cores and with the same first values, and tells the best score at every quarter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray.util.state import list_actors, list_placement_groups
from rich.console import Console
from rich.table import Table

from raycl.errors import RayclError
from raycl.recipe import load
from raycl.report.machine import write_figures
from raycl.sweep import read, settings_of, trials
from raycl.tune.search import search

NO_REPEATS = "tune.repeats.seeds=0"


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


def compare(recipe: str, changes: list[str], place: Path, minutes: float) -> dict[str, list[float]]:
    """The best score after each quarter of the time, and the trials begun, of both."""
    found = {}
    for name in ("asha", "none"):
        here = place / name
        settings = [f"tune.scheduler.name={name}", f"tune.budget={minutes}", "tune.samples=1000"]
        search(load(recipe, [*changes, *settings, NO_REPEATS]), here)
        tune, events = settings_of(here), read(here)
        begin = min(event["at"] for event in events if event["event"] == "trial")
        results = [(e["at"] - begin, e[tune.metric]) for e in events if e["event"] == "result"]
        best = [
            max((score for at, score in results if at <= part * 15 * minutes), default=float("nan"))
            for part in (1, 2, 3, 4.2)  # what was measured as time ran out counts
        ]
        found[name] = [*best, float(len(trials(events, tune, "search")))]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overhead", "compare"))
    parser.add_argument("changes", nargs="*", help="key=value")
    parser.add_argument("--recipe", default="simclr/cifar10-sweep")
    parser.add_argument("--minutes", type=float, default=12)
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
            found = compare(arguments.recipe, changes, place, arguments.minutes)
            for name, row in found.items():
                figures[name].append(row)
            print(f"round {seed}: {json.dumps(found)}", flush=True)
        table = Table("scheduler", "best after 1/4", "1/2", "3/4", "all of the time", "trials")
        for name, rounds in figures.items():
            cells = []
            for values in zip(*rounds, strict=True):
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.3f}{spread}")
            table.add_row(name, *cells)
        Console(width=120).print(table)
    if arguments.json:
        write_figures(arguments.json, figures, ["raycl", "torch", "ray"])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RayclError as error:
        sys.exit(f"error: {error}")
