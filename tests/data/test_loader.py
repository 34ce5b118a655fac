"""The loader: batches that belong to lanes, and what it does about damaged samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycl.beton import IntField, RGBImageField, Writer
from raycl.data.loader import Loader, ahead, walk
from raycl.data.order import Order
from raycl.data.plan import Plan, Source, local_bundles
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.views.image import Color, Crop, ImageView

CPU = torch.device("cpu")
VIEW = ImageView(size=8, crop=Crop(), color=Color(strength=0.5), gray=0.2)


def photos(folder: Path, samples: int = 40, mode: Any = "jpg", shards: int = 2) -> Shards:
    """Smooth random pictures of different sizes."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for shard, ids in enumerate(np.array_split(np.arange(samples), shards)):
        fields = {"image": RGBImageField(mode), "label": IntField()}
        with Writer(folder / f"{shard}.beton", fields, page_size=2 << 20) as writer:
            for i in ids:
                height, width = random.integers(12, 24, 2)
                slope = np.linspace(0, 200, width)[None, :, None] + random.integers(0, 50, 3)
                image = np.broadcast_to(slope, (height, width, 3)).astype(np.uint8)
                writer.write({"image": image, "label": int(i) % 5})
    return Shards(folder)


def loader_of(shards: Shards, rank: int = 0, world: int = 1, **settings: Any) -> Loader:
    order = Order(len(shards), lanes=4, batch=3, seed=1)
    plan = Plan({"images": Source(shards, order, ("image", "label"))})
    lanes = range(rank, 4, world)
    views = {"images": {"view1": VIEW, "view2": VIEW}}

    def bundles(epoch: int, start: int) -> Any:
        return local_bundles(plan, lanes, epoch, start)

    return Loader(plan, views, lanes, bundles, CPU, seed=7, **settings)


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_a_lane_gets_the_same_pixels_on_any_number_of_ranks(tmp_path: Path, mode: str) -> None:
    shards = photos(tmp_path, mode=mode)
    whole = list(loader_of(shards).epoch(1))
    assert len(whole) == 3
    for world in (2, 4):
        for rank in range(world):
            for one, part in zip(whole, loader_of(shards, rank, world).epoch(1), strict=True):
                rows = np.concatenate([np.arange(3) + 3 * lane for lane in range(rank, 4, world)])
                for key, value in part.items():
                    torch.testing.assert_close(value, one[key][rows], rtol=0, atol=1e-6)


def test_what_a_batch_holds(tmp_path: Path) -> None:
    shards = photos(tmp_path)
    batch = next(loader_of(shards).epoch(0))
    assert batch["view1"].shape == (12, 3, 8, 8) and batch["view1"].dtype == torch.float32
    assert batch["view1"].min() >= 0 and batch["view1"].max() <= 1
    assert not torch.equal(batch["view1"], batch["view2"])
    assert torch.equal(batch["label"], batch["id"] % 5)
    # A crop lies inside its image, and is told with the batch.
    for sample, (top, left, height, width) in zip(batch["id"], batch["view2.box"], strict=True):
        image = shards.read(int(sample))["image"]
        assert top >= 0 and top + height <= image.shape[0]
        assert left >= 0 and left + width <= image.shape[1]
    assert batch["view1.flip"].dtype == torch.bool


def test_threads_and_a_later_start_change_nothing(tmp_path: Path) -> None:
    shards = photos(tmp_path)
    whole = list(loader_of(shards).epoch(2))
    for one, two in zip(whole, loader_of(shards, threads=3).epoch(2), strict=True):
        assert torch.equal(one["view2"], two["view2"])
    for one, two in zip(whole[1:], loader_of(shards).epoch(2, start=1), strict=True):
        assert torch.equal(one["id"], two["id"]) and torch.equal(one["view1"], two["view1"])


def test_bundles_in_another_order_are_an_error(tmp_path: Path) -> None:
    loader = loader_of(photos(tmp_path))
    planned = loader.bundles
    loader.bundles = lambda epoch, start: reversed(list(planned(epoch, start)))
    with pytest.raises(RuntimeError, match="another order than planned"):
        list(loader.epoch(0))
    loader.bundles = lambda epoch, start: list(planned(epoch, start))[:1]
    with pytest.raises(RuntimeError, match="the stream ended before epoch 0, step 0, lane 1"):
        list(loader.epoch(0))
    loader.bundles = lambda epoch, start: planned(epoch + 1, start)
    with pytest.raises(RuntimeError, match="another order than planned"):
        list(loader.epoch(0))


