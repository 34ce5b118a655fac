"""One rank from recipe to trained method: what a worker, wherever it runs, does."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from raycl import recipe as recipes
from raycl.beton import NDArrayField
from raycl.data.ffcv_engine import FFCVLoader
from raycl.data.folder import Folder
from raycl.data.loader import Loader
from raycl.data.plan import Columns, Plan, check_fields, read_samples
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.methods.base import DataInfo, Method
from raycl.nn import collectives
from raycl.recipe import Recipe
from raycl.train import checkpoint
from raycl.train.balance import MethodLabels
from raycl.train.corpus import ShardCorpus
from raycl.train.loop import Loop, Place
from raycl.train.memory import keep_freed_memory
from raycl.train.mirror import Mirror
from raycl.train.observers import Observer, Writer
from raycl.train.observers.measure import Embeddings, OnlineKnn, Throughput
from raycl.train.observers.services import SERVICES
from raycl.train.observers.write import Metrics, TensorBoard
from raycl.train.run import entries_of, open_data, pseudo_labels, scored_ids
from raycl.train.sharding import whole
from raycl.train.signals import STOPS
from raycl.views.image import ImageView
from raycl.views.packing import GraphView

_log = logging.getLogger(__name__)

Bundles = Callable[[int, int], Iterable[Columns]]


@dataclass
class Ears:
    """Who hears of a run while it goes on; called on rank 0 alone but for checkpoints."""

    metrics: Callable[[dict[str, Any]], None] = lambda record: None
    note: Callable[[str], None] = _log.warning
    checkpoint: Callable[[Folder | None], None] = lambda newest: None
    loop: Callable[[Loop], None] = field(default=lambda loop: None)
    writers: list[Writer] = field(default_factory=list)


def train(
    recipe: Recipe, run: Path, plan: Plan, place: Place, bundles: Bundles, ears: Ears
) -> None:
    """Trains one rank to the end, from the newest checkpoint if there is one."""
    keep_freed_memory()
    trainer = recipe.trainer
    method = build(recipe, plan.first.shards)
    views = {name: stream.cut for name, stream in recipe.streams.items()}
    data = (trainer.seed, recipe.data.threads, recipe.data.corrupt, recipe.data.corrupt_share)
    loader: Loader | FFCVLoader
    if recipe.data.engine == "ffcv":
        images = {name: stream.images for name, stream in recipe.streams.items()}
        loader = FFCVLoader(plan, images, place.lanes, place.device, *data)
    else:
        on_gpu = recipe.data.decode_on == "gpu"
        loader = Loader(plan, views, place.lanes, bundles, place.device, *data, on_gpu)
    corpus = training_corpus(recipe, plan.first.shards, place.device)
    if recipe.data.balance == "method":
        corpus.pseudo_labels = MethodLabels(pseudo_labels(recipe, run), len(corpus))
    mirror, storage = Mirror(run, trainer.storage), checkpoint.folder(run, trainer.storage)
    saved = _agreed(storage, place)
    if place.rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        if saved:
            mirror.pull()  # this host may never have seen the run
    observers: list[Observer] = [
        Throughput(loader, trainer.lanes * trainer.batch),
        Embeddings(),
        *online_knn(recipe, corpus),
    ]
    if place.rank == 0:
        names = [name for stream in recipe.streams.values() for name in stream.images]
        observers += [
            Metrics(run, plan.steps, ears.metrics),
            TensorBoard(run, recipe.to_yaml(), names),
            *(SERVICES[name](run, recipe) for name in trainer.watch),
            *ears.writers,
        ]
    writer = checkpoint.Writer(
        storage,
        trainer.checkpoint,
        place.rank,
        place.world,
        warn=ears.note,
        before_complete=mirror.push,
    )
    loop = Loop(
        recipe,
        method,
        loader,
        place,
        writer=writer,
        corpus=corpus,
        observers=observers,
        notify=ears.checkpoint,
    )
    if saved is not None:
        loop.load(checkpoint.load(saved, place.rank, place.world))
    ears.loop(loop)
    try:
        loop.fit()
    except BaseException:
        for observer in observers:
            with contextlib.suppress(Exception):  # what ended the run is what counts
                observer.close()
        raise
    for observer in observers:
        observer.close()
    weights = whole(method.encoder.state_dict())
    if place.rank == 0:
        export(weights, run)
        mirror.push()


def _agreed(storage: Folder, place: Place) -> Folder | None:
    """The newest sound checkpoint; rank 0 looks, so that its files are read once."""
    found = checkpoint.newest(storage) if place.rank == 0 else None
    step = int(found.name.removeprefix("step-")) if found else -1
    step = collectives.agreed(step, place.device)
    return storage / f"step-{step:010d}" if step >= 0 else None


def build(recipe: Recipe, shards: Shards) -> Method:
    """The method with its first weights: the same on every rank, a function of the seed."""
    torch.manual_seed(recipe.trainer.seed)
    method = recipe.build(info_of(recipe, shards))
    if recipe.init_from:
        start_from(method, Path(recipe.init_from))
    return method


def info_of(recipe: Recipe, shards: Shards) -> DataInfo:
    """What a method is told of its data; labels and class embeddings are read for it."""
    kinds = shards.fields.items()
    arrays = {name: kind.shape for name, kind in kinds if isinstance(kind, NDArrayField)}
    if not recipe.data.classes:
        return DataInfo(len(shards), shards.classes, arrays=arrays)
    check_fields(shards, ["label"], "data.train")
    seen = np.unique(shards.column("label"))
    classes = open_data(recipe, "classes")
    check_fields(classes, ["features"], "data.classes")
    if seen[0] < 0 or seen[-1] >= len(classes):
        raise RayclError(
            f"data.classes: {classes.place} has {len(classes)} classes, and the labels of "
            f"{shards.place} run from {seen[0]} to {seen[-1]}"
        )
    table = read_samples(classes, np.arange(len(classes)), ["features"])["features"]
    embeddings = torch.from_numpy(table).float()
    return DataInfo(
        len(shards),
        classes.classes,
        arrays=arrays,
        class_embeddings=embeddings,
        seen=torch.from_numpy(seen),
    )


def start_from(method: Method, source: Path) -> None:
    """Loads weights from a run, or an encoder from a safetensors file or a run of another method.

    Raises:
        RayclError: nothing there, or names and shapes do not fit.
    """
    if source.is_dir():
        other = recipes.load(source)
        state = checkpoint.load(checkpoint.require(source, other.trainer.storage))["method"]
        target: torch.nn.Module = method
        if other.method_class is not type(method):
            prefix, target = "encoder.", method.encoder
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    elif source.suffix == ".safetensors" and source.is_file():
        target, state = method.encoder, load_file(source)
    else:
        raise RayclError(f"init_from: {source} is neither a run directory nor a .safetensors file")
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        first = "\n".join(str(error).splitlines()[:6])
        raise RayclError(
            f"init_from: the weights of {source} do not fit this recipe's networks: {first}"
        ) from error


def export(weights: dict[str, Tensor], run: Path) -> Path:
    """Writes an encoder's weights to RUN/encoder.safetensors, which loads without raycl."""
    path, partial = run / "encoder.safetensors", run / ".encoder.safetensors.partial"
    state = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    partial.write_bytes(save(state, metadata={"format": "pt"}))
    partial.replace(path)
    return path


