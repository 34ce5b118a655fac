"""Calls that do not depend on each other, as tasks of Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import ray

from raycl.data.connect import connected

T = TypeVar("T")


def each(function: Callable[[Any], T], items: Iterable[Any], address: str | None = None) -> list[T]:
    """What a function returns for each item, in their order; on the cores of a Ray.

    Args:
        function: is sent once, with all that it holds.
        address: of a cluster; None: the Ray at hand, or a local one.
    """
    with connected(address, num_cpus=len(os.sched_getaffinity(0))):
        shared = ray.put(function)
        task: Any = ray.remote(num_cpus=1)(_call)
        found: list[T] = ray.get([task.remote(shared, item) for item in items])
        return found


def _call(function: Callable[[Any], T], item: Any) -> T:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # a core each
        return function(item)