def damage(shards: Shards, sample: int, field: str = "image") -> Path:
    """Overwrites the middle of what a field holds where it lies; returns its shard."""
    shard, row = (int(part) for part in shards.locate(np.array(sample)))
    path = Path(shards.paths[shard])
    payload = bytes(shards.reader(shard).encoded(row, field))
    content = path.read_bytes()
    at = content.index(payload)
    path.write_bytes(content[: at + 2] + b"\0" * (len(payload) - 2) + content[at + len(payload) :])
    return path


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_a_device_draws_the_same_views(tmp_path: Path, mode: str) -> None:
    """Here the CPU is the device; nvJPEG itself needs a GPU."""
    shards = photos(tmp_path, mode=mode)
    for one, two in zip(
        loader_of(shards).epoch(1), loader_of(shards, on_device=True).epoch(1), strict=True
    ):
        assert one.keys() == two.keys()
        for key in one:
            tolerance = (
                1.5 / 255 if key in ("view1", "view2") else 0
            )  # half a level at each rounding
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=tolerance)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    shards = photos(tmp_path)
    path = damage(shards, 23)
    order = [
        int(i) for batch in loader_of(photos(tmp_path / "whole")).epoch(0) for i in batch["id"]
    ]
    assert 23 in order
    with pytest.raises(RayclError, match=rf"{path}, sample 3: .*data\.corrupt=substitute"):
        list(loader_of(Shards(tmp_path)).epoch(0))


def test_a_damaged_image_is_replaced_by_one_of_its_lane(tmp_path: Path) -> None:
    whole = list(loader_of(photos(tmp_path)).epoch(0))
    damage(Shards(tmp_path), 23)
    loader = loader_of(Shards(tmp_path), corrupt="substitute")
    parts = list(loader.epoch(0))
    assert loader.substituted == 1
    changed = 0
    for one, two in zip(whole, parts, strict=True):
        for row in range(12):
            if one["id"][row] != two["id"][row]:
                changed += 1
                assert one["id"][row] == 23
                lane = slice(row // 3 * 3, row // 3 * 3 + 3)
                twin = [r for r in range(12)[lane] if r != row and one["id"][r] == two["id"][row]]
                assert torch.equal(two["view1"][row], two["view1"][twin[0]])
                assert two["label"][row] == two["id"][row] % 5
            else:
                torch.testing.assert_close(one["view1"][row], two["view1"][row])
    assert changed == 1


def test_both_of_a_pair_are_replaced_where_one_is_damaged(tmp_path: Path) -> None:
    pairs = np.arange(40).reshape(20, 2)
    damage(photos(tmp_path), 23)
    shards = Shards(tmp_path)
    plan = Plan({"pairs": Source(shards, Order(pairs, lanes=4, batch=5), ("image",))})
    lanes = range(4)
    loader = Loader(
        plan,
        {"pairs": {"view1": VIEW}},
        lanes,
        lambda epoch, start: local_bundles(plan, lanes, epoch, start),
        CPU,
        corrupt="substitute",
    )
    batches = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    assert loader.substituted == 2 * 3  # sample 22 goes with it, in each epoch
    for batch in batches:
        assert (batch["1.id"] == batch["0.id"] + 1).all()
        assert 23 not in batch["1.id"]


def test_walk_reads_every_sample_once_in_order(tmp_path: Path) -> None:
    shards = photos(tmp_path)
    ids = np.array([5, 3, 39, 0, 7, 8, 9])
    batches = list(walk(shards, VIEW.evaluation(), ids, batch=3, device=CPU))
    assert [len(b["id"]) for b in batches] == [3, 3, 1]
    assert torch.cat([b["id"] for b in batches]).tolist() == ids.tolist()
    again = list(walk(shards, VIEW.evaluation(), ids[::-1], batch=4, device=CPU))
    torch.testing.assert_close(again[0]["view"][0], batches[2]["view"][0])


def test_ahead_hands_on_errors_and_stops_when_nobody_listens() -> None:
    def numbers() -> Any:
        yield 1
        raise ValueError("broken")

    stream = ahead(numbers(), 2)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    made = []

    def endless() -> Any:
        while True:
            made.append(1)
            yield 1

    stream = ahead(endless(), 2)
    next(stream)
    stream.close()
    count = len(made)
    assert count <= 5 and len(made) == count
