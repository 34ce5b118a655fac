"""Dense linear probe: a 1x1 convolution on the frozen encoder's last map, scored by mean IoU.

Cross-entropy over the labelled pixels, with the logits of each cell repeated for all its pixels,
depends on a cell's pixels through the count of each class alone. So the probe is fitted to cells
with soft targets, exactly and without upsampling; bilinear logits are for the test.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate.labels import folds
from raycl.evaluate.linear import L2, Probe, _fits, _logits, _moments

AT_ONCE = 16  # images whose logits are upsampled together


def histograms(masks: Tensor, grid: tuple[int, int], ignore: int | None) -> Tensor:
    """How many pixels of each class the cells of a map have.

    A pixel belongs to the cell whose logits nearest-neighbour upsampling would give it.

    Args:
        masks: (N, H, W) uint8, a class for every pixel.
        grid: rows and columns of the map.
        ignore: label of pixels that do not count; None: all do.

    Returns:
        (N, h, w, K) float32; K - 1 is the highest class of these masks.
    """
    labels = masks.long()
    kept = labels >= 0 if ignore is None else labels != ignore
    classes = int(labels[kept].max()) + 1 if kept.any() else 1
    image, row, column = (torch.arange(size, device=masks.device) for size in masks.shape)
    cell = (row * grid[0] // len(row))[:, None] * grid[1] + column * grid[1] // len(column)
    cells = image[:, None, None] * (grid[0] * grid[1]) + cell
    counts = torch.bincount(
        (cells * classes + labels)[kept], minlength=len(masks) * grid[0] * grid[1] * classes
    )
    return counts.view(len(masks), *grid, classes).float()


def dense_probe(x: Tensor, counts: Tensor, image: Tensor, *, seed: int = 0) -> Probe:
    """Logistic regression of the classes of pixels on the standardised features of their cells.

    The L2 strength is the one of the highest mean IoU, cells being given one class each, on a
    held-out tenth of the images (ties: lowest cross-entropy): cells of one image are too alike to
    be parted. The final fit uses all images.

    Args:
        x: (M, D) features of cells.
        counts: (M, K) labelled pixels of each class; cells without any are left out.
        image: (M,) which image a cell is of.
        seed: decides which images are held out.

    Raises:
        RayclError: fewer than two images with labels, or fewer than two classes.
    """
    labelled = counts.sum(dim=1) > 0
    x, counts, image = x[labelled], counts[labelled], image[labelled]
    images, found = image.unique(), counts.sum(dim=0).nonzero().flatten().tolist()
    if len(images) < 2 or len(found) < 2:
        raise RayclError(
            f"data.train: the masks hold the classes {found} on {len(images)} image(s) with "
            f"labelled pixels, and a dense probe needs two of both; masks that tell an object from "
            f"its background by 0 and 255 need evaluation.dense.ignore=null"
        )
    mean, scale = _moments(x)
    x = (x.float() - mean) / scale
    _, tenth = folds(np.zeros(len(images), np.int64), min(10, len(images)), seed)[0]
    held = torch.isin(image, images[torch.from_numpy(tenth).to(images.device)])
    classes = counts.shape[1]

    def score(weight: Tensor) -> tuple[float, float]:
        logits = _logits(weight, x[held])
        matrix = counts.new_zeros(classes, classes)
        matrix.index_add_(1, logits.argmax(dim=1), counts[held].T)
        return miou(matrix), -F.cross_entropy(logits, _targets(counts[held])).item()

    weights = _fits(x[~held], _targets(counts[~held]), classes, L2)
    best = max(range(len(L2)), key=lambda index: score(weights[index]))
    (weight,) = _fits(x, _targets(counts), classes, [L2[best]])
    return Probe(mean, scale, weight)


def segment(probe: Probe, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Classes (N, H, W) of maps (N, D, h, w): their logits, upsampled bilinearly to `size`."""
    logits = probe.logits(maps.movedim(1, -1)).movedim(-1, 1)
    parts = logits.split(AT_ONCE)  # all at once they take more memory than the encoder
    up = (F.interpolate(p, size, mode="bilinear", align_corners=False) for p in parts)
    return torch.cat([part.argmax(dim=1) for part in up])


def confusion(truth: Tensor, guess: Tensor, classes: int, ignore: int | None = 255) -> Tensor:
    """Pixels of every true class (row) by predicted class (column).

    Args:
        truth: labels of any shape.
        guess: classes of the same shape.
        classes: their number, K.
        ignore: label of pixels that do not count; None: all do.

    Returns:
        (K, K) int64.

    Raises:
        RayclError: a label is no class.
    """
    truth, guess = truth.long().flatten(), guess.long().flatten()
    if ignore is not None:
        kept = truth != ignore
        truth, guess = truth[kept], guess[kept]
    highest = int(truth.max()) if len(truth) else 0
    if highest >= classes:
        raise RayclError(
            f"data.test: a mask holds the label {highest}, and the classes are 0 to {classes - 1}, "
            f"those of the training masks; if it marks pixels without a class, set "
            f"evaluation.dense.ignore={highest}, else train on images that show it"
        )
    return torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, classes)


def ious(matrix: Tensor) -> Tensor:
    """Intersection over union of each class, (K,) float64, from a confusion matrix (K, K).

    NaN for a class that occurs neither in the masks nor among the predictions.
    """
    matrix = matrix.double()
    hit = matrix.diagonal()
    return hit / (matrix.sum(dim=0) + matrix.sum(dim=1) - hit)


def miou(matrix: Tensor) -> float:
    """Mean of `ious` over the classes that occur in the masks or among the predictions.

    This is the convention of openseg's RunningScore. HRNet's, which counts a class that occurs in
    neither as 0, would make the score depend on which images were left out of a test.
    """
    return float(ious(matrix).nanmean())


def _targets(counts: Tensor) -> Tensor:
    """Weights of classes (M, K) whose cross-entropy, a mean over cells, is a mean over pixels."""
    return counts * (len(counts) / counts.sum())
