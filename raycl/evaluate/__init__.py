"""Protocols that score an encoder from its features and maps; no Ray, no training of encoders."""

from __future__ import annotations

from raycl.evaluate.dense import dense_probe, miou
from raycl.evaluate.detection import average_precision
from raycl.evaluate.geometry import alignment, linear_cka, uniformity
from raycl.evaluate.knn import knn
from raycl.evaluate.labels import few_labels, folds
from raycl.evaluate.linear import linear_lbfgs, linear_probe, linear_sgd
from raycl.evaluate.spectrum import embedding_std, rank_me

__all__ = [
    "alignment",
    "average_precision",
    "dense_probe",
    "embedding_std",
    "few_labels",
    "folds",
    "knn",
    "linear_cka",
    "linear_lbfgs",
    "linear_probe",
    "linear_sgd",
    "miou",
    "rank_me",
    "uniformity",
]
