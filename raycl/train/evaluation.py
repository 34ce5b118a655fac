"""Scores a run: its encoder, beside raw pixels and its untrained self, by published protocols."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycl import recipe as recipes
from raycl.data.connect import connected
from raycl.data.folder import Folder
from raycl.data.loader import walk
from raycl.data.order import Order, singles
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.evaluate.geometry import linear_cka
from raycl.evaluate.knn import knn
from raycl.evaluate.labels import check_pair, few_labels
from raycl.evaluate.linear import linear_lbfgs, linear_sgd
from raycl.methods.base import Method
from raycl.recipe import Recipe
from raycl.train import checkpoint, graph_scores, scores
from raycl.train.corpus import ShardCorpus
from raycl.train.memory import keep_freed_memory
from raycl.train.run import absolute, open_data
from raycl.train.worker import held_out, info_of, require, training_corpus
from raycl.views.image import Crop, ImageView
from raycl.views.packing import GraphView

MAPPED = 2000  # samples of the embedding map
Row = dict[str, Any]

OF_IMAGES = ("knn", "linear", "linear-sgd")
OF_ARRAYS = ("knn", "linear", "zero_shot")  # of samples without images, too
OF_GRAPHS = ("nodes", "graphs", "clusters")
OF_ENCODERS = {
    "dense": scores.dense,
    "localization": scores.localization,
    "backgrounds": scores.backgrounds,
    "geometry": scores.geometry,
}


class Pixels(nn.Module):
    """Raw pixels as features: the baseline that every encoder has to beat."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Mean colours of cells of 8 x 8 pixels."""
        return {"colours": F.avg_pool2d(x, 8, ceil_mode=True)}


