"""The order: a pure function that belongs to lanes."""

from __future__ import annotations

import numpy as np
import pytest

from raycl.data.order import PADDING, Order, singles
from raycl.errors import RayclError


def test_every_sample_once_per_epoch_and_another_permutation_in_the_next() -> None:
    order = Order(singles(96), lanes=4, batch=6, seed=3)
    first, second = order.plan(0), order.plan(1)
    assert first.shape == (4, 4, 6, 1)
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(96))
    assert (first != second).any() and (first.ravel() != np.arange(96)).any()
    assert (order.plan(0) == first).all()
    assert (Order(singles(96), 4, 6, seed=4).plan(0) != first).any()


def test_the_tail_that_fills_no_step_is_another_every_epoch() -> None:
    order = Order(singles(50), lanes=2, batch=8)
    assert order.steps == 3
    left_out = [set(range(50)) - set(order.plan(e).ravel()) for e in range(3)]
    assert all(len(left) == 2 for left in left_out) and len(set(map(frozenset, left_out))) > 1


def test_evaluation_walks_every_sample_once_without_dropping() -> None:
    order = Order(singles(50), lanes=2, batch=8, kind="sequential", drop_last=False)
    plan = order.plan(0).ravel()
    assert order.steps == 4
    assert list(plan[:50]) == list(range(50)) and (plan[50:] == PADDING).all()


def test_subsets_and_pairs_travel_as_they_are() -> None:
    subset = np.array([7, 3, 11, 5])
    assert sorted(Order(singles(subset), 1, 2).plan(0).ravel()) == [3, 5, 7, 11]
    pairs = np.arange(24).reshape(12, 2)
    plan = Order(pairs, lanes=2, batch=3).plan(0)
    assert plan.shape == (2, 2, 3, 2)
    assert (plan[..., 1] == plan[..., 0] + 1).all()


def test_weights_draw_with_replacement_in_proportion() -> None:
    weights = np.array([0.0, 1.0, 3.0])
    order = Order(singles(np.repeat([0, 1, 2], 2000)), 1, 6000, weights=np.repeat(weights, 2000))
    share = np.bincount(order.plan(0).ravel(), minlength=3) / 6000
    assert share[0] == 0
    assert share[1:] == pytest.approx([0.25, 0.75], abs=0.02)
    assert len(np.unique(order.plan(0))) == 2


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(4), np.zeros(4), np.full(4, np.nan)])
def test_unusable_weights_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(RayclError, match=r"data\.weights"):
        Order(singles(4), 1, 2, weights=weights)


def test_too_few_samples_for_a_global_batch() -> None:
    with pytest.raises(RayclError, match=r"10 samples do not fill .* 4 lanes x 8"):
        Order(singles(10), lanes=4, batch=8)
