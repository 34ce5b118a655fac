"""The plan and its bundles: equal in size, checked on arrival, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raycl.beton import IntField, NDArrayField, RGBImageField, Writer
from raycl.data.decode import decoding_threads
from raycl.data.loader import Loader
from raycl.data.order import PADDING, Order
from raycl.data.plan import (
    Columns,
    Plan,
    Source,
    check_fields,
    from_table,
    local_bundles,
    to_table,
    travelling,
)
from raycl.data.pool import cut
from raycl.data.shards import Shards
from raycl.data.streams import streams_of
from raycl.errors import RayclError
from raycl.views.image import ImageView
from raycl.views.packing import View


def dataset(folder: Path, samples: int = 50, shards: int = 3) -> Shards:
    """Images whose every pixel is the sample's id, over several shards."""
    folder.mkdir(exist_ok=True)
    for shard, ids in enumerate(np.array_split(np.arange(samples), shards)):
        fields = {"image": RGBImageField("raw"), "label": IntField()}
        with Writer(folder / f"{shard}.beton", fields, page_size=2 << 20) as writer:
            for i in ids:
                writer.write({"image": np.full((8, 8, 3), i, np.uint8), "label": int(i) % 7})
    return Shards(folder)


def plan_of(shards: Shards, **order: object) -> Plan:
    settings = {"lanes": 2, "batch": 4, "seed": 1} | order
    made = Order(len(shards), **settings)  # type: ignore[arg-type]
    return Plan({"images": Source(shards, made, ("image", "label"))})