def evaluate(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    baselines: bool = False,
    best: bool = False,
    name: str = "evaluation",
    listen: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Scores the newest checkpoint; writes RUN/evaluation.json and RUN/embedding.npz.

    Under another `name`, of other data or protocols, it writes RUN/NAME.json alone.

    Args:
        overrides: fields of the run's recipe to change, such as another `data.test`.
        best: score the best checkpoint by the recipe's `trainer.checkpoint.best` instead.
        baselines: also raw pixels and the encoder as it was before training.
        listen: hears what is being computed.

    Returns:
        What evaluation.json holds: `rows` with representation, labels, protocol, metric, score.
    """
    keep_freed_memory()
    recipe = absolute(recipes.load(run, overrides))
    saved = checkpoint_of(run, recipe, best)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = training_corpus(recipe, open_data(recipe, "train"), device)
    test = held_out(recipe, train)
    _check(recipe, train, test)
    encoders: dict[str, Callable[[], nn.Module]] = {}
    if baselines:
        if isinstance(train.view, GraphView):
            of_graphs = "nodes" not in recipe.evaluation.protocols
            encoders["node features"] = lambda: graph_scores.NodeFeatures(of_graphs)
        else:
            encoders["raw pixels"] = Pixels
        encoders["untrained encoder"] = lambda: _untrained(recipe, train)
    method = trained(recipe, train.shards, saved).to(device).eval()
    encoders["trained encoder"] = lambda: method.encoder
    rows: list[Row] = []
    if baselines and "localization" in recipe.evaluation.protocols:
        rows += scores.centre(test)
    tasks = {"graphs", "clusters"} & set(recipe.evaluation.protocols)
    ray = connected(recipe.trainer.address) if tasks else contextlib.nullcontext()
    with ray:  # one for the tasks of all encoders
        for representation, make in encoders.items():
            listen(f"scoring {representation}")
            encoder = make().to(device).eval()
            features = test.embed(encoder)[1]
            found = _scores(recipe, method, encoder, train, test, features)
            rows += [{"representation": representation, "test": len(test), **row} for row in found]
    result = {
        "seed": recipe.trainer.seed,
        "step": int(saved.name.removeprefix("step-")),
        "rows": rows,
    }
    _write_json(run / f"{name}.json", result)
    if name == "evaluation":
        _write_map(run, features, test)
    return result


def _scores(
    recipe: Recipe,
    method: Method,
    encoder: nn.Module,
    train: ShardCorpus,
    test: ShardCorpus,
    features: Tensor,
) -> list[Row]:
    """Scores of one encoder, whose features of the test set are at hand, by all protocols."""
    found = _of_images(recipe, encoder, train, test, features)
    for protocol in recipe.evaluation.protocols:
        scored: list[Row] = []
        if protocol in OF_GRAPHS:
            scored = graph_scores.scores(recipe, protocol, features, test)
        elif protocol in OF_ENCODERS:
            scored = OF_ENCODERS[protocol](recipe, encoder, train, test)
        found += [{"protocol": protocol, **score} for score in scored]
    if method.encoder is encoder and "classifier" in recipe.evaluation.protocols:
        found += scores.classifier(method, train, test)
    if method.encoder is encoder and "detection" in recipe.evaluation.protocols:
        found += scores.detection(method, train, test)
    if method.encoder is encoder and "zero_shot" in recipe.evaluation.protocols:
        found += scores.zero_shot(recipe, method, train, test)
    return found


def compare(run: Path, other: Path, overrides: Sequence[str] = ()) -> float:
    """Linear CKA of the newest encoders of two runs, from features of the test set of the first.

    Each encoder sees the images by its own run's evaluation view: its size and normalisation.

    Args:
        overrides: fields of the recipe of `run` to change, such as another `data.test`.
    """
    keep_freed_memory()
    mine, theirs = absolute(recipes.load(run, overrides)), absolute(recipes.load(other))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = []
    for place, recipe in ((run, mine), (other, theirs)):
        train = training_corpus(recipe, open_data(recipe, "train"), device)
        encoder = trained(recipe, train.shards, checkpoint_of(place, recipe, best=False)).encoder
        features.append(held_out(mine, train).embed(encoder.to(device))[1])
    return linear_cka(*features)


def checkpoint_of(run: Path, recipe: Recipe, best: bool) -> Folder:
    """The newest checkpoint of a run, or the best by its recipe's rule."""
    if not best:
        return checkpoint.require(run, recipe.trainer.storage)
    rule = recipe.trainer.checkpoint.best
    if rule is None:
        raise RayclError(
            "trainer.checkpoint.best: names no metric, so there is no best checkpoint; add "
            "'trainer.checkpoint.best={metric: knn}', before training to have it kept"
        )
    found = checkpoint.best(checkpoint.folder(run, recipe.trainer.storage), rule.metric, rule.mode)
    if found is None:
        raise RayclError(f"{run}: no checkpoint holds the metric {rule.metric!r}")
    return found


def _untrained(recipe: Recipe, train: ShardCorpus) -> nn.Module:
    torch.manual_seed(recipe.trainer.seed)
    return recipe.build(info_of(recipe, train.shards)).encoder


def trained(recipe: Recipe, shards: Shards, saved: Folder) -> Method:
    """The method of a run as it was when a checkpoint was written."""
    method = recipe.build(info_of(recipe, shards))
    method.load_state_dict(checkpoint.load(saved)["method"])
    return method


def _check(recipe: Recipe, train: ShardCorpus, test: ShardCorpus) -> None:
    """Refuses data that lack what a protocol of the recipe scores with."""
    for protocol in recipe.evaluation.protocols:
        if protocol in OF_GRAPHS:
            graph_scores.check(recipe, protocol, test)
        elif protocol not in OF_ARRAYS and not isinstance(train.view, ImageView):
            others = (*OF_ARRAYS, *OF_GRAPHS) if isinstance(train.view, GraphView) else OF_ARRAYS
            raise RayclError(
                f"evaluation.protocols: {protocol} looks at images, and the samples of "
                f"{train.shards.place} are none; for them are {', '.join(others)}"
            )
        if protocol == "classifier":
            scores.check_classifier(recipe, test)
        if protocol == "detection":
            scores.check_detection(recipe, test)
        if protocol == "zero_shot":
            scores.check_zero_shot(recipe, train, test)
        if protocol in (*OF_IMAGES, "backgrounds"):
            require("label", protocol, train=train, test=test)
            check_pair(torch.zeros(len(train), 1), train.labels(), "training")
        if protocol == "dense":
            require("mask", protocol, train=train, test=test)
        if protocol in ("localization", "backgrounds"):
            require("mask", protocol, test=test)


def _of_images(
    recipe: Recipe, encoder: nn.Module, train: ShardCorpus, test: ShardCorpus, test_x: Tensor
) -> list[Row]:
    """Accuracies of classifiers of whole images, with all labels and with few."""
    protocols = [name for name in recipe.evaluation.protocols if name in OF_IMAGES]
    if not protocols:
        return []
    train_x = train.embed(encoder)[1]
    train_y, test_y = train.labels(), test.labels()
    settings, seed = recipe.evaluation, recipe.trainer.seed
    subsets = {"all": np.arange(len(train))}
    for count in settings.few:
        subsets[f"{count} a class"] = few_labels(train_y, count, seed)
    rows: list[Row] = []
    for labels, chosen in subsets.items():
        x, y = train_x[chosen], train_y[chosen]
        for protocol in protocols:
            if protocol == "knn":
                k, temperature = settings.knn.k, settings.knn.temperature
                guess = knn(x, y, test_x, k=k, temperature=temperature)
                accuracy = (guess == test_y).double().mean().item()
            elif protocol == "linear":
                accuracy = linear_lbfgs(x, y, test_x, test_y, seed=seed)
            else:
                accuracy = linear_sgd(
                    _augmented(recipe, encoder, train, chosen),
                    test_x,
                    test_y,
                    samples=len(chosen),
                    classes=int(max(train_y.max(), test_y.max())) + 1,
                )
            rows.append(
                {
                    "labels": labels,
                    "protocol": protocol,
                    "metric": "accuracy",
                    "score": accuracy,
                    "train": len(x),
                }
            )
    return rows


def _augmented(
    recipe: Recipe, encoder: nn.Module, train: ShardCorpus, chosen: np.ndarray
) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
    """Features of randomly cropped and flipped images, anew every epoch (paper, appendix B.6)."""
    size = min(recipe.evaluation.batch, len(chosen))
    order = Order(singles(train.ids[chosen]), 1, size, recipe.trainer.seed)
    flip = next(iter(recipe.streams.values())).first.flip
    view = train.image_view.model_copy(update={"crop": Crop(), "flip": flip})
    drawn = replace(train, view=view, batch=size)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        ids = order.plan(epoch).reshape(-1)
        for batch in replace(drawn, ids=ids).batches(seed=recipe.trainer.seed, epoch=epoch):
            with torch.no_grad():  # and not around the yield: whoever iterates needs gradients
                features = encoder(batch["view"]).flatten(1).float().cpu()
            yield features, batch["label"].cpu()

    return batches


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1))
    partial.replace(path)


