"""Zero-shot accuracies: per class, of seen and unseen classes, and their harmonic mean."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def per_class_accuracy(guess: Tensor, labels: Tensor) -> float:
    """Mean over the classes of `labels` of the share that is guessed right; both (N,)."""
    right = (guess == labels).double()
    return float(torch.stack([right[labels == c].mean() for c in labels.unique()]).mean())


def harmonic_mean(seen: float, unseen: float) -> float:
    """H = 2 S U / (S + U); 0 where both are."""
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


def softmax_classifier(
    x: Tensor, y: Tensor, *, batch: int, epochs: int, seed: int = 0
) -> Iterator[nn.Linear]:
    """A linear classifier after each of its epochs (CE-GZSL's: Adam, 1e-3, betas 0.5 and 0.999).

    Args:
        x: features (N, D) on the CPU or a GPU.
        y: their labels (N,), from 0; classes without a sample are never learned to be guessed.
        batch: samples of an update.
    """
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.Linear(x.shape[1], int(y.max()) + 1)
    with torch.no_grad():
        classifier.weight.normal_(std=0.02, generator=generator)
        classifier.bias.zero_()
    classifier.to(x.device)
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-3, betas=(0.5, 0.999))
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(classifier(x[rows]), y[rows]).backward()
            optimizer.step()
        yield classifier


def generalized(
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    unseen: Tensor,
    *,
    batch: int,
    epochs: int = 25,
    seed: int = 0,
) -> list[dict[str, float]]:
    """S, U and H of a classifier of all classes, after each of its epochs.

    The published numbers are of the epoch whose H is best on the test set itself; the last epoch's
    are the ones that chose nothing there.

    Args:
        x, y: features (N, D) and labels (N,) of real seen and synthesized unseen samples.
        test_x, test_y: those of all test samples.
        unseen: the unseen classes (K,).
    """
    new = torch.isin(test_y, unseen)
    curve = []
    for classifier in softmax_classifier(x, y, batch=batch, epochs=epochs, seed=seed):
        with torch.no_grad():
            guess = classifier(test_x).argmax(1)
        s, u = (per_class_accuracy(guess[part], test_y[part]) for part in (~new, new))
        curve.append({"S": s, "U": u, "H": harmonic_mean(s, u)})
    return curve


def conventional(
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    batch: int,
    epochs: int = 100,
    seed: int = 0,
) -> list[float]:
    """Accuracy of a classifier of the unseen classes alone on their test samples, by epoch."""
    classes, own = y.unique(return_inverse=True)
    found = []
    for classifier in softmax_classifier(x, own, batch=batch, epochs=epochs, seed=seed):
        with torch.no_grad():
            found.append(per_class_accuracy(classes[classifier(test_x).argmax(1)], test_y))
    return found
