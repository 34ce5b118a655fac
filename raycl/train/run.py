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
from raycl.data.folder import Folder
from raycl.data.order import Draw, Mixture, Order, Pages, Weighted, sequential, shuffled, singles
from raycl.data.plan import Plan, Source, check_fields, travelling
from raycl.data.shards import Shards
from raycl.data.storage import is_uri
from raycl.data.streams import row_bytes
from raycl.errors import RayclError
from raycl.recipe import Recipe
from raycl.train.balance import EveryEpoch, MethodLabels, evened

# Fields that say where and how fast a run computes, not what: they may differ in a resumed run.
_COMPUTING = "workers address device storage wait_minutes watch log_every sharded nccl compile"
_FREE = (
    *(f"trainer.{name}:" for name in _COMPUTING.split()),
    "data.read_on:",
    "method.encoder.recompute:",
)


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with local data paths made absolute: workers stand in other directories."""

    def path(value: Any) -> Any:
        if isinstance(value, list):
            return [path(v) for v in value]
        local = value and not is_uri(value)
        return str(Path(value).expanduser().absolute()) if local else value

    names = ("test", "classes", "indices", "test_indices", "weights", "pairs")
    changes = {name: path(getattr(recipe.data, name)) for name in names}
    if isinstance(recipe.data.train, dict):
        changes["train"] = {
            name: part.model_copy(update={"path": path(part.path)})
            for name, part in recipe.data.train.items()
        }
    else:
        changes["train"] = path(recipe.data.train)
    data = recipe.data.model_copy(update=changes)
    trainer = recipe.trainer.model_copy(update={"storage": path(recipe.trainer.storage)})
    init = path(recipe.init_from)
    return recipe.model_copy(update={"data": data, "trainer": trainer, "init_from": init})


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
    make_directory(run, recipe.to_yaml(), "run")
    (run / "run.json").write_text(json.dumps(_origin(), indent=1))


def make_directory(place: Path, recipe: str, kind: str) -> None:
    """Makes the directory of a run or a sweep, as `kind` says, with its recipe.yaml.

    Raises:
        RayclError: there is something already.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RayclError(
            f"{place}: exists and is no {kind}; choose another directory with --{kind}"
        )
    place.mkdir(parents=True, exist_ok=True)
    partial = place / ".recipe.yaml.partial"
    partial.write_text(recipe, encoding="utf-8")
    partial.replace(place / "recipe.yaml")


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


def plan_of(recipe: Recipe, run: Path) -> Plan:
    """The run's plan; refuses data that cannot feed it."""
    sources: dict[str, Source] = {}
    trainer = recipe.trainer
    for name, stream in recipe.streams.items():
        shards = open_data(recipe, stream.source)
        fields = [*(view.field for view in stream.views.values()), *stream.fields]
        check_fields(shards, fields, f"data.{stream.source}")
        if stream.graphs and (recipe.data.decode_on, recipe.data.engine) != ("worker", "raycl"):
            raise RayclError(
                "data.decode_on, data.engine: graphs are packed in the workers by raycl; leave "
                "both out"
            )
        entries = entries_of(recipe, shards)
        draw = _draw(recipe, shards, entries, run)
        order = Order(entries, trainer.lanes, trainer.batch, trainer.seed, draw)
        sources[name] = Source(shards, order, travelling(shards, fields))
    plan = Plan(sources)
    if recipe.data.decode_on == "cluster":
        views = {name: stream.cut for name, stream in recipe.streams.items()}
        return Plan(sources, row_bytes(plan, views))
    return plan


def open_data(recipe: Recipe, name: str) -> Shards:
    """A data set of the recipe's `data` section, by the name of its field."""
    spec = getattr(recipe.data, name, None)
    if not spec:
        raise RayclError(
            f"data.{name}: missing; give a .beton file, directory or glob, for example "
            f"data.{name}=my-data/{name} (make one with `raycl data import`)"
        )
    if isinstance(spec, dict):
        spec = [path for part in spec.values() for path in part.paths]
    try:
        return Shards(spec, cache_gb=recipe.data.cache_gb)
    except RayclError as error:
        raise RayclError(f"data.{name}: {error}") from error


