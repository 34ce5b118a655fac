"""Protocols of whole images and masks: each walks the data once and asks `raycl.evaluate`.

What they are shown is the central square that `ImageView.evaluation` cuts, of the mask too: what
lies outside it does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.evaluate.backgrounds import partners, replace_backgrounds
from raycl.evaluate.dense import confusion, dense_probe, histograms, ious, miou, segment
from raycl.evaluate.detection import (
    average_precision,
    coco_tools,
    found_objects,
    true_objects,
)
from raycl.evaluate.geometry import alignment, uniformity
from raycl.evaluate.knn import knn
from raycl.evaluate.linear import linear_probe
from raycl.evaluate.localization import attention, check_foreground, foreground, overlap, pointed
from raycl.evaluate.spectrum import rank_me
from raycl.evaluate.zero_shot import conventional, generalized
from raycl.methods.base import Batch, Method, Stream
from raycl.nn.backbones.encoder import last_map
from raycl.recipe import Recipe
from raycl.train.corpus import ShardCorpus
from raycl.train.worker import require
from raycl.views.boxes import out_of_view
from raycl.views.image import MaskView

CELLS = 1 << 17  # of the training images, for a dense probe: 1 GiB of 2,048 features
Score = dict[str, Any]


@torch.no_grad()
def dense(recipe: Recipe, encoder: nn.Module, train: ShardCorpus, test: ShardCorpus) -> list[Score]:
    """Mean IoU of a dense probe, in the pixels of the view.

    It is fitted to all cells of the training images, or where these are many to as many of each
    image, drawn at random, as make `CELLS`.
    """
    ignore, seed = recipe.evaluation.dense.ignore, recipe.trainer.seed
    generator = torch.Generator().manual_seed(seed)
    room = max(1, CELLS // len(train))
    features, counts = [], []
    for batch in train.batches(masked=True):
        maps = last_map(encoder, batch["view"])
        pixels = histograms(batch["mask"], (maps.shape[2], maps.shape[3]), ignore).flatten(1, 2)
        drawn = torch.rand(pixels.shape[:2], generator=generator).argsort(1)[:, :room, None]
        drawn = drawn.to(maps.device)
        features.append(maps.flatten(2).mT.take_along_dim(drawn, 1))
        counts.append(pixels.take_along_dim(drawn, 1))
    classes = max(part.shape[2] for part in counts)
    x = torch.cat(features)
    y = torch.cat([F.pad(part, (0, classes - part.shape[2])) for part in counts])
    image = torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
    with torch.enable_grad():
        probe = dense_probe(x.flatten(0, 1), y.flatten(0, 1), image, seed=seed)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=x.device)
    for batch in test.batches(masked=True):
        size = (test.image_view.size, test.image_view.size)
        guess = segment(probe, last_map(encoder, batch["view"]), size)
        matrix += confusion(batch["mask"], guess, classes, ignore)
    of_classes = [round(iou, 4) if iou == iou else None for iou in ious(matrix).tolist()]
    return [
        {
            "labels": "all",
            "metric": "mIoU",
            "score": miou(matrix),
            "train": len(train),
            "ious": of_classes,
        }
    ]


def check_classifier(recipe: Recipe, test: ShardCorpus) -> None:
    """Refuses methods that classify nothing, and test data without what they classify."""
    _has_logits(recipe, "evaluation.protocols: 'classifier' scores a classifier that was trained")
    require("mask" if _dense(recipe.streams) else "label", "classifier", test=test)


def check_classes(recipe: Recipe) -> None:
    """Refuses to predict classes of images by methods that have none of them."""
    _has_logits(recipe, "predict: writes what a classifier says that was trained")
    if _dense(recipe.streams):
        raise RayclError(
            f"predict: {recipe.method_class.__name__} classifies pixels, and only classes of "
            "images are written"
        )


def _has_logits(recipe: Recipe, what: str) -> None:
    kind = recipe.method_class
    if kind.logits is Method.logits:
        raise RayclError(
            f"{what}, and {kind.__name__} has none; fine-tune one (`raycl pretrain supervised/... "
            "init_from=RUN`), or score or embed by the encoder"
        )


def _dense(streams: Mapping[str, Stream]) -> bool:
    return any(isinstance(v, MaskView) for s in streams.values() for v in s.views.values())


@torch.no_grad()
def classifier(method: Method, train: ShardCorpus, test: ShardCorpus) -> list[Score]:
    """Accuracy of the method's own classifier of images, or mean IoU of that of pixels."""
    row = {"protocol": "classifier", "labels": "all", "train": len(train)}
    if not _dense(method.streams):
        right = [method.logits(b["view"]).argmax(1) == b["label"] for b in test.batches()]
        return [{**row, "metric": "accuracy", "score": torch.cat(right).double().mean().item()}]
    total: Tensor | int = 0
    for batch in test.batches(masked=True):
        size = (test.image_view.size, test.image_view.size)
        logits = method.logits(batch["view"])
        up = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        ignore = method.config.ignore
        total = total + confusion(batch["mask"], up.argmax(1), logits.shape[1], ignore)
    return [{**row, "metric": "mIoU", "score": miou(total)}]  # type: ignore[arg-type]


