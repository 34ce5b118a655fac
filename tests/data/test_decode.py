"""The decoding threads: what is drawn, and what is done about samples that are damaged."""

from __future__ import annotations

import io
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycl.beton.fields import JPG, RAW
from raycl.data.decode import Decoder, Drawn, decoding_threads, finish_together
from raycl.data.loader import SPARED
from raycl.data.rows import shrunk
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.views.image import Crop, ImageView
from tests.data.test_loader import damage, loader_of, photos

VIEWS = {"one": ImageView(size=8, crop=Crop()), "two": ImageView(size=8, flip=0)}
HEIGHT, WIDTH = 12, 20


def jpeg(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(corners).resize((width, height)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def lane(count: int = 7) -> dict[str, Any]:
    """Rows of one lane at one step: sound JPEGs of samples 10, 11, ..."""
    return {
        "id": np.arange(10, 10 + count),
        "image": [jpeg(seed) for seed in range(count)],
        "image.mode": np.full(count, JPG, np.uint8),
        "image.height": np.full(count, HEIGHT, np.uint16),
        "image.width": np.full(count, WIDTH, np.uint16),
    }


def draw(
    rows: dict[str, Any], threads: int = 1, **settings: Any
) -> tuple[Drawn, dict[str, np.ndarray]]:
    out = {name: np.zeros((len(rows["id"]), 8, 8, 3), np.uint8) for name in VIEWS}
    with decoding_threads(threads) as pool:
        decoder = Decoder(VIEWS, pool, lambda index: f"x.beton, sample {index}", **settings)
        return finish_together([decoder.start(rows, 0, out)])[0], out


def cut_off(rows: dict[str, Any], row: int) -> None:
    rows["image"][row] = rows["image"][row][:-100]


def lost(rows: dict[str, Any], row: int) -> None:
    rows["image"][row] = b""


def other_size(rows: dict[str, Any], row: int) -> None:
    rows["image"][row] = jpeg(row, HEIGHT + 1)


def another_format(rows: dict[str, Any], row: int) -> None:
    rows["image.mode"][row] = 7


def short_pixels(rows: dict[str, Any], row: int) -> None:
    rows["image"][row], rows["image.mode"][row] = bytes(HEIGHT * WIDTH * 3 - 1), RAW


def no_pixels(rows: dict[str, Any], row: int) -> None:
    rows["image"][row], rows["image.mode"][row], rows["image.height"][row] = b"", RAW, 0


def no_size(rows: dict[str, Any], row: int) -> None:
    rows["image.height"][row] = rows["image.width"][row] = 0


def gigantic(rows: dict[str, Any], row: int) -> None:
    """Header and metadata agree, but such an image does not fit into so few bytes."""
    content = bytearray(rows["image"][row])
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = (65500).to_bytes(2, "big") * 2
    rows["image"][row] = bytes(content)
    rows["image.height"][row] = rows["image.width"][row] = 65500


def claimed(rows: dict[str, Any], row: int) -> None:
    rows["image.height"][row] = rows["image.width"][row] = 65535


DAMAGES = [
    cut_off,
    lost,
    other_size,
    another_format,
    short_pixels,
    no_pixels,
    no_size,
    gigantic,
    claimed,
]
Damage = Callable[[dict[str, Any], int], None]


@pytest.mark.parametrize("spoil", DAMAGES)
def test_a_damaged_sample_is_an_error_that_names_it(spoil: Damage) -> None:
    rows = lane()
    spoil(rows, 3)
    with pytest.raises(RayclError, match=r"x\.beton, sample 13: .*data\.corrupt=substitute"):
        draw(rows)


@pytest.mark.parametrize("spoil", [cut_off, lost, other_size, short_pixels, gigantic])
def test_a_device_finds_damage_too(spoil: Damage) -> None:
    """The CPU as the device: torchvision's decoder there notices the same damage."""
    rows = lane()
    spoil(rows, 3)
    out = {name: torch.zeros(7, 8, 8, 3, dtype=torch.uint8) for name in VIEWS}
    with decoding_threads(1) as pool:
        decoder = Decoder(VIEWS, pool, str, corrupt="substitute", device=torch.device("cpu"))
        drawn = finish_together([decoder.start(rows, 0, out)])[0]
    assert drawn.rows.tolist() == [0, 1, 2, 2, 4, 5, 6]
    expected = draw(rows, corrupt="substitute")[1]
    for name, pixels in out.items():
        assert (pixels.int() - torch.from_numpy(expected[name]).int()).abs().max() <= 1


@pytest.mark.parametrize("spoil", DAMAGES)
def test_memory_is_what_sound_samples_need(spoil: Damage) -> None:
    rows = lane()
    spoil(rows, 3)
    draw(rows, corrupt="substitute")  # what is loaded or kept from now on is not counted
    tracemalloc.start()
    try:
        draw(rows, corrupt="substitute")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("spoil", DAMAGES)
def test_the_nearest_sound_sample_of_the_lane_stands_in(
    spoil: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    rows = lane()
    for row in (0, 3, 4, 6):
        spoil(rows, row)
    with caplog.at_level(logging.WARNING):
        drawn, out = draw(rows, corrupt="substitute")

    # Of two that are as near, the first.
    assert drawn.rows.tolist() == [1, 1, 2, 2, 5, 5, 5]
    whole, pixels = draw(lane())
    for name in VIEWS:
        np.testing.assert_array_equal(out[name], pixels[name][drawn.rows])
        for key, values in drawn.plans[name].items():
            np.testing.assert_array_equal(values, whole.plans[name][key][drawn.rows])
    assert len(caplog.messages) == 4
    assert caplog.messages[1].startswith("x.beton, sample 13: ")
    assert caplog.messages[1].endswith("in its place stands x.beton, sample 12")


def test_substitutes_do_not_depend_on_threads() -> None:
    rows = lane(50)
    for row in (0, 1, 15, 16, 17, 30, 49):
        cut_off(rows, row)
    (one, pixels), (three, others) = (
        draw(rows, threads, corrupt="substitute") for threads in (1, 3)
    )

    np.testing.assert_array_equal(one.rows, three.rows)
    for name in VIEWS:
        np.testing.assert_array_equal(pixels[name], others[name])


def test_a_lane_without_a_sound_sample_is_an_error() -> None:
    rows = lane(3)
    for row in range(3):
        lost(rows, row)
    with pytest.raises(RayclError, match="sample 10: .*no sample of its lane is readable"):
        draw(rows, corrupt="substitute")


def test_substitutes_do_not_depend_on_ranks(tmp_path: Path) -> None:
    photos(tmp_path)
    for sample in (3, 17, 23, 38):
        damage(Shards(tmp_path), sample)
    shards = Shards(tmp_path)
    whole = loader_of(shards, corrupt="substitute")
    batches = list(whole.epoch(0))
    assert whole.substituted >= 1
    for world in (2, 4):
        ranks = [loader_of(shards, rank, world, corrupt="substitute") for rank in range(world)]
        for rank, loader in enumerate(ranks):
            for one, part in zip(batches, loader.epoch(0), strict=True):
                rows = np.concatenate([np.arange(3) + 3 * lane for lane in range(rank, 4, world)])
                for key, value in part.items():
                    torch.testing.assert_close(value, one[key][rows], rtol=0, atol=1e-6)
        assert sum(loader.substituted for loader in ranks) == whole.substituted


def steps_until_refused(shards: Shards, **settings: Any) -> list[int]:
    """Steps that each rank of 1, 2 and 4 makes before too much is damaged, of those that refuse."""
    found = []
    for world in (1, 2, 4):
        steps = []
        for rank in range(world):
            loader, made = loader_of(shards, rank, world, corrupt="substitute", **settings), 0
            try:
                for epoch in range(30):
                    for _ in loader.host(epoch):
                        made += 1
            except RayclError as error:
                assert "data.corrupt_share" in str(error)
                steps.append(made)
        found.append(min(steps, default=-1))
    return found


def test_too_much_damage_is_refused_at_the_same_step_on_any_number_of_ranks(tmp_path: Path) -> None:
    photos(tmp_path)
    for sample in (0, 9, 21, 34):
        damage(Shards(tmp_path), sample)
    shards = Shards(tmp_path)

    refused = steps_until_refused(shards)

    assert len(set(refused)) == 1 and refused[0] >= SPARED // 3
    assert steps_until_refused(shards, corrupt_share=1.0) == [-1, -1, -1]


def test_a_single_damaged_sample_refuses_nothing(tmp_path: Path) -> None:
    damage(photos(tmp_path), 23)
    loader = loader_of(Shards(tmp_path), corrupt="substitute")
    for epoch in range(SPARED):
        assert len(list(loader.host(epoch))) == 3


@pytest.mark.parametrize("eighths", [1, 2, 3, 4, 5])
def test_boxes_stay_inside_images_that_are_decoded_smaller(eighths: int) -> None:
    for height in range(90, 120):
        width = 2 * height - 91
        to = tuple(-(-side * eighths // 8) for side in (height, width))  # as libjpeg rounds
        for edge in range(8):
            box = [edge, edge, height - edge, width - edge]
            top, left, rows, columns = shrunk(box, (height, width), to)
            assert 0 < rows <= to[0] - top and 0 < columns <= to[1] - left
            assert abs(rows - (height - edge) * eighths / 8) < 2