def test_bundles_are_equal_and_interleave_the_lanes(tmp_path: Path) -> None:
    plan = plan_of(dataset(tmp_path))
    bundles = plan.bundles(0)
    assert [b.lane for b in bundles] == [0, 1] * (len(bundles) // 2)
    assert {len(plan.read(b)["id"]) for b in bundles} == {plan.room * plan.batch}


def test_rows_carry_the_planned_samples(tmp_path: Path) -> None:
    plan = plan_of(dataset(tmp_path))
    expected = plan.first.order.plan(2)
    for bundle in plan.bundles(2):
        whole = to_table(plan.read(bundle))
        table = whole.filter(np.array(whole["step"]) != PADDING)
        for row in table.to_pylist():
            at = [r["id"] for r in table.to_pylist() if r["step"] == row["step"]]
            assert at == list(expected[row["step"], row["lane"], :, 0])
            assert row["epoch"] == 2 and row["lane"] == bundle.lane
            assert set(row["image"]) == {row["id"]} and row["label"] == row["id"] % 7
            assert (row["image.height"], row["image.width"], row["image.mode"]) == (8, 8, 1)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_read_the_global_batches_of_one(tmp_path: Path, world: int) -> None:
    plan = plan_of(dataset(tmp_path), lanes=4, batch=3)
    seen: dict[tuple[int, int], list[int]] = {}
    for rank in range(world):
        for columns in local_bundles(plan, range(rank, 4, world), epoch=1, start=1):
            for row in to_table(columns).to_pylist():
                if row["step"] != PADDING:
                    seen.setdefault((row["step"], row["lane"]), []).append(row["id"])
    expected = plan.first.order.plan(1)[1:, ..., 0]
    assert seen == {
        (step + 1, lane): list(ids)
        for step, lanes in enumerate(expected)
        for lane, ids in enumerate(lanes)
    }


def test_a_second_stream_of_pairs_travels_in_the_same_bundle(tmp_path: Path) -> None:
    shards = dataset(tmp_path)
    pairs = np.stack([np.arange(12), np.arange(12) + 20], axis=1)
    images = Source(shards, Order(50, 2, 4), ("image", "label"))
    paired = Source(shards, Order(pairs, 2, 4), ("image",))
    plan = Plan({"images": images, "pairs": paired})
    assert plan.steps == 6 and paired.order.steps == 1
    table = to_table(plan.read(plan.bundles(0)[0]))
    assert {"id", "pairs.0.id", "pairs.1.id", "pairs.1.image", "label"} <= set(table.column_names)
    rows = [r for r in table.to_pylist() if r["step"] != PADDING]
    assert all(r["pairs.1.id"] == r["pairs.0.id"] + 20 for r in rows)
    # The shorter stream is recycled with a new permutation each time it is used up.
    recycled = [[r["pairs.0.id"] for r in rows if r["step"] == s] for s in range(plan.room)]
    assert len(set(map(tuple, recycled))) > 1


def test_a_bundle_travels_as_a_table_and_back(tmp_path: Path) -> None:
    plan = plan_of(dataset(tmp_path))
    columns = plan.read(plan.bundles(0)[1])
    columns["pixels"] = np.arange(len(columns["id"]) * 6).reshape(-1, 3, 2)
    table = to_table(columns)
    for copy in (table, pa.concat_tables([table[:3], table[3:]])):
        back = from_table(copy)
        assert back.keys() == columns.keys()
        for name, values in columns.items():
            if isinstance(values, list):
                assert [bytes(v) for v in back[name]] == [bytes(v) for v in values]
            else:
                assert (back[name].reshape(values.shape) == values).all()
    (part,) = {bytes(v) for v in from_table(table[5:6])["image"]}
    assert part == bytes(columns["image"][5])


def test_a_number_by_the_name_of_a_column_of_a_batch_stays_behind(tmp_path: Path) -> None:
    fields = {"image": RGBImageField("raw"), "id": IntField(), "step": RGBImageField("raw")}
    pixels = np.zeros((8, 8, 3), np.uint8)
    with Writer(tmp_path / "a.beton", fields, page_size=2 << 20) as writer:
        for i in range(8):
            writer.write({"image": pixels, "id": 100 + i, "step": pixels})
    shards = Shards(tmp_path)
    assert travelling(shards, ["image"]) == ("image",)
    source = Source(shards, Order(8, 1, 4, 1), travelling(shards, ["image"]))
    bundle = next(iter(local_bundles(Plan({"images": source}), [0], 0, 0)))
    assert set(bundle["id"]) - {PADDING} == set(range(8))
    check_fields(shards, ["image"], "data.train")
    with pytest.raises(RayclError, match=r"data\.train: .* 'step' .* under another name"):
        check_fields(shards, ["image", "step"], "data.train")


def test_arrays_travel_where_they_are_asked_for(tmp_path: Path) -> None:
    fields = {"image": RGBImageField("raw"), "boxes": NDArrayField(np.float32, (3, 2))}
    values = np.arange(48, dtype=np.float32).reshape(8, 3, 2)
    with Writer(tmp_path / "a.beton", fields, page_size=2 << 20) as writer:
        for i in range(8):
            writer.write({"image": np.full((8, 8, 3), i, np.uint8), "boxes": values[i]})
    shards = Shards(tmp_path)
    assert travelling(shards, ["image"]) == ("image",)
    source = Source(shards, Order(8, 2, 2, 1), travelling(shards, ["image", "boxes"]))
    plan = Plan({"images": source}, row_bytes=1)
    views = {"images": {"view1": ImageView(size=8)}}

    def bundles(epoch: int, start: int) -> Iterator[Columns]:
        for bundle in local_bundles(plan, [0, 1], epoch, start):
            yield from_table(to_table(bundle))

    loader = Loader(plan, views, [0, 1], bundles, torch.device("cpu"))
    for batch in loader.epoch(0):
        assert (batch["boxes"].numpy() == values[batch["id"]]).all()
    with decoding_threads(1) as pool:
        bundle = plan.read(plan.bundles(0)[0])
        made = cut(bundle, plan, streams_of(plan, views, pool, 0, "error"))
    assert (made["boxes"] == bundle["boxes"]).all()


def test_a_sample_that_has_lost_its_array_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"image": RGBImageField("raw"), "boxes": NDArrayField(np.float32, (3,))}
    with Writer(tmp_path / "a.beton", fields, page_size=2 << 20) as writer:
        for i in range(4):
            sample = {"image": np.zeros((8, 8, 3), np.uint8), "boxes": np.full(3, i, np.float32)}
            writer.write(sample)
    shards = Shards(tmp_path)
    whole = shards.payloads
    monkeypatch.setattr(
        shards, "payloads", lambda ids, names: whole(ids, names) | {"boxes": [
            b"" if i == 2 else part for i, part in zip(ids, whole(ids, names)["boxes"], strict=True)
        ]},
    )  # fmt: skip
    plan = Plan({"images": Source(shards, Order(4, 1, 4, 1), ("image", "boxes"))})
    views: dict[str, dict[str, View]] = {"images": {"view1": ImageView(size=8)}}

    def loader(corrupt: str) -> Loader:
        def bundles(epoch: int, start: int) -> Iterator[Columns]:
            return local_bundles(plan, [0], epoch, start)

        return Loader(plan, views, [0], bundles, torch.device("cpu"), corrupt=corrupt)

    with pytest.raises(RayclError, match="sample 2"):
        next(loader("error").epoch(0))
    batch = next(loader("substitute").epoch(0))
    assert 2 not in batch["id"] and (batch["boxes"][:, 0] == batch["id"]).all()
    plan = Plan({"arrays": Source(shards, Order(4, 1, 4, 1), ("boxes",))})
    views = {"arrays": {}}
    with pytest.raises(RayclError, match="sample 2: its array is not where the file says"):
        next(loader("error").epoch(0))
    batch = next(loader("substitute").epoch(0))
    assert 2 not in batch["id"] and (batch["boxes"][:, 0] == batch["id"]).all()
