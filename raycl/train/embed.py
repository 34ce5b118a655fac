"""What a run's network makes of any data set, as Parquet: a Ray Data pipeline of actors.

OUT holds part-00000.parquet and so on, each of as many samples, and _embedding.json, which says of
what they are. Columns are `id` (the sample's number in the data set), `features` (a list of float32
of one length) and every number that the data set has, `label` among them. A classifier's
predictions have `class` (its number), `probability` and `logits` (a list again) for features. Parts
that stand there whole are not made again, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from pyarrow import parquet
from torch import nn

from raycl import recipe as recipes
from raycl.data import storage
from raycl.data.connect import connected
from raycl.data.fleet import reason
from raycl.data.folder import Folder
from raycl.data.loader import walk
from raycl.data.plan import check_fields, travelling
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.methods.base import Method
from raycl.recipe import Recipe
from raycl.train.evaluation import checkpoint_of, trained
from raycl.train.memory import keep_freed_memory
from raycl.train.run import absolute, open_data
from raycl.train.scores import check_classes
from raycl.train.worker import evaluation_view
from raycl.views.image import ImageView
from raycl.views.packing import GraphView

ABOUT = "_embedding.json"
AT_ONCE = 8  # files whose ends are read at the same time


@dataclass(frozen=True)
class Done:
    """What was written."""

    samples: int
    parts: int
    dim: int


@dataclass(frozen=True)
class Work:
    """What every actor knows. It carries the network, so an actor never looks for the run.

    Attributes:
        column: features, or logits.
    """

    recipe: Recipe
    network: nn.Module
    column: str
    view: ImageView | GraphView | str
    shards: Shards
    out: Folder
    part: int

    @property
    def parts(self) -> int:
        return -(-len(self.shards) // self.part)

    def ids(self, number: int) -> np.ndarray:
        return np.arange(number * self.part, min((number + 1) * self.part, len(self.shards)))


def embed(
    run: Path,
    data: str,
    out: str,
    overrides: Sequence[str] = (),
    *,
    best: bool = False,
    workers: int | None = None,
    part: int = 8192,
    predict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Done:
    """Writes the features that the newest checkpoint's encoder has of every sample of `data`.

    On a cluster (`trainer.address`) its hosts need not see the run, but `data` and `out`: both are
    shared directories or URIs then.

    Args:
        data: a data set with the field that the run's encoder reads.
        out: directory or URI; what lies there of an interrupted call is gone on with.
        overrides: of the run's recipe, such as `evaluation.size` or `data.threads`.
        best: the best checkpoint by the recipe's `trainer.checkpoint.best` instead.
        workers: the most actors; each has a GPU or, where there is none, a core.
        part: samples of a file.
        predict: the classes that the run's classifier gives the samples, instead of features.
        progress: called with the samples done and their total.

    Raises:
        RayclError: run or data are missing or do not go together, a sample is damaged, or `out`
            holds something else or cannot be written to.
    """
    recipe = absolute(recipes.load(run, overrides))
    saved = checkpoint_of(run, recipe, best)
    shards = Shards(data, cache_gb=recipe.data.cache_gb)
    view = evaluation_view(recipe)
    check_fields(shards, [view if isinstance(view, str) else view.field], data)
    if predict:
        check_classes(recipe)
    method = trained(recipe, open_data(recipe, "train"), saved).eval()
    network, column = (Logits(method), "logits") if predict else (method.encoder, "features")
    work = Work(recipe, network, column, view, shards, Folder(_place(out)), part)
    about = {
        "run": str(run.absolute()),
        "checkpoint": {
            "name": saved.name,
            "sha256": hashlib.sha256(saved.read("COMPLETE")).hexdigest(),
        },
        "method": recipe.method,
        "view": view if isinstance(view, str) else view.model_dump(mode="json"),
        "data": {"place": _place(data), "samples": len(shards), "bytes": shards.bytes},
        "part": part,
        "column": column,
        "classes": shards.classes,
    }
    _agree(work.out, about)
    try:
        _write(work, workers, progress)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished files are kept in {work.out}: the same command goes on with "
            f"the others"
        ) from interrupt
    lost = _missing(work)
    if lost:
        raise RayclError(
            f"{work.out}: {_name(lost[0])} cannot be seen from here; all machines of the cluster "
            f"must see this directory under the same name"
        )
    schema = work.out.opened(_name(0), parquet.read_schema)
    return Done(len(shards), work.parts, schema.field(column).type.list_size)


def _place(path: str) -> str:
    return storage.checked(path) if storage.is_uri(path) else str(Path(path).absolute())


def _agree(out: Folder, about: dict[str, Any]) -> None:
    """Says what the directory is for, or refuses one that is for something else."""
    about = json.loads(json.dumps(about))
    try:
        names = out.names()
        found = json.loads(out.read(ABOUT)) if ABOUT in names else {}
        if not names:
            out.write(ABOUT, json.dumps(about, indent=1).encode())
    except ValueError as error:
        raise RayclError(f"{out}: its {ABOUT} is damaged; give another directory") from error
    except OSError as error:
        raise RayclError(f"{out}: cannot be written: {error}") from error
    other = [key for key, value in about.items() if found.get(key) != value]
    if names and not found:
        raise RayclError(f"{out}: is not empty, and holds no {ABOUT}; give another directory")
    if names and other:
        raise RayclError(
            f"{out}: was begun with another {' and '.join(other)} ({ABOUT} tells); give another "
            f"directory, or what it was begun with"
        )


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _missing(work: Work) -> list[int]:
    names = set(work.out.names())
    return [number for number in range(work.parts) if _name(number) not in names]


def _left(work: Work) -> list[int]:
    """Parts that have not been written to their ends, where Parquet says how many rows it holds."""
    missing = _missing(work)
    there = sorted(set(range(work.parts)) - set(missing))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        whole = pool.map(lambda number: _whole(work, number), there)
        cut = [number for number, is_whole in zip(there, whole, strict=True) if not is_whole]
    return sorted(missing + cut)


def _whole(work: Work, number: int) -> bool:
    try:
        rows = work.out.opened(_name(number), parquet.read_metadata).num_rows
    except (ValueError, storage.Unavailable):
        return False
    return bool(rows == len(work.ids(number)))


def _write(work: Work, workers: int | None, progress: Callable[[int, int], None]) -> None:
    """Has actors write the parts that are left."""
    left, total = _left(work), len(work.shards)
    done = total - sum(len(work.ids(number)) for number in left)
    progress(done, total)
    if not left:
        return
    with connected(work.recipe.trainer.address, num_cpus=len(os.sched_getaffinity(0))):
        mistake = None
        try:
            for number in _written(work, left, workers):
                done += len(work.ids(number))
                progress(done, total)
        except Exception as error:
            mistake = reason(error)
            if mistake is None:
                raise
        if mistake:
            # The actors of a pipeline that failed hold their cores until Python has collected the
            # circle of objects that refers to them, and one that waits for a core never does.
            gc.collect()
            raise RayclError(str(mistake))


def _written(work: Work, left: Sequence[int], workers: int | None) -> Iterator[int]:
    """Parts as actors have written them."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an actor's error is told once
    gpus, cpus = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
    room = gpus or cpus
    rows = ray.data.from_items([{"part": n} for n in left], override_num_blocks=len(left))
    rows.context.enable_progress_bars = False
    rows.context.raise_original_map_exception = True  # in Ray Data's own a mistake is lost
    written = rows.map_batches(
        Embedder,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers or room, room, len(left))),
        fn_constructor_args=(ray.put(work),),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in written.iter_rows():
        yield row["part"]


