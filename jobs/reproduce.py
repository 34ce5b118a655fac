"""Runs a study: a method with its ablations and rivals over several seeds, in one table.

    python jobs/reproduce.py STUDY data.train=DATA/train data.test=DATA/test [--seeds 3] [--out DIR]

A study is `raycl/recipes/METHOD/study.yml` by the name of its method, `raycl/recipes/NAME.yml` by
its own (mvgrl/nodes), or a file: arms, each a recipe and what is changed in it, and what is changed
when they are scored. A method of the family (byol) that has none is compared with SimCLR.

Runs lie in OUT/ARM-SEED; those that have ended are not repeated, so that the same command goes on
after an interruption. Scores are of the newest checkpoint on `data.test`, by the protocols of the
recipe; seconds are the median of the epochs on this machine. The command, its time, machine and
commit stand below the table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from raycl.errors import RayclError
from raycl.recipe import load
from raycl.report.machine import commit, machine, write_figures
from raycl.report.scores import PLAIN, heading
from raycl.train.evaluation import evaluate
from raycl.train.trainer import pretrain

Figures = dict[str, list[float]]  # by name, a value for each seed


def study(name: str) -> dict[str, Any]:
    recipes = Path(str(resources.files("raycl"))) / "recipes"
    paths = [Path(name), recipes / name / "study.yml", recipes / f"{name}.yml"]
    path = next((path for path in paths if path.is_file()), recipes / "family" / "study.yml")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path in paths:
        return content
    if name not in content["arms"]:
        raise RayclError(f"{name}: no study; there is none of {', '.join(map(str, paths))}")
    arms = {arm: content["arms"][arm] for arm in ("simclr", name)}
    return content | {"arms": arms}


def figures_of(run: Path, scorings: dict[str, list[str]], untrained: bool) -> dict[str, float]:
    """Scores of a run, shares in percent, and seconds an epoch."""
    found = {}
    for name, changes in scorings.items():
        done = run / f"{name}.json"
        if not done.exists():
            evaluate(run, changes, baselines=untrained, name=name)
        for row in json.loads(done.read_text())["rows"]:
            who = "" if row["representation"] == "trained encoder" else f"{row['representation']}: "
            where = "" if name == "evaluation" else f"{name}: "
            metric = heading(row["protocol"], row["metric"])
            found[f"{who}{where}{metric}"] = row["score"] * (1 if row["metric"] in PLAIN else 100)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ends = {int(line["epoch"]): line["time"] for line in lines}
    epochs = sorted(
        b - a for a, b in zip(list(ends.values()), list(ends.values())[1:], strict=False)
    )
    return found | ({"s/epoch": statistics.median(epochs)} if epochs else {})


def show(arms: dict[str, Figures]) -> None:
    names = list(dict.fromkeys(name for figures in arms.values() for name in figures))
    table = Table("arm", *names)
    for arm, figures in arms.items():
        cells = []
        for name in names:
            values = figures.get(name, [])
            mean = statistics.fmean(values) if values else None
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append("" if mean is None else f"{mean:.1f}{spread}")
        table.add_row(arm, *cells)
    Console(width=max(100, 16 * len(names) + 30)).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a method's name, or a file")
    parser.add_argument("changes", nargs="*", help="key=value for every arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, help="where the runs lie, and are found again")
    parser.add_argument(
        "--also", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"),
        help="score the runs once more, by other protocols or on other data, as RUN/NAME.json",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    arguments = parser.parse_intermixed_args()
    content = study(arguments.study)
    unknown = [arm for arm in arguments.arms or () if arm not in content["arms"]]
    if unknown:
        raise RayclError(
            f"--arms: {unknown[0]!r} is no arm of {arguments.study}; it has: "
            f"{', '.join(content['arms'])} (key=value stands before the options)"
        )
    out = arguments.out or Path(tempfile.mkdtemp(prefix="raycl-study-"))
    print(f"runs: {out}", flush=True)
    begin = time.monotonic()
    arms: dict[str, Figures] = {}
    scorings = {"evaluation": content.get("evaluate", [])}
    scorings |= {name: changes for name, *changes in arguments.also}
    for arm, settings in content["arms"].items():
        if arguments.arms and arm not in arguments.arms:
            continue
        for seed in range(arguments.seeds):
            changes = [*content.get("set", []), *settings.get("set", []), *arguments.changes]
            recipe = load(settings["recipe"], [*changes, f"trainer.seed={seed}"])
            run = out / f"{arm.replace(' ', '-')}-{seed}"
            if not (run / "encoder.safetensors").exists():
                pretrain(recipe, run)
            for name, value in figures_of(run, scorings, settings.get("untrained", False)).items():
                arms.setdefault(arm, {}).setdefault(name, []).append(value)
            print(
                f"{arm}, seed {seed}: {json.dumps({k: v[-1] for k, v in arms[arm].items()})}",
                flush=True,
            )
    show(arms)
    print(f"command: python {shlex.join(sys.argv)}")
    print(
        f"time: {(time.monotonic() - begin) / 60:.0f} min until {time.strftime('%Y-%m-%d %H:%M')}"
    )
    print(f"machine: {machine()['cpu']}, {machine()['cores']} cores; commit: {commit()}")
    if arguments.json:
        write_figures(arguments.json, {"study": content, "arms": arms}, ["raycl", "torch"])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RayclError as error:
        sys.exit(f"error: {error}")
