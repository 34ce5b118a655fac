"""The forms of CIFAR-10, written here as the official archives are."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycl.data.importers import Item, cifar10
from raycl.errors import RayclError

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
EACH = 4


def made() -> tuple[np.ndarray, np.ndarray]:
    """Images (6, EACH, 32, 32, 3) and labels (6, EACH) of the six batches."""
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (6, EACH, 32, 32, 3), np.uint8)
    return images, generator.integers(0, 10, (6, EACH))


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python2_pickle(data: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 and its NumPy pickled it: 8-bit strings, and names of NumPy 1."""
    rows, columns = data.shape
    levels = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR" + levels
    return b"".join(
        [
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR",
            b"(K\x01(" + struct.pack("<cHcH", b"M", rows, b"M", columns) + b"t" + dtype + b"\x89",
            b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        ]
    )


def write_python(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in zip(BATCHES, *made(), strict=True):
        (folder / name).write_bytes(python2_pickle(planes(images), labels))


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in zip(BATCHES, *made(), strict=True):
        records = np.concatenate([labels[:, None].astype(np.uint8), planes(images)], axis=1)
        records.tofile(folder / f"{name}.bin")


def check(items: list[Item], images: np.ndarray, labels: np.ndarray) -> None:
    assert np.array_equal(np.stack([np.asarray(item.content) for item in items]), images)
    assert [item.label for item in items] == labels.tolist()


@pytest.mark.parametrize(
    ("write", "folder"),
    [
        (write_python, "."),
        (write_python, "cifar-10-batches-py"),
        (write_binary, "."),
        (write_binary, "cifar-10-batches-bin"),
    ],
)
def test_official_batches(tmp_path: Path, write: Callable[[Path], None], folder: str) -> None:
    write(tmp_path / folder)
    train, test = cifar10.splits(tmp_path)
    images, labels = made()
    assert (train.name, len(train.items), test.name, len(test.items)) == (
        "train",
        5 * EACH,
        "test",
        EACH,
    )
    assert train.classes == cifar10.CLASSES and len(cifar10.CLASSES) == 10
    check(list(train.items), images[:5].reshape(-1, 32, 32, 3), labels[:5].ravel())
    check(list(test.items), images[5], labels[5])


def test_real_archives(shared_data: Callable[[str], Path]) -> None:
    train, test = cifar10.splits(shared_data("cifar10"))
    assert (train.name, len(train.items), test.name, len(test.items)) == (
        "train",
        50_000,
        "test",
        10_000,
    )
    assert train.classes == cifar10.CLASSES


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write_python(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(RayclError, match="incomplete, missing: data_batch_3"):
        cifar10.splits(tmp_path)


def test_an_empty_directory_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match=r"no CIFAR-10 here.*train\.npz.*data_batch_1"):
        cifar10.splits(tmp_path)


def test_a_truncated_binary_batch_is_named(tmp_path: Path) -> None:
    write_binary(tmp_path)
    os.truncate(tmp_path / "data_batch_2.bin", 5000)
    with pytest.raises(RayclError, match=r"data_batch_2\.bin: 5000 bytes are no whole number"):
        cifar10.splits(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain text",
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}),
        pickle.dumps({b"data": np.zeros((2, 99), np.uint8), b"labels": [0, 1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}),
    ],
)
def test_other_batches_are_refused(tmp_path: Path, content: bytes) -> None:
    write_python(tmp_path)
    (tmp_path / "data_batch_4").write_bytes(content)
    with pytest.raises(RayclError, match="data_batch_4: not a"):
        cifar10.splits(tmp_path)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    write_python(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Trap(), b"labels": [0]}))
    with pytest.raises(RayclError, match=r"test_batch: refused: .* asks for posix\.system"):
        cifar10.splits(tmp_path)
    assert not (tmp_path / "sprung").exists()
