"""FFCV's loader behind the face of raycl's, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycl.beton import IntField, NDArrayField, RGBImageField, Writer
from raycl.data.ffcv_engine import FFCVLoader
from raycl.data.order import Order
from raycl.data.plan import Plan, Source
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.views.image import Color, Crop, ImageView

if os.environ.get("RAYCL_NEEDS_FFCV"):
    import ffcv  # noqa: F401
else:
    pytest.importorskip(
        "ffcv", reason="the extra raycl[ffcv] is not installed", exc_type=ImportError
    )

CPU = torch.device("cpu")
LANES, ROWS = 4, 3
CROP = ImageView(size=16, crop=Crop(scale=(0.5, 1)), flip=0.5)
MIDDLE = ImageView(size=16, flip=0.0)


def photos(folder: Path, samples: int = 40, mode: Any = "jpg", shards: int = 1) -> Shards:
    """Images of different sizes, each of one colour, which tells its number."""
    folder.mkdir(exist_ok=True)
    for shard, ids in enumerate(np.array_split(np.arange(samples), shards)):
        fields = {
            "image": RGBImageField(mode),
            "label": IntField(),
            "grid": NDArrayField("int16", (2,)),
        }
        with Writer(folder / f"{shard}.beton", fields, page_size=2 << 20) as writer:
            for i in ids:
                image = np.full((20 + i % 7, 30 - i % 5, 3), 5 * i, np.uint8)
                writer.write({"image": image, "label": int(i) % 5, "grid": np.zeros(2, np.int16)})
    return Shards(folder)


def plan_of(shards: Shards, **settings: Any) -> Plan:
    order = Order(settings.pop("entries", len(shards)), LANES, ROWS, seed=1)
    return Plan({"images": Source(shards, order, ("image", "label"))})


def loader_of(shards: Shards, rank: int = 0, world: int = 1, **settings: Any) -> FFCVLoader:
    views = {"images": settings.pop("views", {"view1": CROP, "view2": MIDDLE})}
    plan = settings.pop("plan", None) or plan_of(shards)
    return FFCVLoader(plan, views, range(rank, LANES, world), CPU, seed=7, **settings)


@pytest.mark.parametrize("mode", ["jpg", "raw"])
def test_batches_are_those_of_the_plan(tmp_path: Path, mode: str) -> None:
    shards = photos(tmp_path, mode=mode)
    loader = loader_of(shards)
    assert loader.steps == 3
    for epoch in (0, 1):
        planned = loader.plan.first.order.plan(epoch)
        seen = 0
        for step, batch in enumerate(loader.epoch(epoch)):
            assert batch["id"].tolist() == planned[step].reshape(-1).tolist()
            assert torch.equal(batch["label"], batch["id"] % 5)
            assert set(batch) == {"id", "label", "view1", "view2"}
            for name in ("view1", "view2"):
                assert batch[name].shape == (LANES * ROWS, 3, 16, 16)
                assert batch[name].dtype == torch.float32
                grey = batch["id"][:, None, None, None] * 5 / 255
                torch.testing.assert_close(
                    batch[name],
                    grey.expand_as(batch[name]),
                    rtol=0,
                    atol=2 / 255,
                    check_dtype=False,
                )
            seen += 1
        assert seen == 3
    assert loader.waits.total > 0 and loader.substituted == 0


def test_ranks_share_the_steps_and_a_later_start_is_exact(tmp_path: Path) -> None:
    shards = photos(tmp_path)
    whole = [batch["id"] for batch in loader_of(shards).epoch(2)]
    parts = [[batch["id"] for batch in loader_of(shards, rank, 2).epoch(2)] for rank in (0, 1)]
    for ids, first, second in zip(whole, *parts, strict=True):
        lanes = ids.reshape(LANES, ROWS)
        assert torch.equal(first, lanes[0::2].reshape(-1))
        assert torch.equal(second, lanes[1::2].reshape(-1))
    rest = [batch["id"] for batch in loader_of(shards).epoch(2, start=1)]
    assert torch.equal(torch.stack(rest), torch.stack(whole[1:]))


def test_crops_are_drawn_at_random_and_colours_are_planned(tmp_path: Path) -> None:
    folder = tmp_path / "slopes"
    folder.mkdir()
    slope = np.broadcast_to(np.linspace(0, 250, 40)[None, :, None], (40, 40, 3)).astype(np.uint8)
    with Writer(folder / "0.beton", {"image": RGBImageField("raw")}) as writer:
        for _ in range(24):
            writer.write({"image": slope})
    shards = Shards(folder)
    colour = ImageView(size=40, flip=0, color=Color(p=1.0))
    views = {"crop": CROP, "colour": colour, "plain": colour.model_copy(update={"color": None})}
    plan = Plan({"images": Source(shards, Order(24, LANES, ROWS), ("image",))})
    one, two = (
        next(loader_of(shards, plan=plan, views=views, threads=threads).epoch(0))
        for threads in (1, 2)
    )
    left = one["crop"][:, 0, 8, 0] - one["crop"][:, 0, 8, -1]
    assert (left > 0).any() and (left < 0).any()  # mirrored and not
    assert one["crop"][:, 0].mean((1, 2)).std() > 0.01
    assert not torch.equal(one["colour"], one["plain"])
    torch.testing.assert_close(one["colour"], two["colour"])  # by id, not by FFCV's threads


def test_torch_keeps_its_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for _ in loader_of(photos(tmp_path)).epoch(0):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("taken", [1, 5, 11])
def test_an_epoch_may_be_left_early(tmp_path: Path, taken: int) -> None:
    loader = loader_of(photos(tmp_path, samples=12 * LANES * ROWS), threads=2)
    for epoch in range(3):
        batches = loader.epoch(epoch)
        for _ in range(taken):
            next(batches)
        batches.close()
    assert len(list(loader.epoch(3))) == loader.steps == 12


def test_what_it_cannot_serve_is_refused(tmp_path: Path) -> None:
    def refused(shards: Shards, message: str, **settings: Any) -> None:
        with pytest.raises(RayclError, match=message):
            loader_of(shards, **settings)

    shards = photos(tmp_path / "one")
    refused(photos(tmp_path / "two", shards=2), r"ffcv: the data set has 2 shards.*data concat")
    refused(shards, "corrupt=substitute", corrupt="substitute")
    pairs = plan_of(shards, entries=np.arange(40).reshape(20, 2))
    refused(shards, r"data\.pairs", plan=pairs)
    refused(shards, "views read grid", views={"view1": ImageView(size=16, field="grid")})
    streams = Plan({name: plan_of(shards).first for name in ("images", "more")})
    refused(shards, "2 streams", plan=streams)
