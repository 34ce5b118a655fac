"""Both layouts of archives, and how wrong ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl.data.importers import npz
from raycl.errors import RayclError

IMAGES = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
PAYLOADS = [b"first", b"", b"the third"]
ENCODED: dict[str, Any] = {
    "data": np.frombuffer(b"".join(PAYLOADS), np.uint8),
    "offsets": np.array([0, 5, 5, 14]),
    "labels": np.array([1, 0, 1]),
    "names": np.array([b"a/1", b"b/2", b"c/3"]),
    "classes": np.array(["cat", "dog"]),
}


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_encoded_layout(tmp_path: Path) -> None:
    (split,) = npz.splits(save(tmp_path / "pets.npz", **ENCODED))
    items = list(split.items)
    assert [bytes(item.content) for item in items] == PAYLOADS  # type: ignore[arg-type]
    assert [item.label for item in items] == [1, 0, 1]
    assert split.classes == ["cat", "dog"]
    assert (split.name, len(split.items), split.mode) == ("", 3, "jpg")
    assert items[1].origin.endswith("pets.npz[1] (b/2)")


def test_a_directory_holds_one_split_per_archive(tmp_path: Path) -> None:
    save(tmp_path / "train.npz", **ENCODED)
    save(tmp_path / "test.npz", images=IMAGES)
    assert [(s.name, s.labelled) for s in npz.splits(tmp_path)] == [
        ("test", False),
        ("train", True),
    ]


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 1), (3, 4, 5, 3)])
def test_plain_layout(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = IMAGES.ravel()[: np.prod(shape)].reshape(shape)
    labels = np.array([[4], [7], [4]])
    (split,) = npz.splits(save(tmp_path / "x.npz", images=images, labels=labels))
    items = list(split.items)
    assert [item.label for item in items] == [4, 7, 4]
    assert (split.mode, split.classes) == ("raw", None)
    for item, image in zip(items, images, strict=True):
        assert np.asarray(item.content).shape == (4, 5, 3)
        assert (np.asarray(item.content) == image.reshape(4, 5, -1)).all()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": IMAGES}, "expected are the keys 'data' and 'offsets'.*or 'images'.*found: 'x'"),
        ({"data": ENCODED["data"]}, "'offsets'.*found: 'data'"),
        ({}, "found: nothing"),
        ({"images": IMAGES / 255}, r"'images' must be .* uint8, it is \(3, 4, 5, 3\) float64"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, "'images' must be"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "holds no images"),
        ({"images": IMAGES, "labels": np.arange(2)}, r"'labels' must be \(3,\) integers"),
        ({"images": IMAGES, "labels": np.array(["a", "b", "c"])}, "'labels' must be"),
        ({**ENCODED, "labels": np.array([0, 1, 2])}, "run from 0 to 2, but 'classes' names 2"),
        ({**ENCODED, "labels": np.array([0, 1, -1])}, "run from -1 to 1"),
        ({**ENCODED, "offsets": np.array([0, 9, 5, 14])}, "'offsets' must ascend"),
        ({**ENCODED, "offsets": np.array([0, 5, 5, 15])}, "the 14 bytes of 'data'"),
        ({**ENCODED, "offsets": np.array([0.0, 14.0])}, "'offsets' must be"),
        ({**ENCODED, "data": np.zeros((2, 7), np.uint8)}, "'data' must be"),
        ({"images": np.array([object()])}, "not a readable .npz archive"),
    ],
)
def test_wrong_archives_are_refused(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(RayclError, match=says) as error:
        npz.splits(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04 cut"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(RayclError, match=r"bad\.npz: not a readable \.npz archive"):
        npz.splits(path)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(RayclError, match="a single array"):
        npz.splits(path)


def test_a_directory_without_archives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match=r"no \.npz file"):
        npz.splits(tmp_path)


def test_real_flowers(shared_data: Callable[[str], Path]) -> None:
    splits = {split.name: split for split in npz.splits(shared_data("flowers102"))}
    assert {name: len(split.items) for name, split in splits.items()} == {
        "train": 1020,
        "val": 1020,
        "test": 2040,
    }
    first = next(iter(splits["train"].items))
    assert bytes(first.content).startswith(b"\xff\xd8")  # type: ignore[arg-type]
    assert len(splits["train"].classes or []) == 102
