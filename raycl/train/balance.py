"""Weights that make classes occur equally often: those of the data, or those a method finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raycl.errors import RayclError


def evened(labels: np.ndarray) -> np.ndarray:
    """(M,) weights under which every class among `labels` (M,) is drawn equally often."""
    _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / counts[which]


@dataclass(frozen=True, eq=False)
class EveryEpoch:
    """The same weights in every epoch."""

    weights: np.ndarray

    def __call__(self, epoch: int) -> np.ndarray:
        return self.weights


@dataclass(frozen=True)
class MethodLabels:
    """Weights from the pseudo-labels that the method gave to `corpus.balance` before the epoch.

    They lie in the run directory, where read tasks on other nodes and a resumed run find them.
    """

    run: Path
    count: int

    def path(self, epoch: int) -> Path:
        return self.run / "pseudo-labels" / f"{epoch:06d}.npy"

    def write(self, epoch: int, labels: np.ndarray) -> None:
        """Sets the labels (M,) of the samples in the order of the corpus."""
        if labels.shape != (self.count,):
            raise ValueError(f"{self.count} labels are needed, got an array of {labels.shape}")
        path = self.path(epoch)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, labels)
        partial.replace(path)

    def __call__(self, epoch: int) -> np.ndarray:
        try:
            return evened(np.load(self.path(epoch)))
        except FileNotFoundError:
            raise RayclError(
                f"data.balance=method: the method gave no labels for epoch {epoch}; it has to call "
                f"corpus.balance() before every epoch"
            ) from None