def check_detection(recipe: Recipe, test: ShardCorpus) -> None:
    """Refuses methods that find no objects, and test data without any."""
    kind = recipe.method_class
    if kind.detections is Method.detections:
        raise RayclError(
            f"evaluation.protocols: 'detection' scores a detector that was trained, and "
            f"{kind.__name__} is none; fine-tune one (`raycl pretrain rcnn/... init_from=RUN`)"
        )
    require("objects", "detection", test=test)
    coco_tools()


@torch.no_grad()
def detection(method: Method, train: ShardCorpus, test: ShardCorpus) -> list[Score]:
    """COCO's average precision of boxes, and of masks where both the method and the data have them.

    Unlike all others, this protocol sees whole images, squeezed to the square of the view. Scored
    are boxes and masks in the pixels of the stored image.
    """
    whole = replace(test, view=test.image_view.model_copy(update={"whole": True}))
    fields = [name for name in ("objects", "instances") if name in test.shards.fields]
    masked = len(fields) > 1
    sizes, truth, found = [], [], []
    for batch in whole.batches():
        stored = test.shards.payloads(batch["id"].cpu().numpy(), fields)
        crops, flips = batch["view.box"], batch["view.flip"]
        for i, one in enumerate(method.detections(batch["view"])):
            view = (crops[i : i + 1], flips[i : i + 1], whole.image_view.size)
            boxes = out_of_view(one["boxes"][None], *view)[0]
            masked = masked and "masks" in one
            sizes.append(tuple(crops[i, 2:].tolist()))
            found.append(found_objects({**one, "boxes": boxes}, sizes[-1]))
            rows = test.shards.fields["objects"].decode(0, stored["objects"][i])
            truth.append(true_objects(rows, stored["instances"][i] if masked else None))
    kinds = {"bbox": ""} | ({"segm": "mask "} if masked else {})
    return [
        {
            "protocol": "detection",
            "labels": "all",
            "metric": prefix + metric,
            "score": score,
            "train": len(train),
        }
        for kind, prefix in kinds.items()
        for metric, score in average_precision(sizes, truth, found, kind).items()
    ]


def check_zero_shot(recipe: Recipe, train: ShardCorpus, test: ShardCorpus) -> None:
    """Refuses methods that make up no features, and data without labels."""
    kind = recipe.method_class
    if kind.synthesize is Method.synthesize:
        raise RayclError(
            f"evaluation.protocols: 'zero_shot' scores features that a method makes up for unseen "
            f"classes, and {kind.__name__} makes up none; leave it out"
        )
    require("label", "zero_shot", train=train, test=test)


def zero_shot(recipe: Recipe, method: Method, train: ShardCorpus, test: ShardCorpus) -> list[Score]:
    """Zero-shot accuracies of softmax classifiers, means over the classes.

    S, U and H of one of all classes, learned from real seen and made-up unseen samples; the
    accuracy of one of the unseen classes alone on their samples, and of one of the seen. "last" is
    of the classifier's last epoch; "best" of the one that is best on the test set itself, as
    published figures are. Besides the encoder, the samples themselves are classified, standardised.
    """
    unseen = np.setdiff1d(test.labels().numpy(), train.labels().numpy())
    if not len(unseen):
        raise RayclError("data.test: has no sample of a class that data.train has not")
    made_y = torch.from_numpy(unseen).repeat_interleave(recipe.evaluation.zero_shot.samples)
    device = next(method.parameters()).device
    generator = torch.Generator(device).manual_seed(recipe.trainer.seed)
    with torch.no_grad():
        made = method.synthesize(made_y.to(device), generator)
        made_x = method.encoder(made).float().cpu()
    learned = (train.embed(method.encoder)[1], made_x, test.embed(method.encoder)[1])
    as_they_are = (train.embed(nn.Identity())[1], made.cpu(), test.embed(nn.Identity())[1])
    mean, deviation = as_they_are[0].mean(0), as_they_are[0].std(0)
    deviation = torch.where(deviation > 0, deviation, 1)
    plain = tuple((x - mean) / deviation for x in as_they_are)
    y = (train.labels(), made_y, test.labels())
    rows = _zero_shot(recipe, learned, y)
    return rows + [
        {**row, "representation": "samples themselves"} for row in _zero_shot(recipe, plain, y)
    ]


