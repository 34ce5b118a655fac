"""Weighted nearest neighbours (Wu et al. 2018, "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination", section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate.labels import check_pair

CHUNK = 1 << 24  # similarities held at once: 64 MiB of float32


@torch.no_grad()
def knn(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
    classes: int | None = None,
) -> Tensor:
    """Predicts labels by the vote of the nearest training samples.

    A neighbour of cosine similarity s gives exp(s / temperature) to its class; the class with the
    largest sum wins. A training set smaller than `k` votes as a whole.

    Args:
        train_x: (N, D) features; need not be normalised.
        train_y: (N,) labels >= 0.
        test_x: (M, D) features.
        k: neighbours that vote.
        temperature: lower values trust the nearest neighbours more.
        classes: number of classes; by default the largest training label + 1.

    Returns:
        (M,) int64 predicted labels, on the device of `test_x`.
    """
    labels = check_pair(train_x, train_y, "training")
    if k < 1 or temperature <= 0:
        raise RayclError(
            f"kNN: k={k} and temperature={temperature} were given; both must be positive"
        )
    classes = classes or int(labels.max()) + 1
    bank = F.normalize(train_x.float(), dim=1)
    queries = F.normalize(test_x.to(bank), dim=1)
    k = min(k, len(bank))

    predictions = []
    for part in queries.split(max(1, CHUNK // len(bank))):
        similarity, neighbour = (part @ bank.T).topk(k, dim=1)
        # Relative to the nearest one: the same winner, and no overflow at low temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(part), classes).scatter_add_(1, labels[neighbour], weight)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions).to(test_x.device) if predictions else labels.new_empty(0)
