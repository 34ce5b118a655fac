"""Decoding on the cluster gives what decoding in the worker gives, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from raycl.data.decode import decoding_threads
from raycl.data.host import Batch
from raycl.data.loader import Loader
from raycl.data.order import Order
from raycl.data.plan import Columns, Plan, Source, from_table, local_bundles, to_table
from raycl.data.pool import cut
from raycl.data.shards import Shards
from raycl.data.source import ClusterDecoding, PlannedData
from raycl.data.streams import row_bytes, streams_of
from raycl.errors import RayclError
from raycl.views.image import Crop, ImageView
from tests.conftest import Cluster
from tests.data.test_loader import damage, photos

CPU = torch.device("cpu")
VIEWS = {
    "images": {"view1": ImageView(size=8, crop=Crop()), "view2": ImageView(size=12)},
    "pairs": {"view3": ImageView(size=10, crop=Crop())},
}


def plan_of(shards: Shards) -> Plan:
    pairs = np.arange(len(shards) // 2 * 2).reshape(-1, 2)
    sources = {
        "images": Source(shards, Order(len(shards), 4, 3, seed=1), ("image", "label")),
        "pairs": Source(shards, Order(pairs, 4, 3, seed=1), ("image",)),
    }
    return Plan(sources)


def batches(plan: Plan, bundles: Any, **settings: Any) -> tuple[list[Batch], int]:
    loader = Loader(plan, VIEWS, range(4), bundles, CPU, seed=7, **settings)
    found = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
    return found, loader.substituted


def same(one: list[Batch], two: list[Batch]) -> None:
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("damaged", [False, True])
def test_cut_bundles_give_the_batches_of_the_worker(tmp_path: Path, damaged: bool) -> None:
    shards = photos(tmp_path)
    if damaged:
        damage(shards, 23)
        shards = Shards(tmp_path)
    plan = plan_of(shards)
    worker, replaced = batches(
        plan, lambda e, s: local_bundles(plan, range(4), e, s), corrupt="substitute"
    )
    shipped = replace(plan, row_bytes=row_bytes(plan, VIEWS))
    streams = streams_of(shipped, VIEWS, decoding_threads(2), 7, "substitute")

    def bundles(epoch: int, start: int) -> Iterator[Columns]:
        for columns in local_bundles(shipped, range(4), epoch, start):
            made = cut(columns, shipped, streams)
            assert not any(isinstance(values, list) for values in made.values())
            yield from_table(to_table(made))

    cluster, there = batches(shipped, bundles)
    same(worker, cluster)
    assert (replaced > 0) == damaged and replaced == there


def test_bundles_of_crops_hold_fewer_steps(tmp_path: Path) -> None:
    plan = plan_of(photos(tmp_path))
    assert row_bytes(plan, VIEWS) == (8 * 8 + 12 * 12 + 2 * 10 * 10) * 3
    assert replace(plan, row_bytes=8 << 20).room == 1


def test_the_actors_of_a_real_cluster(cluster: Cluster, tmp_path: Path) -> None:
    plan = plan_of(photos(tmp_path))
    worker, _ = batches(plan, lambda e, s: local_bundles(plan, range(4), e, s))
    decoding = ClusterDecoding(VIEWS, seed=7, corrupt="error", actors=2)
    split = PlannedData(plan, lambda: (0, 0), 0.5, decoding).configure({}, 1, None, None)[0]

    def bundles(epoch: int, start: int) -> Iterator[Columns]:
        return map(from_table, split["train"].iter_batches(batch_size=None, batch_format="pyarrow"))

    found, _ = batches(plan, bundles)
    same(worker, found)


def test_a_damaged_image_is_named_by_the_actor(cluster: Cluster, tmp_path: Path) -> None:
    shards = photos(tmp_path)
    path = damage(shards, 23)
    plan = plan_of(Shards(tmp_path))
    decoding = ClusterDecoding(VIEWS, seed=7, corrupt="error")
    split = PlannedData(plan, lambda: (0, 0), 0.5, decoding).configure({}, 1, None, None)[0]
    with pytest.raises((ray.exceptions.RayTaskError, RayclError), match=f"{path}, sample 3"):
        list(split["train"].iter_batches(batch_size=None, batch_format="pyarrow"))
