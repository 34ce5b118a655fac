"""Protocols of whole images and masks: each walks the data once and asks `raycl.evaluate`.

What they are shown is the central square that `ImageView.evaluation` cuts, of the mask too: what
lies outside it does not count.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from raycl.evaluate.dense import confusion, dense_probe, histograms, ious, miou, segment
from raycl.nn.backbones.encoder import last_map
from raycl.recipe import Recipe
from raycl.train.corpus import ShardCorpus

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
        size = (test.view.size, test.view.size)
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