class Logits(nn.Module):
    """A method's classifier as a network of its own."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of the classes (N, K) of images (N, 3, H, W)."""
        return self.method.logits(images)


class Embedder:
    """An actor: one network, and the parts that it is given."""

    def __init__(self, work: ray.ObjectRef[Work]) -> None:
        keep_freed_memory()
        self.work: Work = ray.get(work)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = self.work.network.to(self.device)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for number in batch["part"].tolist():
            content = pa.BufferOutputStream()
            parquet.write_table(self.table(self.work.ids(number)), content)
            try:
                self.work.out.write(_name(number), memoryview(content.getvalue()))
            except OSError as error:
                raise RayclError(f"{self.work.out}: cannot be written: {error}") from error
        return batch

    @torch.no_grad()
    def table(self, ids: np.ndarray) -> pa.Table:
        """The rows of some samples."""
        recipe, view, shards = self.work.recipe, self.work.view, self.work.shards
        parts = [
            self.network(batch if isinstance(view, GraphView) else batch["view"])
            for batch in walk(
                shards,
                view,
                ids,
                batch=recipe.evaluation.batch,
                device=self.device,
                threads=recipe.data.threads,
            )
        ]
        features = torch.cat([part.flatten(1).float().cpu() for part in parts]).numpy()
        if len(features) != len(ids):
            raise RayclError(
                f"the run's encoder gives {len(features)} rows for {len(ids)} samples, as one of "
                f"nodes does; only one row a sample can be written"
            )
        flat = pa.array(features.reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
        own: dict[str, Any] = {"id": ids, self.work.column: lists}
        if self.work.column == "logits":
            sure = torch.from_numpy(features).softmax(1).max(1)
            own |= {"class": sure.indices.numpy(), "probability": sure.values.numpy()}
        numbers = [name for name in travelling(shards, ()) if name not in own]
        return pa.table(own | {name: shards.numbers(ids, name) for name in numbers})
