"""Weights that make classes occur equally often: those of the data, or those a method finds."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from raycl.data.folder import Folder
from raycl.data.storage import Unavailable
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

    They lie beside the checkpoints, where read tasks on other nodes and a resumed run find them.
    """

    place: Folder
    count: int

    def write(self, epoch: int, labels: np.ndarray) -> None:
        """Sets the labels (M,) of the samples in the order of the corpus."""
        if labels.shape != (self.count,):
            raise ValueError(f"{self.count} labels are needed, got an array of {labels.shape}")
        file = io.BytesIO()
        np.save(file, labels)
        self.place.write(f"{epoch:06d}.npy", file.getbuffer())

    def __call__(self, epoch: int) -> np.ndarray:
        try:
            return evened(np.load(io.BytesIO(self.place.read(f"{epoch:06d}.npy"))))
        except (FileNotFoundError, Unavailable):
            raise RayclError(
                f"data.balance=method: the method gave no labels for epoch {epoch}; it has to call "
                f"corpus.balance() before every epoch"
            ) from None
