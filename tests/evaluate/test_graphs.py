"""Protocols of graphs on data whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate.graphs import COSTS, Scores, clusters, graph_svm, node_probe, svm_guesses


def blobs(rows: int, distance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes of 8 features around points at right angles."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    return torch.randn(rows, 8, generator=draw) + distance * torch.eye(8)[labels], labels


def test_scores_are_summed_up() -> None:
    scores = Scores((0.5, 0.7, 0.9))
    assert scores.mean == pytest.approx(0.7)
    assert scores.deviation == pytest.approx(0.2)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_fifty_probes_at_once_are_fifty_probes(weight_decay: float) -> None:
    """Against the released loop, on classes that overlap so that starts matter."""
    (train_x, train_y), (test_x, test_y) = blobs(24, 1), blobs(300, 1, seed=1)
    found = node_probe(train_x, train_y, test_x, test_y, runs=4, weight_decay=weight_decay)
    start = torch.Generator().manual_seed(0)
    bound = (6 / 11) ** 0.5
    weights = torch.rand(4, 3, 8, generator=start) * 2 * bound - bound
    for weight, accuracy in zip(weights, found.values, strict=True):
        probe = nn.Linear(8, 3)
        probe.weight.data, probe.bias.data = weight.clone(), torch.zeros(3)
        optimizer = torch.optim.Adam(probe.parameters(), lr=0.01, weight_decay=weight_decay)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(probe(train_x), train_y).backward()
            optimizer.step()
        expected = (probe(test_x).argmax(1) == test_y).double().mean().item()
        assert accuracy == pytest.approx(expected, abs=1 / 300 + 1e-9)
    assert found.deviation > 0


def test_probes_of_easy_and_of_meaningless_features() -> None:
    (train_x, train_y), (test_x, test_y) = blobs(60, 30), blobs(300, 30, seed=1)
    easy = node_probe(train_x, train_y, test_x, test_y, runs=3)
    assert easy.values == (1.0, 1.0, 1.0) and easy.deviation == 0
    with torch.inference_mode():
        train_x = torch.ones(60, 8)
    assert node_probe(train_x, train_y, test_x * 0, test_y, runs=3).mean == pytest.approx(1 / 3)


def test_svm_of_easy_and_of_meaningless_features() -> None:
    x, y = blobs(60, 9)
    scores = graph_svm(x, y)
    assert scores.values == (1.0,) * 10
    noise, _ = blobs(60, 0, seed=2)
    assert graph_svm(noise, y).mean == pytest.approx(1 / 3, abs=0.15)


@pytest.mark.parametrize("classes", [2, 3])
def test_svm_is_that_of_scikit_learn(classes: int) -> None:
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import LinearSVC

    from raycl.evaluate.labels import folds

    x, y = blobs(90, 1)
    x, y = x[y < classes], y[y < classes]
    theirs = [
        LinearSVC(C=cost, dual=False, tol=1e-9, max_iter=100_000).fit(x, y).predict(x)
        for cost in COSTS
    ]
    assert svm_guesses(x, y, x, COSTS).tolist() == np.stack(theirs).tolist()

    scores = graph_svm(x, y, seed=3)
    rest, held_out = folds(y, 10, 3)[0]
    machine = LinearSVC(dual=False, tol=1e-9, max_iter=100_000)
    search = GridSearchCV(machine, {"C": COSTS}, cv=folds(y[rest], 5, 3)).fit(x[rest], y[rest])
    assert scores.values[0] == search.score(x[held_out], y[held_out])
    assert len(scores.values) == 10 and 0.4 < scores.mean < 1


def test_clusters_of_blobs_and_of_noise() -> None:
    x, y = blobs(150, 9)
    found = clusters(x, y, runs=3)
    assert found["nmi"].values == found["ari"].values == (1.0,) * 3
    noise = clusters(blobs(150, 0, seed=2)[0], y, runs=3)
    assert noise["nmi"].mean < 0.05 and abs(noise["ari"].mean) < 0.05
    assert np.isfinite(noise["nmi"].deviation)


def test_mistakes_are_named() -> None:
    x, y = blobs(27, 1)
    with pytest.raises(RayclError, match="class 0 has 9 graphs"):
        graph_svm(x, y)
    with pytest.raises(RayclError, match="one class only"):
        node_probe(x, y * 0, x, y)
    with pytest.raises(RayclError, match="labels start at 0"):
        clusters(x, y - 1)