def evaluation_view(recipe: Recipe) -> ImageView | GraphView | str:
    """What an encoder is evaluated on: the first view's field and normalisation, nothing random.

    Of a stream without views it is the name of its first field; a view of graphs is its own.
    """
    stream = next(iter(recipe.streams.values()))
    if stream.graphs:
        return next(iter(stream.graphs.values()))
    return stream.first.evaluation(recipe.evaluation.size) if stream.views else stream.fields[0]


def training_corpus(recipe: Recipe, shards: Shards, device: torch.device) -> ShardCorpus:
    """The samples that a run trains on, each once."""
    entries = entries_of(recipe, shards)
    ids = np.arange(entries) if isinstance(entries, int) else entries[:, 0]
    view, batch = evaluation_view(recipe), recipe.evaluation.batch
    return ShardCorpus(shards, ids, view, batch, device, recipe.data.threads)


def held_out(recipe: Recipe, train: ShardCorpus) -> ShardCorpus:
    """The test set, seen as `train` is."""
    shards = open_data(recipe, "test")
    ids = scored_ids(recipe, shards)
    return ShardCorpus(shards, ids, train.view, train.batch, train.device, train.threads)


def require(field: str, protocol: str, **corpora: ShardCorpus) -> None:
    """Refuses data sets, by their names in the recipe, that lack what a protocol scores with."""
    mended = {
        "label": "import the images from a folder per class, or train without online kNN "
        "(evaluation.every_epochs=0) and evaluate on another data set",
        "objects": "import images with their objects (`raycl data import detection`), or leave it "
        "out of evaluation.protocols",
        "mask": "import images with their masks (`raycl data import segmentation`), or leave it "
        "out of evaluation.protocols",
    }
    for name, corpus in corpora.items():
        if field not in corpus.shards.fields:
            raise RayclError(
                f"data.{name}: {corpus.shards.place} has no field {field!r}, which the protocol "
                f"{protocol} needs; {mended[field]}"
            )


def online_knn(recipe: Recipe, train: ShardCorpus) -> list[Observer]:
    every, settings = recipe.evaluation.every_epochs, recipe.evaluation.knn
    if not every:
        return []
    test = held_out(recipe, train)
    require("label", "knn", train=train, test=test)
    labels = (train.labels(), test.labels())
    return [OnlineKnn(train, test, labels, every, settings.k, settings.temperature)]


def stop_on_interrupt(loop: Loop) -> None:
    """The first Ctrl-C or SIGTERM saves after the step at hand, the second ends at once."""

    def interrupt(signum: int, frame: Any) -> None:
        loop.interrupted = True
        for number in STOPS:
            signal.signal(number, signal.default_int_handler)

    for number in STOPS:
        signal.signal(number, interrupt)


def threads_of(workers_here: int) -> int:
    """Compute threads of one of several workers on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // max(workers_here, 1))
