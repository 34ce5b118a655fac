"""Files travel both ways between raycl and the published ffcv package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl import beton

if os.environ.get("RAYCL_NEEDS_FFCV"):
    import ffcv  # noqa: F401
else:
    pytest.importorskip(
        "ffcv", reason="the extra raycl[ffcv] is not installed", exc_type=ImportError
    )

import cv2
import simplejpeg
import torch
from ffcv import DatasetWriter
from ffcv import fields as ffcv_fields
from ffcv import reader as ffcv_reader
from ffcv.fields.ndarray import TorchTensorField
from ffcv.loader import Loader, OrderOption

SAMPLES = 90
MIB = 1 << 20


def smooth_image(index: int, height: int, width: int) -> np.ndarray:
    """A picture that JPEG represents well, different for every index."""
    y, x = np.mgrid[0:height, 0:width] / 40.0
    planes = [np.sin(x + index), np.cos(y - index), np.sin(x * y / 3 + index)]
    return (127 + 120 * np.stack(planes, axis=2)).astype(np.uint8)


class Samples:
    """An indexable data set with a value for every type of field; some byte strings are empty."""

    def __init__(self, fixed_size: bool) -> None:
        self.fixed_size = fixed_size

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        height, width = (96, 128) if self.fixed_size else (40 + 3 * index, 310 - 2 * index)
        return (
            smooth_image(index, height, width),
            index * index - 7,
            np.pi * index,
            np.arange(index * 37 % 5, dtype=np.uint8) + index % 200,
            np.full((2, 3), index, np.int16) + np.arange(3, dtype=np.int16),
            {"name": f"été {index}", "parts": list(range(index % 4))},
            torch.full((4,), index / 8),
        )


NAMES = ("image", "label", "weight", "blob", "grid", "note", "tensor")


def ffcv_types(image: ffcv_fields.RGBImageField) -> dict[str, ffcv_fields.Field]:
    return {
        "image": image,
        "label": ffcv_fields.IntField(),
        "weight": ffcv_fields.FloatField(),
        "blob": ffcv_fields.BytesField(),
        "grid": ffcv_fields.NDArrayField(np.dtype("int16"), (2, 3)),
        "note": ffcv_fields.JSONField(),
        "tensor": TorchTensorField(torch.float32, (4,)),
    }


def raycl_types(image: beton.RGBImageField) -> dict[str, beton.Field]:
    return {
        "image": image,
        "label": beton.IntField(),
        "weight": beton.FloatField(),
        "blob": beton.BytesField(),
        "grid": beton.NDArrayField("int16", (2, 3)),
        "note": beton.JSONField(),
        "tensor": beton.TorchTensorField("float32", (4,)),
    }


def write_here(path: Path, image: beton.RGBImageField, samples: Samples, page_size: int) -> None:
    with beton.Writer(path, raycl_types(image), page_size=page_size) as writer:
        for index in range(len(samples)):
            writer.write(dict(zip(NAMES, samples[index], strict=True)))


@pytest.mark.parametrize(
    ("settings", "page_size", "workers", "modes"),
    [
        ({"write_mode": "raw"}, 2 * MIB, 3, {beton.fields.RAW}),
        ({"write_mode": "jpg", "jpeg_quality": 80}, 2 * MIB, 1, {beton.fields.JPG}),
        ({"write_mode": "proportion"}, 8 * MIB, 2, {beton.fields.JPG, beton.fields.RAW}),
        (
            {"write_mode": "smart", "smart_threshold": 120_000, "max_resolution": 250},
            2 * MIB,
            2,
            {beton.fields.JPG, beton.fields.RAW},
        ),
    ],
    ids=lambda value: value.get("write_mode") if isinstance(value, dict) else None,
)
def test_reads_what_ffcv_writes(
    tmp_path: Path, settings: dict[str, Any], page_size: int, workers: int, modes: set[int]
) -> None:
    path, samples = tmp_path / "theirs.beton", Samples(fixed_size=False)
    field = ffcv_fields.RGBImageField(**settings)
    writer = DatasetWriter(str(path), ffcv_types(field), page_size, workers)
    writer.from_indexed_dataset(samples, chunksize=7)

    reader = beton.Reader(path)

    assert (len(reader), reader.page_size) == (SAMPLES, page_size)
    assert reader.fields == raycl_types(beton.RGBImageField())
    assert set(reader.image_info("image")[0]) == modes
    assert list(reader.verify()) == []
    for index in range(SAMPLES):
        image, label, weight, blob, grid, note, tensor = samples[index]
        read = reader.read(index)
        assert (read["label"], read["weight"], read["note"]) == (label, weight, note)
        np.testing.assert_array_equal(read["blob"], blob)
        np.testing.assert_array_equal(read["grid"], grid)
        np.testing.assert_array_equal(read["tensor"], tensor.numpy())
        image = ffcv_fields.rgb_image.resizer(image, field.max_resolution)
        if reader.image_info("image")[0][index] == beton.fields.RAW:
            np.testing.assert_array_equal(read["image"], image)
        else:
            stored = ffcv_fields.rgb_image.encode_jpeg(image, field.jpeg_quality)
            np.testing.assert_array_equal(
                np.frombuffer(reader.encoded(index, "image"), "u1"), stored
            )
            bgr = cv2.imdecode(stored, cv2.IMREAD_COLOR)
            np.testing.assert_allclose(read["image"].astype(int), bgr[..., ::-1], atol=2)
    np.testing.assert_array_equal(reader.column("label"), np.arange(SAMPLES) ** 2 - 7)


@pytest.mark.parametrize("process_cache", [False, True], ids=["mapped", "pages"])
def test_ffcv_loads_what_is_written_here(tmp_path: Path, process_cache: bool) -> None:
    path, samples = tmp_path / "ours.beton", Samples(fixed_size=True)
    write_here(path, beton.RGBImageField("proportion"), samples, 2 * MIB)
    reader = beton.Reader(path)
    modes = reader.image_info("image")[0]
    assert set(modes) == {beton.fields.JPG, beton.fields.RAW}

    loader = Loader(
        str(path),
        batch_size=15,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        os_cache=not process_cache,
    )
    index = 0
    for images, labels, weights, blobs, grids, notes, tensors in loader:
        notes = ffcv_fields.JSONField.unpack(notes)
        for row in range(len(images)):
            image, label, weight, blob, grid, note, tensor = samples[index]
            assert (labels[row, 0], weights[row, 0], notes[row]) == (label, weight, note)
            # FFCV pads byte strings to the longest of the data set.
            np.testing.assert_array_equal(blobs[row, : blob.size], blob)
            np.testing.assert_array_equal(grids[row], grid)
            np.testing.assert_array_equal(tensors[row], tensor)
            if modes[index] == beton.fields.RAW:
                np.testing.assert_array_equal(images[row], image)
            else:
                # FFCV decodes with a faster, less exact transform than Reader does.
                stored = reader.encoded(index, "image")
                fast = simplejpeg.decode_jpeg(stored, fastdct=True)
                np.testing.assert_allclose(images[row].numpy().astype(int), fast, atol=1)
            index += 1
    assert index == SAMPLES


@pytest.mark.parametrize("page_size", [2 * MIB, 8 * MIB])
def test_tables_are_those_of_ffcv(tmp_path: Path, page_size: int) -> None:
    theirs, ours, samples = tmp_path / "theirs", tmp_path / "ours", Samples(fixed_size=False)
    field = ffcv_fields.RGBImageField(write_mode="raw")
    DatasetWriter(str(theirs), ffcv_types(field), page_size, 1).from_indexed_dataset(samples)
    write_here(ours, beton.RGBImageField(), samples, page_size)

    expected, actual = ffcv_reader.Reader(str(theirs)), ffcv_reader.Reader(str(ours))

    assert actual.header == expected.header
    np.testing.assert_array_equal(actual.field_descriptors, expected.field_descriptors)
    assert actual.metadata.dtype == expected.metadata.dtype
    np.testing.assert_array_equal(actual.metadata["f1"], expected.metadata["f1"])
    np.testing.assert_array_equal(
        actual.alloc_table[["sample_id", "size"]], expected.alloc_table[["sample_id", "size"]]
    )


def test_the_first_bytes_of_a_file_may_be_empty(tmp_path: Path) -> None:
    # FFCV's writer then gives a pointer before the first page.
    path, blobs = tmp_path / "theirs.beton", [b"", b"abc", b"", b"", b"de"]
    rows = [(np.frombuffer(blob, np.uint8),) for blob in blobs]
    writer = DatasetWriter(str(path), {"blob": ffcv_fields.BytesField()}, 2 * MIB, 1)
    writer.from_indexed_dataset(rows)

    reader = beton.Reader(path)

    assert [bytes(reader.read(index)["blob"]) for index in range(5)] == blobs
    assert list(reader.verify()) == []


def test_a_custom_field_is_refused_by_name(tmp_path: Path) -> None:
    class Celsius(ffcv_fields.FloatField):
        pass

    path = tmp_path / "custom.beton"
    writer = DatasetWriter(str(path), {"warmth": Celsius()}, 2 * MIB, 1)
    writer.from_indexed_dataset([(20.0,), (21.5,)])

    with pytest.raises(beton.BetonError, match=r"custom\.beton: field 'warmth': has a custom type"):
        beton.Reader(path)


def test_scalars_alone_need_no_pages(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.beton", tmp_path / "ours.beton"
    DatasetWriter(str(theirs), {"x": ffcv_fields.IntField()}, 2 * MIB, 1).from_indexed_dataset(
        [(value,) for value in range(5)]
    )
    with beton.Writer(ours, {"x": beton.IntField()}, page_size=2 * MIB) as writer:
        for value in range(5):
            writer.write({"x": value})

    assert ours.read_bytes() == theirs.read_bytes()
    np.testing.assert_array_equal(beton.Reader(theirs).column("x"), np.arange(5))
