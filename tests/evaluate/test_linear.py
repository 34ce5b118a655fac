from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate import few_labels, linear_lbfgs, linear_sgd
from raycl.evaluate.linear import _fits, _logits


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.from_numpy(images[order]).float()
    y = torch.from_numpy(labels[order]).long()
    return x[:1437], y[:1437], x[1437:], y[1437:]


Digits = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_a_fit_agrees_with_scikit_learn(digits: Digits, l2: float) -> None:
    x = torch.from_numpy(StandardScaler().fit_transform(digits[0])).float()
    y = digits[1]
    weight = _fits(x, y, 10, [l2])[0]
    reference = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-6, max_iter=2000)
    reference.fit(x.double().numpy(), y.numpy())
    expected = torch.from_numpy(reference.predict_proba(x.double().numpy()))
    difference = (_logits(weight, x).softmax(dim=1).double() - expected).abs()
    assert difference.max() < 0.02
    assert difference.mean() < 1e-3


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_more_features_than_samples_change_nothing(digits: Digits, l2: float) -> None:
    """60 digits in their 64 dimensions, and turned into 300."""
    x, y, test = digits[0][:60] / 16, digits[1][:60], digits[2] / 16
    reference = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-6, max_iter=2000).fit(x, y)
    expected = torch.from_numpy(reference.predict_proba(test))
    for turn in (torch.eye(64), torch.linalg.qr(torch.randn(300, 64)).Q):
        weight = _fits(x @ turn.T, y, 10, [l2])[0]
        assert weight.shape == (10, len(turn) + 1)
        found = _logits(weight, test @ turn.T).softmax(dim=1).double()
        difference = (found - expected).abs()
        assert difference.max() < 0.05 and difference.mean() < 1e-3


def test_lbfgs_reaches_the_best_of_scikit_learn_on_digits(digits: Digits) -> None:
    train_x, train_y, test_x, test_y = digits
    scaler = StandardScaler().fit(train_x)
    reference = max(
        LogisticRegression(C=c, max_iter=500)
        .fit(scaler.transform(train_x), train_y)
        .score(scaler.transform(test_x), test_y)
        for c in (0.01, 0.1, 1.0)
    )
    assert linear_lbfgs(*digits) == pytest.approx(reference, abs=0.012)
    assert reference > 0.95


def test_lbfgs_is_blind_to_shift_and_scale_of_each_feature(digits: Digits) -> None:
    train_x, train_y, test_x, test_y = digits
    scale = torch.logspace(-3, 3, train_x.shape[1])
    moved = linear_lbfgs(train_x * scale - 2 * scale, train_y, test_x * scale - 2 * scale, test_y)
    assert moved == pytest.approx(linear_lbfgs(*digits), abs=0.003)


def test_lbfgs_chooses_strong_regularisation_where_noise_would_win() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1000) % 2
    x = torch.randn(1000, 150, generator=generator) + 0.15 * (2 * y - 1).unsqueeze(1)
    train_x, train_y, test_x, test_y = x[:300], y[:300], x[300:], y[300:]
    train_y = torch.where(torch.rand(300, generator=generator) < 0.2, 1 - train_y, train_y)
    loose = _fits(train_x, train_y, 2, [1e-6])[0]
    overfit = (_logits(loose, test_x).argmax(dim=1) == test_y).float().mean()
    assert linear_lbfgs(train_x, train_y, test_x, test_y) > overfit + 0.05


@pytest.mark.parametrize("per_class", [1, 10])
def test_lbfgs_works_with_few_labels(digits: Digits, per_class: int) -> None:
    train_x, train_y, test_x, test_y = digits
    few = few_labels(train_y, per_class, seed=0)
    accuracy = linear_lbfgs(train_x[few], train_y[few], test_x, test_y)
    assert accuracy > {1: 0.4, 10: 0.8}[per_class]


def test_lbfgs_is_deterministic(digits: Digits) -> None:
    assert linear_lbfgs(*digits, seed=1) == linear_lbfgs(*digits, seed=1)