def entries_of(recipe: Recipe, shards: Shards) -> int | np.ndarray:
    """What travels together: (M, k) ids of a subset or of pairs, or M for the first M samples."""
    data = recipe.data
    if data.pairs:
        entries = _array(data.pairs, "data.pairs")
        if entries.ndim != 2 or entries.dtype.kind not in "iu":
            raise RayclError(f"data.pairs: integers (M, 2) are needed, the file is {entries.shape}")
    elif data.indices:
        entries = singles(_array(data.indices, "data.indices"))
    elif data.fraction:
        entries = singles(np.arange(len(shards)))
    else:
        return min(len(shards), data.limit or len(shards))
    _check_ids(entries, shards)
    entries = entries[: data.limit] if data.limit else entries
    if data.fraction:
        from raycl.evaluate.labels import share_of_labels  # it brings torch

        check_fields(shards, ["label"], "data.fraction")
        labels = shards.numbers(entries[:, 0], "label")
        entries = entries[share_of_labels(labels, data.fraction, recipe.trainer.seed)]
    return entries


def scored_ids(recipe: Recipe, shards: Shards) -> np.ndarray:
    """Ids (N,) of the samples that protocols score on: all, or `data.test_indices`."""
    if not recipe.data.test_indices:
        return np.arange(len(shards))
    ids = singles(_array(recipe.data.test_indices, "data.test_indices"))[:, 0]
    _check_ids(ids, shards)
    return ids


def _check_ids(ids: np.ndarray, shards: Shards) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= len(shards)):
        raise RayclError(
            f"data: sample ids from {ids.min()} to {ids.max()} are asked for, the data set has 0 "
            f"to {len(shards) - 1}"
        )


def pseudo_labels(recipe: Recipe, run: Path) -> Folder:
    """Where those that a method gives to `corpus.balance` are kept."""
    return Folder(recipe.trainer.storage or str(run)) / "pseudo-labels"


def _draw(recipe: Recipe, shards: Shards, entries: int | np.ndarray, run: Path) -> Draw:
    """How entries are drawn, from the recipe's `data` section."""
    data = recipe.data
    first = np.arange(entries) if isinstance(entries, int) else entries[:, 0]
    if isinstance(data.train, dict):
        parts = data.train.values()
        sizes = [len(Shards(part.paths, cache_gb=data.cache_gb)) for part in parts]
        return Mixture(tuple(sizes), tuple(part.share for part in parts))
    if data.balance == "method":
        return Weighted(MethodLabels(pseudo_labels(recipe, run), len(first)))
    if data.balance:
        check_fields(shards, [data.balance], "data.balance")
        return Weighted(EveryEpoch(evened(shards.numbers(first, data.balance))))
    if data.weights:
        weights = _array(data.weights, "data.weights")
        if weights.shape != first.shape:
            raise RayclError(
                f"data.weights: {len(first)} numbers are needed, one for each sample used, the "
                f"file holds shape {weights.shape}"
            )
        return Weighted(EveryEpoch(weights))
    if data.order == "pages":
        return _pages(shards, entries, data.window)
    return sequential if data.order == "sequential" else shuffled


def _pages(shards: Shards, entries: int | np.ndarray, window: int) -> Pages:
    counts, ids = shards.pages()
    if isinstance(entries, int) and entries == len(shards) and ids is None:
        return Pages(counts, window)
    # Of a subset, entries lie where their first sample lies.
    page = np.empty(len(shards), np.int64)
    page[slice(None) if ids is None else ids] = np.repeat(np.arange(len(counts)), counts)
    here = page[:entries] if isinstance(entries, int) else page[entries[:, 0]]
    held = np.bincount(here, minlength=len(counts))
    return Pages(held[held > 0].astype(np.int32), window, np.argsort(here, kind="stable"))


def _array(path: str | None, field: str) -> Any:
    if path is None:
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RayclError(f"{field}: cannot read {path} as a .npy file: {error}") from error
