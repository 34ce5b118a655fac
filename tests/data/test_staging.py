"""The small parts of writing; whole imports, and what stops them, are in test_sink.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from raycl.data.staging import cut, in_threads, per_shard, positive
from raycl.errors import RayclError


def test_results_come_in_order_and_are_not_computed_far_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        return item * item

    before = threading.active_count()
    results = in_threads(work, items(), 4)
    assert [next(results) for _ in range(10)] == [i * i for i in range(10)]
    assert len(taken) < 100
    results.close()
    assert len(taken) < 100 and threading.active_count() <= before


def test_an_error_of_a_thread_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 // item, [2, 1, 0], 2))


@pytest.mark.parametrize(
    ("samples", "size", "sizes", "expected"),
    [(5, 100, [], 5), (None, 100, [30, 30], 4), (None, 100, [500], 1), (None, 100, [0], 100)],
)
def test_samples_of_a_shard(
    samples: int | None, size: int, sizes: list[int], expected: int
) -> None:
    assert per_shard(samples, size, sizes) == expected


def test_stretches_cover_everything_once() -> None:
    assert cut(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert cut(6, 3) == [slice(0, 3), slice(3, 6)]
    assert cut(1, 9) == [slice(0, 1)]


def test_numbers_below_one_are_refused() -> None:
    positive("limit", 1)
    positive("limit", None)
    with pytest.raises(RayclError, match="limit: 0 was given, allowed is 1 or more"):
        positive("limit", 0)
