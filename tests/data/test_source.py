"""The plan through a real Ray Data pipeline and its splitter."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from raycl.data.order import PADDING
from raycl.data.source import PlannedData, touch_nodes
from tests.conftest import Cluster
from tests.data.test_plan import dataset, plan_of

Rows = list[tuple[int, int, int, int]]


@ray.remote(num_cpus=0)
def consume(split: Any, epochs: int, slow: bool) -> Rows:
    """(epoch, step, lane, id) of every real row, in the order of arrival."""
    rows: Rows = []
    for _ in range(epochs):
        for table in split.iter_batches(batch_size=None, batch_format="pyarrow"):
            if slow:
                time.sleep(random.random() / 20)
            columns = (table[name].to_pylist() for name in ("epoch", "step", "lane", "id"))
            rows += [row for row in zip(*columns, strict=True) if row[1] != PADDING]
    return rows


@pytest.mark.parametrize("cursor", [(0, 0), (2, 5)])
def test_one_and_two_ranks_get_the_same_global_batches(
    cluster: Cluster, tmp_path: Path, cursor: tuple[int, int]
) -> None:
    plan = plan_of(dataset(tmp_path, samples=150), lanes=2, batch=4)
    assert len(plan.bundles(0)) > 2
    seen: dict[int, Rows] = {}
    for world in (1, 2):
        config = PlannedData(plan, lambda: cursor, read_cpus=0.5)
        splits = config.configure({}, world, None, None)
        epochs = 2
        parts = ray.get(
            [consume.remote(split["train"], epochs, i == 1) for i, split in enumerate(splits)]
        )
        for rank, rows in enumerate(parts):
            assert {lane for _, _, lane, _ in rows} == set(range(rank, 2, world))
            # Each lane's rows arrive in the planned order, without a look at their contents.
            for lane in range(rank, 2, world):
                steps = [(row[0], row[1]) for row in rows if row[2] == lane]
                assert steps == sorted(steps)
        seen[world] = sorted(row for rows in parts for row in rows)
    assert seen[1] == seen[2]
    expected = [
        (epoch, step, lane, int(i))
        for epoch in (cursor[0], cursor[0] + 1)
        for step, lanes in enumerate(plan.first.order.plan(epoch)[..., 0])
        for lane, ids in enumerate(lanes)
        for i in ids
        if (epoch, step) >= cursor
    ]
    assert seen[1] == sorted(expected)


def test_every_node_is_touched_while_a_group_starts(cluster: Cluster) -> None:
    assert [row["node"] for row in touch_nodes().take_all()] == [0] * len(ray.nodes())