@pytest.mark.parametrize("part", ["training", "test"])
def test_lbfgs_refuses_missing_labels(digits: Digits, part: str) -> None:
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(RayclError, match=f"the {part} data has no labels"):
        linear_lbfgs(
            train_x,
            None if part == "training" else train_y,
            test_x,
            None if part == "test" else test_y,
        )


def test_lbfgs_refuses_one_class(digits: Digits) -> None:
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(RayclError, match="one class only"):
        linear_lbfgs(train_x, train_y * 0 + 3, test_x, test_y)


class Loader:
    """Batches of features in a new order each epoch."""

    def __init__(self, x: Tensor, y: Tensor, batch: int) -> None:
        self.x, self.y, self.batch = x, y, batch
        self.epochs: list[int] = []

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.epochs.append(epoch)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(self.batch):
            yield self.x[part], self.y[part]


def test_sgd_learns_digits(digits: Digits) -> None:
    train_x, train_y, test_x, test_y = digits
    loader = Loader(train_x / 16, train_y, 256)
    accuracy = linear_sgd(loader, test_x / 16, test_y, samples=len(train_x), classes=10)
    assert loader.epochs == list(range(90))
    assert accuracy > 0.9


def test_probes_take_features_made_in_inference_mode(digits: Digits) -> None:
    with torch.inference_mode():
        train_x, train_y, test_x, test_y = (part[:200].clone() for part in digits)
    loader = Loader(train_x / 16, train_y, 100)
    sgd = linear_sgd(loader, test_x / 16, test_y, samples=200, classes=10, epochs=30)
    assert min(sgd, linear_lbfgs(train_x, train_y, test_x, test_y)) > 0.7


def test_sgd_follows_the_published_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 5, generator=generator)
    y = torch.randint(0, 3, (96,), generator=generator)
    heads: list[nn.Linear] = []
    original = nn.Linear

    def spy(*args: int, **kwargs: torch.device) -> nn.Linear:
        heads.append(original(*args, **kwargs))
        return heads[-1]

    monkeypatch.setattr("torch.nn.Linear", spy)
    linear_sgd(Loader(x, y, 32), x, y, samples=96, classes=3, epochs=4)

    weight, bias = torch.zeros(3, 5), torch.zeros(3)
    velocity = [torch.zeros(3, 5), torch.zeros(3)]
    step = 0
    for epoch in range(4):
        for h, label in Loader(x, y, 32)(epoch):
            rate = 0.1 * 32 / 256 * 0.5 * (1 + math.cos(math.pi * step / 12))
            error = (h @ weight.T + bias).softmax(dim=1) - F.one_hot(label, 3)
            gradients = [error.T @ h / 32, error.mean(dim=0)]
            for index, (parameter, gradient) in enumerate(
                zip((weight, bias), gradients, strict=True)
            ):
                velocity[index] = 0.9 * velocity[index] + gradient
                parameter -= rate * (gradient + 0.9 * velocity[index])
            step += 1
    torch.testing.assert_close(heads[0].weight.detach(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(heads[0].bias.detach(), bias, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_y": None}, "the test data has no labels"),
        ({"classes": 1}, "at least two"),
        ({"batches": lambda epoch: []}, "training data is empty"),
    ],
)
def test_sgd_refuses_what_it_cannot_score(change: dict[str, object], message: str) -> None:
    x, y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])
    arguments: dict[str, object] = {
        "batches": Loader(x, y, 2),
        "test_x": x,
        "test_y": y,
        "samples": 4,
        "classes": 2,
    }
    with pytest.raises(RayclError, match=message):
        linear_sgd(**(arguments | change))  # type: ignore[arg-type]


def test_sgd_says_when_it_diverged() -> None:
    x = torch.tensor([[1e30], [-1e30]])
    with pytest.raises(RayclError, match="diverged at learning rate"):
        y = torch.tensor([0, 1])
        linear_sgd(Loader(x, y, 2), x, y, samples=2, classes=2, rate=1e10)