def _zero_shot(recipe: Recipe, x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> list[Score]:
    """Rows of training, made-up and test samples (N, D) and their labels (N,)."""
    (real, made, test_x), (real_y, made_y, test_y) = x, y
    settings, seed = recipe.evaluation.zero_shot, recipe.trainer.seed
    new, batch, epochs = torch.isin(test_y, made_y), settings.samples, settings.epochs
    every, every_y = torch.cat([real, made]), torch.cat([real_y, made_y])
    how = {"batch": batch, "epochs": epochs, "seed": seed}
    curve = generalized(every, every_y, test_x, test_y, made_y.unique(), **how)
    alone = conventional(made, made_y, test_x[new], test_y[new], batch=batch, seed=seed)
    seen = conventional(real, real_y, test_x[~new], test_y[~new], **how)
    points = {"last": curve[-1], "best": max(curve, key=lambda point: point["H"])}
    found = {f"{k}, {name}": point[k] for name, point in points.items() for k in ("S", "U", "H")}
    found |= {"unseen alone, last": alone[-1], "unseen alone, best": max(alone)}
    found |= {"seen alone, last": seen[-1]}
    shared = {"protocol": "zero_shot", "labels": "all", "train": len(real)}
    return [{**shared, "metric": k, "score": v} for k, v in found.items()]


@torch.no_grad()
def localization(
    recipe: Recipe, encoder: nn.Module, train: ShardCorpus, test: ShardCorpus
) -> list[Score]:
    """Pointing game and attention-mask IoU, over the test images that show foreground."""
    found = []
    for batch in test.batches(masked=True):
        maps, inside = attention(last_map(encoder, batch["view"])), foreground(batch["mask"])
        shown = inside.any(dim=(1, 2))
        found.append(torch.stack([pointed(maps, inside), overlap(maps, inside)], 1)[shown])
    return _localized(found, test)


def centre(test: ShardCorpus) -> list[Score]:
    """What pointing at the centre and marking the whole image would score in `localization`."""
    found = []
    for batch in test.batches(masked=True):
        inside, half = foreground(batch["mask"]), test.image_view.size // 2
        middle, share = inside[:, half, half], inside.float()
        found.append(torch.stack([middle, share.mean(dim=(1, 2))], 1)[inside.any(dim=(1, 2))])
    return [
        {"representation": "centre, whole image", "protocol": "localization", **score}
        for score in _localized(found, test)
    ]


def _localized(found: list[Tensor], test: ShardCorpus) -> list[Score]:
    """Rows of batches (n, 2): whether each image was hit, and its IoU."""
    of_images = torch.cat(found).double()
    check_foreground(len(of_images), len(test))
    means = zip(("pointing", "IoU"), of_images.mean(dim=0).tolist(), strict=True)
    shared = {"labels": "no labels", "test": len(of_images)}
    return [{"metric": metric, "score": mean, **shared} for metric, mean in means]


@torch.no_grad()
def backgrounds(
    recipe: Recipe, encoder: nn.Module, train: ShardCorpus, test: ShardCorpus
) -> list[Score]:
    """Drop of kNN and linear accuracy on test images with backgrounds of another class.

    Test images that show no foreground are left out of both accuracies.
    """
    seed, settings = recipe.trainer.seed, recipe.evaluation.knn
    train_x, train_y, labels = train.embed(encoder)[1], train.labels(), test.labels()
    with torch.enable_grad():
        probe = linear_probe(train_x, train_y, seed=seed)
    donors = replace(test, ids=test.ids[partners(labels.numpy(), seed)])
    pairs = zip(test.batches(masked=True), donors.batches(masked=True), strict=True)
    features, shown = [], []
    for batch, donor in pairs:
        inside, others_inside = foreground(batch["mask"]), foreground(donor["mask"])
        images = replace_backgrounds(batch["view"], inside, donor["view"], others_inside)
        features.append(torch.stack([_embedded(encoder, x) for x in (batch["view"], images)]))
        shown.append(inside.any(dim=(1, 2)).cpu())
    kept = torch.cat(shown)
    check_foreground(int(kept.sum()), len(test))
    untouched, replaced = torch.cat(features, dim=1)[:, kept]

    def by_knn(x: Tensor) -> Tensor:
        return knn(train_x, train_y, x, k=settings.k, temperature=settings.temperature)

    rows = []
    for name, classify in (("kNN", by_knn), ("linear", lambda x: probe.logits(x).argmax(dim=1))):
        before, after = (
            (classify(x) == labels[kept]).double().mean().item() for x in (untouched, replaced)
        )
        rows.append(
            {
                "labels": "all",
                "metric": f"{name} drop",
                "score": before - after,
                "untouched": before,
                "replaced": after,
                "train": len(train),
                "test": int(kept.sum()),
            }
        )
    return rows


@torch.no_grad()
def geometry(
    recipe: Recipe, encoder: nn.Module, train: ShardCorpus, test: ShardCorpus
) -> list[Score]:
    """Alignment, uniformity and RankMe of two random training views of the test images.

    It is the encoder's features that are measured, not the projections that a loss may see.
    """
    view = next(iter(recipe.streams.values())).first
    drawn, seed = replace(test, view=view), recipe.trainer.seed
    x, y = (_features(encoder, drawn.batches(seed=seed, epoch=epoch)) for epoch in (0, 1))
    scores = {"alignment": alignment(x, y)}
    scores |= {"uniformity": (uniformity(x) + uniformity(y)) / 2}
    scores |= {"RankMe": (rank_me(x) + rank_me(y)) / 2}
    return [{"labels": "no labels", "metric": k, "score": v} for k, v in scores.items()]


def _features(encoder: nn.Module, batches: Iterable[Batch]) -> Tensor:
    return torch.cat([_embedded(encoder, batch["view"]) for batch in batches])


def _embedded(encoder: nn.Module, images: Tensor) -> Tensor:
    return encoder(images).flatten(1).float().cpu()