def _write_map(run: Path, features: Tensor, test: ShardCorpus) -> None:
    """Embeddings of some test samples, for the report and TensorBoard's projector."""
    from torch.utils.tensorboard import SummaryWriter

    labels = names = None
    if isinstance(test.view, GraphView) and len(features) != len(test):
        labels = graph_scores.labels_of_nodes(test)[0].numpy()
    elif "label" in test.shards.fields:
        labels = test.labels().numpy()
    features = features[:MAPPED]
    arrays: dict[str, Any] = {"features": features.numpy().astype(np.float32)}
    if labels is not None:
        labels = labels[:MAPPED]
        classes = test.shards.classes or [str(i) for i in range(labels.max() + 1)]
        names = [classes[label] if label >= 0 else "no class" for label in labels]
        arrays |= {"labels": labels, "classes": json.dumps(classes)}
    np.savez_compressed(run / "embedding.npz", **arrays)
    ids = test.ids[: len(features)]
    pictures = None
    if isinstance(test.view, ImageView):
        batches = walk(test.shards, test.view, ids, batch=test.batch, device=torch.device("cpu"))
        pictures = torch.cat([batch["view"] for batch in batches]).clamp(0, 1)
    writer: Any = SummaryWriter(str(run / "tensorboard" / "projector"))
    writer.add_embedding(features, metadata=names, label_img=pictures)
    writer.close()
