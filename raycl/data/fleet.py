"""Shards written by a Ray Data pipeline: one row, one shard, one task, on any machine."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from raycl.data.connect import connected
from raycl.data.staging import Job
from raycl.errors import RayclError

_LOOK_S = 0.5


class ShardSink(Datasink[int]):
    """Runs the job that a row holds; the shard stands under its name when the task has ended.

    A task that Ray repeats, because its machine was lost, writes the same bytes again.
    """

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        """The number of shards that this task wrote."""
        count = 0
        for block in blocks:
            rows: Any = BlockAccessor.for_block(block).iter_rows(public_row_format=True)
            for row in rows:
                job: Job = pickle.loads(row["job"])
                job.run(1, lambda: None)
                count += 1
        return count


def run_on_ray(
    jobs: Sequence[Job], workers: int, address: str | None, advance: Callable[[int], None]
) -> None:
    """Runs jobs as tasks of one CPU and one thread each.

    Args:
        workers: tasks at a time.
        address: of a cluster; None: that of the submitted job this runs in, or a local Ray.
        advance: called with the samples of shards that have appeared.

    Raises:
        RayclError: what a job raised; the others are stopped.
    """
    with connected(address, num_cpus=workers), _watched(jobs, advance):
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a job's error is told once
        rows = [{"job": pickle.dumps(job)} for job in jobs]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        data.context.enable_progress_bars = False
        try:
            data.write_datasink(ShardSink(), ray_remote_args={"num_cpus": 1}, concurrency=workers)
        except Exception as error:
            mistake = reason(error)
            if mistake is None:
                raise
            raise RayclError(str(mistake)) from error


def reason(error: BaseException) -> RayclError | None:
    """The user's mistake inside of what Ray wraps around it."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)
        if isinstance(inner, RayclError):
            return inner
        if type(seen) is RayclError:
            return seen
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return None


@contextmanager
def _watched(jobs: Sequence[Job], advance: Callable[[int], None]) -> Iterator[None]:
    """Tells of shards as they appear."""
    waiting = list(jobs)
    ended = threading.Event()

    def look() -> None:
        for job in [job for job in waiting if job.path.exists()]:
            waiting.remove(job)
            advance(job.task.samples)

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
