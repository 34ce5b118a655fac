"""The order: a pure function that belongs to lanes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from raycl.data.order import (
    PADDING,
    Draw,
    Mixture,
    Order,
    Pages,
    Weighted,
    permute,
    sequential,
    shuffled,
    singles,
)
from raycl.errors import RayclError


def test_every_sample_once_per_epoch_and_another_permutation_in_the_next() -> None:
    order = Order(96, lanes=4, batch=6, seed=3)
    first, second = order.plan(0), order.plan(1)
    assert first.shape == (4, 4, 6, 1)
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(96))
    assert (first != second).any() and (first.ravel() != np.arange(96)).any()
    assert (order.plan(0) == first).all()
    assert (Order(96, 4, 6, seed=4).plan(0) != first).any()


def test_the_tail_that_fills_no_step_is_another_every_epoch() -> None:
    order = Order(50, lanes=2, batch=8)
    assert order.steps == 3
    left_out = [set(range(50)) - set(order.plan(e).ravel()) for e in range(3)]
    assert all(len(left) == 2 for left in left_out) and len(set(map(frozenset, left_out))) > 1


def test_evaluation_walks_every_sample_once_without_dropping() -> None:
    order = Order(50, lanes=2, batch=8, draw=sequential, drop_last=False)
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


def drawn(weights: np.ndarray, **settings: int) -> np.ndarray:
    order = Order(len(weights), 1, len(weights), draw=Weighted(lambda epoch: weights), **settings)
    return order.plan(0).ravel()


def test_weights_draw_with_replacement_in_proportion() -> None:
    weights = np.repeat([0.0, 1.0, 3.0], 2000)
    share = np.bincount(drawn(weights) // 2000, minlength=3) / 6000
    assert share[0] == 0
    assert share[1:] == pytest.approx([0.25, 0.75], abs=0.02)


def test_weights_may_change_with_the_epoch() -> None:
    order = Order(8, 2, 4, draw=Weighted(lambda epoch: np.arange(8) == epoch))
    assert (order.plan(3) == 3).all() and (order.plan(5) == 5).all()


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(4), np.zeros(4), np.full(4, np.nan)])
def test_unusable_weights_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(RayclError, match=r"data\.weights"):
        Order(4, 1, 2, draw=Weighted(lambda epoch: weights)).plan(0)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000, 70_001])
def test_permute_is_a_bijection_that_the_key_decides(count: int) -> None:
    index = np.arange(count)
    one, other = permute(index, count, 5, 0), permute(index, count, 5, 1)
    assert (np.sort(one) == index).all() and (np.sort(other) == index).all()
    assert count < 10 or (one != other).mean() > 0.5
    # The values at some positions do not depend on which others were asked for.
    some = index[:: max(count // 7, 1)]
    assert (permute(some, count, 5, 0) == one[some]).all()


def test_permute_mixes_as_a_random_permutation_does() -> None:
    count, keys = 60, 3000
    where = np.array([permute(np.arange(count), count, key) for key in range(keys)])
    # Each position holds each value equally often: chi-square of 60 x 60 cells, within 5 sigma.
    cells = np.array([np.bincount(where[:, i], minlength=count) for i in range(count)])
    freedom = (count - 1) ** 2
    chi = ((cells - keys / count) ** 2 / (keys / count)).sum()
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)
    # Neighbours stay neighbours no more often than by chance.
    steps = (np.abs(np.diff(where, axis=1)) == 1).mean()
    assert steps == pytest.approx(2 / count, rel=0.1)


def uneven(pages: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each page, and the page of each sample."""
    counts = np.random.default_rng(0).integers(1, 30, pages).astype(np.int32)
    return counts, np.repeat(np.arange(pages), counts)


def test_pages_are_read_by_one_lane_and_once() -> None:
    counts, page = uneven()
    order = Order(len(page), lanes=4, batch=8, seed=1, draw=Pages(counts, window=5))
    for epoch in range(3):
        plan = order.plan(epoch)
        assert len(np.unique(plan)) == plan.size
        lanes = [set(page[plan[:, lane].ravel()]) for lane in range(4)]
        shared = sum(len(a & b) for i, a in enumerate(lanes) for b in lanes[i + 1 :])
        assert shared <= 3  # the page at each of three borders
        for lane in range(4):  # a batch holds pages of a window, or of two that meet in it
            assert all(len(set(page[step])) <= 10 for step in plan[:, lane, :, 0])
    assert (order.plan(0) != order.plan(1)).any()


def test_pages_of_a_subset_hold_the_entries_that_are_said_to_lie_there() -> None:
    entries = np.array([[9], [2], [7], [4], [1], [6]])
    draw = Pages(np.array([2, 4], np.int32), 1, index=np.array([4, 1, 0, 2, 3, 5]))
    plan = Order(entries, 1, 2, draw=draw).plan(0)
    assert sorted(plan.ravel()) == [1, 2, 4, 6, 7, 9]
    assert {1, 2} in [set(step.ravel()) for step in plan]


def entropy(labels: np.ndarray) -> float:
    """Mean entropy in nats of the labels of each row."""
    shares = np.array([np.bincount(row) / len(row) for row in labels], dtype=object)
    return float(np.mean([-(s[s > 0] * np.log(s[s > 0])).sum() for s in shares]))


def test_a_window_of_64_pages_mixes_shards_that_are_sorted_by_class() -> None:
    # 100 classes of 1,300 images, 150 to a page of 8 MiB, as ImageNet-100 in its own order.
    labels = np.repeat(np.arange(100), 1300)
    counts = np.full(len(labels) // 150 + 1, 150, np.int32)
    counts[-1] = len(labels) - counts[:-1].sum()

    def mixing(draw: Draw) -> float:
        plan = Order(len(labels), lanes=8, batch=32, seed=3, draw=draw).plan(0)
        return entropy(labels[plan.reshape(len(plan), -1)])

    whole, windowed, narrow = (mixing(d) for d in (shuffled, Pages(counts, 64), Pages(counts, 1)))
    assert windowed > 0.97 * whole
    assert narrow < 0.6 * whole


def test_a_mixture_keeps_its_shares_in_every_batch_and_goes_through_each_set_in_turn() -> None:
    order = Order(300, lanes=2, batch=16, draw=Mixture((100, 50, 150), (1, 1, 2)))
    which = np.searchsorted([100, 150], np.concatenate([order.plan(e) for e in range(4)]), "right")
    assert all(np.bincount(step.ravel()).tolist() == [8, 8, 16] for step in which)
    ids = np.concatenate([order.plan(e)[:, :, :, 0] for e in range(4)]).reshape(-1)
    small = ids[(ids >= 100) & (ids < 150)]
    for start in range(0, len(small) - 50, 50):
        assert len(set(small[start : start + 50])) == 50
    assert (small[:50] != small[50:100]).any()


def test_seeking_in_a_billion_samples_takes_no_memory_of_their_number() -> None:
    tracemalloc.start()
    order = Order(10**9, lanes=64, batch=256, seed=1)
    ids = order.ids(3 * order.steps + order.steps // 2, lane=17)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids.shape == (256, 1) and len(np.unique(ids)) == 256 and ids.max() < 10**9
    assert held < 1 << 20


def test_too_few_samples_for_a_global_batch() -> None:
    with pytest.raises(RayclError, match=r"10 samples do not fill .* 4 lanes x 8"):
        Order(10, lanes=4, batch=8)
