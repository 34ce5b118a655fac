from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from raycl.views.random import uniforms

IDS = np.arange(2000)


def test_pinned_values() -> None:
    # Changing these changes the views of every published run.
    drawn = uniforms(seed=1, epoch=2, ids=np.array([0, 7, 2**40]), view=1, count=2)
    expected = [
        [0.5629228040231664, 0.4701700884803076],
        [0.37867196936733294, 0.6859780421957586],
        [0.015923549493161993, 0.875882193753188],
    ]
    np.testing.assert_array_equal(drawn, expected)


def test_matches_plain_integer_arithmetic() -> None:
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    step = 0x9E3779B97F4A7C15
    key = 0
    for part in (5, 3, 1):
        key = mix(key + (part + 1) * step & mask)
    state = mix(123 * step + key & mask)
    expected = [(mix(state + i * step & mask) >> 11) / 2**53 for i in (1, 2, 3)]
    assert uniforms(5, 3, np.array([123]), 1, 3)[0].tolist() == expected


def test_independent_of_order_batch_and_count() -> None:
    whole = uniforms(0, 4, IDS, 1, 30)
    some = np.array([1999, 3, 3, 700])
    np.testing.assert_array_equal(uniforms(0, 4, some, 1, 7), whole[some, :7])


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 + 5])
def test_uniform(seed: int) -> None:
    drawn = uniforms(seed, 0, IDS, 0, 50)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-4
    per_column = stats.kstest(drawn, "uniform", axis=0).pvalue
    assert stats.kstest(per_column, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    "neighbour",
    [(1, 0, IDS, 0), (0, 1, IDS, 0), (0, 0, IDS + 1, 0), (0, 0, IDS, 1), (1, 0, IDS, 1)],
    ids=["seed", "epoch", "sample", "view", "seed and view"],
)
def test_neighbouring_keys_are_independent(neighbour: tuple[int, int, np.ndarray, int]) -> None:
    one, other = uniforms(0, 0, IDS, 0, 20), uniforms(*neighbour, 20)
    assert np.intersect1d(one[:1], other[:1]).size == 0
    bound = 5 / np.sqrt(one.size)
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < bound
    bins = np.histogram2d(one.ravel(), other.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(bins.ravel()).pvalue > 1e-4


def test_columns_are_independent() -> None:
    correlation = np.corrcoef(uniforms(0, 0, np.arange(20_000), 0, 12), rowvar=False)
    assert np.abs(correlation - np.eye(12)).max() < 5 / np.sqrt(20_000)


def test_no_two_samples_alike() -> None:
    first = uniforms(0, 0, np.arange(-1000, 200_000), 0, 1)[:, 0]
    assert len(np.unique(first)) == len(first)


def test_costs_little() -> None:
    start = time.process_time()
    uniforms(0, 0, np.arange(4096), 0, 36)
    assert time.process_time() - start < 0.2  # some 3 ms
