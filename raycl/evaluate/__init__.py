"""Protocols that score an encoder from its features and maps; no Ray, no training of encoders."""

from __future__ import annotations

from raycl.evaluate.dense import dense_probe, miou
from raycl.evaluate.detection import average_precision
from raycl.evaluate.geometry import alignment, linear_cka, uniformity
from raycl.evaluate.graphs import clusters, graph_svm, node_probe
from raycl.evaluate.knn import knn
from raycl.evaluate.labels import few_labels, folds
from raycl.evaluate.linear import linear_lbfgs, linear_probe, linear_sgd
from raycl.evaluate.spectrum import alpha_req, embedding_std, rank_me

__all__ = [
    "alignment",
    "alpha_req",
    "average_precision",
    "clusters",
    "dense_probe",
    "embedding_std",
    "few_labels",
    "folds",
    "graph_svm",
    "knn",
    "linear_cka",
    "linear_lbfgs",
    "linear_probe",
    "linear_sgd",
    "miou",
    "node_probe",
    "rank_me",
    "uniformity",
]
