"""A run: a directory with `recipe.yaml`, checkpoints, metrics and report, and what starts it."""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from raycl import recipe as recipes
from raycl.data.order import Order, singles
from raycl.data.plan import Plan, Source, check_fields, travelling
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.recipe import Recipe

# Fields that say where and how fast a run computes, not what: they may differ in a resumed run.
_FREE = tuple(f"trainer.{name}:" for name in ("workers", "address", "device", "log_every"))


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with local data paths made absolute: workers stand in other directories."""

    def path(value: Any) -> Any:
        if isinstance(value, list):
            return [path(v) for v in value]
        return str(Path(value).expanduser().absolute()) if value else value

    names = ("train", "test", "indices", "weights", "pairs")
    data = recipe.data.model_copy(update={name: path(getattr(recipe.data, name)) for name in names})
    init = path(recipe.init_from)
    return recipe.model_copy(update={"data": data, "init_from": init})


def open_run(run: Path, recipe: Recipe) -> None:
    """Creates a run directory, or accepts one that holds the same recipe.

    Raises:
        RayclError: the directory holds another recipe, or something that is no run.
    """
    stored = run / "recipe.yaml"
    if stored.is_file():
        lines = recipes.differences(recipes.load(run).resolved(), recipe.resolved())
        lines = [line for line in lines if not line.startswith(_FREE)]
        if lines:
            shown = "\n".join(f"  {line}" for line in lines)
            raise RayclError(
                f"{run}: this run directory holds another recipe:\n{shown}\n"
                f"choose another directory with --run, or continue that run with --resume {run}"
            )
        return
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RayclError(f"{run}: exists and is no run; choose another directory with --run")
    run.mkdir(parents=True, exist_ok=True)
    partial = run / ".recipe.yaml.partial"
    partial.write_text(recipe.to_yaml(), encoding="utf-8")
    partial.replace(stored)
    (run / "run.json").write_text(json.dumps(_origin(), indent=1))


def _origin() -> dict[str, Any]:
    """Command, date and versions: what somebody needs who wants to repeat the run."""
    versions = {"python": platform.python_version()}
    for package in ("raycl", "torch", "torchvision", "ray", "numpy", "simplejpeg"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions,
    }


def plan_of(recipe: Recipe) -> Plan:
    """The run's plan; refuses data that cannot feed it."""
    sources: dict[str, Source] = {}
    for name, stream in recipe.streams.items():
        shards = open_data(recipe, stream.source)
        fields = [view.field for view in stream.views.values()]
        check_fields(shards, fields, f"data.{stream.source}")
        entries = entries_of(recipe, shards)
        order = Order(
            entries,
            recipe.trainer.lanes,
            recipe.trainer.batch,
            recipe.trainer.seed,
            recipe.data.order,
            _array(recipe.data.weights, "data.weights"),
        )
        sources[name] = Source(shards, order, travelling(shards, fields))
    return Plan(sources)


def open_data(recipe: Recipe, name: str) -> Shards:
    """A data set of the recipe's `data` section, by the name of its field."""
    spec = getattr(recipe.data, name, None)
    if not spec:
        raise RayclError(
            f"data.{name}: missing; give a .beton file, directory or glob, for example "
            f"data.{name}=my-data/{name} (make one with `raycl data import`)"
        )
    try:
        return Shards(spec)
    except RayclError as error:
        raise RayclError(f"data.{name}: {error}") from error


def entries_of(recipe: Recipe, shards: Shards) -> np.ndarray:
    """What travels together, (M, k): all samples, a subset, or pairs."""
    data = recipe.data
    if data.pairs:
        entries = _array(data.pairs, "data.pairs")
        if entries.ndim != 2 or entries.dtype.kind not in "iu":
            raise RayclError(f"data.pairs: integers (M, 2) are needed, the file is {entries.shape}")
    else:
        entries = singles(_array(data.indices, "data.indices") if data.indices else len(shards))
    if len(entries) and (entries.min() < 0 or entries.max() >= len(shards)):
        raise RayclError(
            f"data: sample ids from {entries.min()} to {entries.max()} are asked for, the data set "
            f"has 0 to {len(shards) - 1}"
        )
    return entries[: data.limit] if data.limit else entries


def _array(path: str | None, field: str) -> Any:
    if path is None:
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RayclError(f"{field}: cannot read {path} as a .npy file: {error}") from error
