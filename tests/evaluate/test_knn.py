from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raycl.errors import RayclError
from raycl.evaluate import knn as weighted_knn


def reference(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int, temperature: float
) -> list[int]:
    """The vote written out, one test sample and one neighbour at a time."""
    predictions = []
    for query in test_x.tolist():
        scored = []
        for row, label in zip(train_x.tolist(), train_y.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            scored.append((dot / math.hypot(*query) / math.hypot(*row), label))
        scored.sort(reverse=True)
        votes: dict[int, float] = {}
        for similarity, label in scored[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        predictions.append(max(votes, key=lambda label: votes[label]))
    return predictions


def data(train: int = 60, test: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator)
    labels = torch.arange(train + test) % 4
    x = centres[labels] + 1.5 * torch.randn(train + test, 6, generator=generator)
    x = x * (0.1 + 5 * torch.rand(train + test, 1, generator=generator))
    return x[:train], labels[:train], x[train:]


@pytest.mark.parametrize("k", [1, 3, 20, 60])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_agrees_with_the_vote_written_out(k: int, temperature: float) -> None:
    train_x, train_y, test_x = data()
    expected = reference(train_x, train_y, test_x, k, temperature)
    got = weighted_knn(train_x, train_y, test_x, k=k, temperature=temperature)
    assert got.tolist() == expected
    assert len(set(expected)) > 1


def test_temperature_decides_between_one_near_and_two_far_neighbours() -> None:
    train_x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    train_y = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert weighted_knn(train_x, train_y, query, k=3, temperature=0.07).tolist() == [0]
    assert weighted_knn(train_x, train_y, query, k=3, temperature=1.0).tolist() == [1]


def test_a_low_temperature_does_not_overflow() -> None:
    train_x, train_y, test_x = data()
    nearest = weighted_knn(train_x, train_y, test_x, k=1)
    assert torch.equal(weighted_knn(train_x, train_y, test_x, temperature=1e-3), nearest)


def test_fewer_training_samples_than_k_all_vote() -> None:
    train_x, train_y, test_x = data(train=30)
    everything = weighted_knn(train_x, train_y, test_x, k=30)
    assert torch.equal(weighted_knn(train_x, train_y, test_x, k=200), everything)


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    train_x, train_y, test_x = data()
    whole = weighted_knn(train_x, train_y, test_x, k=5)
    monkeypatch.setattr(sys.modules["raycl.evaluate.knn"], "CHUNK", 7 * len(train_x))
    assert torch.equal(weighted_knn(train_x, train_y, test_x, k=5), whole)


@pytest.mark.parametrize("bad", [{"k": 0}, {"temperature": 0.0}])
def test_refuses_a_vote_of_nobody(bad: dict[str, float]) -> None:
    train_x, train_y, test_x = data()
    with pytest.raises(RayclError, match="must be positive"):
        weighted_knn(train_x, train_y, test_x, **bad)


def test_refuses_a_single_class() -> None:
    train_x, train_y, test_x = data()
    with pytest.raises(RayclError, match="one class only"):
        weighted_knn(train_x, train_y * 0, test_x)
