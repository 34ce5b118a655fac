"""Labels: what the protocols ask of them, and the subsets that are drawn from them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from raycl.errors import RayclError

Labels = Tensor | np.ndarray


def few_labels(labels: Labels, per_class: int, seed: int) -> np.ndarray:
    """Draws the same number of samples from every class.

    With the same seed a smaller draw is part of every larger one.

    Args:
        labels: (N,) integers >= 0.
        per_class: samples to draw from each class that occurs in `labels`.
        seed: the draw depends on this and on `labels` only.

    Returns:
        (classes * per_class,) int64 positions in `labels`, ascending.

    Raises:
        RayclError: a class has too few samples; the message names it.
    """
    values = _integers(labels)
    if per_class < 1:
        raise RayclError(f"labels per class: {per_class} was given; allowed are 1 and more")
    classes, counts = np.unique(values, return_counts=True)
    if counts.min(initial=per_class) < per_class:
        label, count = classes[counts.argmin()], counts.min()
        raise RayclError(
            f"labels per class: class {label} has only {count} labelled sample(s), fewer than the"
            f" {per_class} asked for; ask for at most {count} or add samples of that class"
        )
    order = np.random.default_rng(seed).permutation(len(values))
    drawn = [order[values[order] == label][:per_class] for label in classes]
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)


def share_of_labels(labels: Labels, share: float, seed: int) -> np.ndarray:
    """Draws a share of every class's samples, and one at least.

    With the same seed a smaller share is part of every larger one.

    Args:
        labels: (N,) integers >= 0.
        share: in (0, 1]; counts are rounded up.

    Returns:
        int64 positions in `labels`, ascending.
    """
    values = _integers(labels)
    order = np.random.default_rng(seed).permutation(len(values))
    drawn = []
    for label, count in zip(*np.unique(values, return_counts=True), strict=True):
        drawn.append(order[values[order] == label][: math.ceil(round(share * count, 6))])
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)


def folds(labels: Labels, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits samples into stratified folds.

    Sizes of the folds differ by at most one, and so do the counts of every class. A class with
    fewer samples than folds is missing from some of them.

    Args:
        labels: (N,) integers >= 0.
        count: number of folds, 2 to N.
        seed: the split depends on this and on `labels` only.

    Returns:
        For each fold the positions (ascending, int64) outside it and inside it.
    """
    values = _integers(labels)
    if not 2 <= count <= len(values):
        raise RayclError(f"folds: {count} was given; allowed are 2 to {len(values)} (the samples)")
    shuffled = np.random.default_rng(seed).permutation(len(values))
    by_class = shuffled[np.argsort(values[shuffled], kind="stable")]
    # Dealing a class-sorted deck round robin is what makes the folds stratified.
    fold = np.empty(len(values), np.int64)
    fold[by_class] = np.arange(len(values)) % count
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(count)]


def check_pair(features: Tensor, labels: Tensor | None, name: str, classes: int = 2) -> Tensor:
    """Refuses features and labels that no protocol can score.

    Args:
        features: (N, D).
        labels: (N,) integers >= 0, or None where the data set has none.
        name: how messages call this part, such as "training".
        classes: distinct labels required.

    Returns:
        The labels as int64 on the device of the features.
    """
    if labels is None:
        raise RayclError(
            f"the {name} data has no labels, and this protocol needs them; import the data with"
            " class folders or a label field, or choose a protocol that needs no labels"
        )
    values = torch.from_numpy(_integers(labels)).to(features.device)
    if features.ndim != 2 or len(features) != len(values):
        raise RayclError(
            f"{name} features of shape {tuple(features.shape)} do not go with {len(values)} labels;"
            " one row of features per label is needed"
        )
    if len(values) == 0:
        raise RayclError(f"the {name} data is empty; at least one labelled sample is needed")
    found = values.unique()
    if len(found) < classes:
        raise RayclError(
            f"the {name} data holds one class only (label {found[0].item()}); a classifier needs at"
            " least two, so check the label field or add samples of another class"
        )
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        raise RayclError(
            f"{name} features hold NaN or infinity in {int((~finite).sum())} of {len(features)}"
            f" rows (the first is row {int((~finite).nonzero()[0])}); the encoder has diverged:"
            " evaluate an earlier checkpoint or train with a lower learning rate"
        )
    return values


def _integers(labels: Labels) -> np.ndarray:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise RayclError(
            f"labels: {values.dtype} of shape {values.shape} was given; one integer per sample is"
            " needed"
        )
    if values.min(initial=0) < 0:
        raise RayclError(
            f"labels: sample {int(values.argmin())} has label {values.min()}; labels start at 0, so"
            " leave unlabelled samples out"
        )
    return values.astype(np.int64)
