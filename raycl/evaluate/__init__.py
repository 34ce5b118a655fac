"""Protocols that score an encoder from its features; no Ray, no images, no training of encoders."""

from __future__ import annotations

from raycl.evaluate.knn import knn
from raycl.evaluate.labels import few_labels, folds
from raycl.evaluate.linear import linear_lbfgs, linear_sgd
from raycl.evaluate.spectrum import embedding_std, rank_me

__all__ = [
    "embedding_std",
    "few_labels",
    "folds",
    "knn",
    "linear_lbfgs",
    "linear_sgd",
    "rank_me",
]
