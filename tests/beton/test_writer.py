from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl.beton import (
    BetonError,
    BytesField,
    Field,
    IntField,
    NDArrayField,
    Reader,
    RGBImageField,
    Writer,
)
from raycl.beton.layout import ALLOCATION, HEADER

PAGE = 2 << 20
BLOB = {"blob": BytesField()}


def write_blobs(path: Path, sizes: list[int], page_size: int = PAGE) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    blobs = [random.integers(0, 256, size).astype(np.uint8) for size in sizes]
    with Writer(path, BLOB, page_size=page_size) as writer:
        for blob in blobs:
            writer.write({"blob": blob})
    return blobs


def tables(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = path.read_bytes()
    header = np.frombuffer(content, HEADER, 1)[0]
    return header, np.frombuffer(content, ALLOCATION, offset=int(header["allocation_table"]))


@pytest.mark.parametrize(
    ("sizes", "pages"),
    [
        ([PAGE], [0]),
        ([PAGE - 1, 1, 1], [0, 0, 1]),
        ([PAGE, PAGE, 5], [0, 1, 2]),
        ([10, PAGE - 9, 10], [0, 1, 2]),
        ([PAGE // 2, PAGE // 2, PAGE // 2 + 1, PAGE // 2], [0, 0, 1, 2]),
    ],
)
def test_a_payload_never_crosses_a_page(tmp_path: Path, sizes: list[int], pages: list[int]) -> None:
    path = tmp_path / "x.beton"
    blobs = write_blobs(path, sizes)

    header, allocations = tables(path)

    assert (allocations["pointer"] // PAGE - 1).tolist() == pages
    assert header["allocation_table"] == PAGE * (2 + pages[-1])
    reader = Reader(path)
    for index, blob in enumerate(blobs):
        np.testing.assert_array_equal(reader.read(index)["blob"], blob)


def test_all_payloads_of_a_sample_lie_in_one_page(tmp_path: Path) -> None:
    path, random = tmp_path / "x.beton", np.random.default_rng(0)
    fields: dict[str, Field] = {"a": BytesField(), "n": IntField(), "b": BytesField()}
    sizes = random.integers(0, PAGE // 3, (40, 2))
    with Writer(path, fields, page_size=PAGE) as writer:
        for n, (a, b) in enumerate(sizes):
            writer.write({"a": np.full(a, n, np.uint8), "n": n, "b": np.full(b, n + 1, np.uint8)})

    _, allocations = tables(path)
    pages = allocations["pointer"].reshape(40, 2) // PAGE

    np.testing.assert_array_equal(pages[:, 0], pages[:, 1])
    np.testing.assert_array_equal(allocations["sample"].reshape(40, 2)[:, 0], np.arange(40))
    np.testing.assert_array_equal(allocations["size"].reshape(40, 2), sizes)
    assert len(np.unique(pages)) > 4
    assert list(Reader(path).verify()) == []


def test_unused_space_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    write_blobs(path, [PAGE, 3])
    content = path.read_bytes()

    assert not any(content[24 + 1041 + 32 : PAGE])
    assert not any(content[2 * PAGE + 3 : 3 * PAGE])


def test_empty_values_have_a_pointer_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    write_blobs(path, [0, 4, 0, 0, 2])

    pointers = tables(path)[1]["pointer"]

    assert len(np.unique(pointers)) == 5
    assert [Reader(path).read(i)["blob"].size for i in range(5)] == [0, 4, 0, 0, 2]


def test_metadata_larger_than_a_page_move_the_pages(tmp_path: Path) -> None:
    path, count = tmp_path / "x.beton", 60_000
    array = NDArrayField("<i8", (5,))
    fields: dict[str, Field] = {"array": array, "a": IntField(), "b": IntField(), "c": IntField()}
    fields |= {"d": IntField(), "e": IntField()}
    with Writer(path, fields, page_size=PAGE) as writer:
        for n in range(count):
            writer.write({"array": np.full(5, n), "a": n, "b": 0, "c": 0, "d": 0, "e": -n})

    reader = Reader(path)
    header, allocations = tables(path)
    metadata_end = 24 + 6 * 1041 + count * 48
    assert PAGE < metadata_end < 2 * PAGE
    assert allocations["pointer"][0] == 2 * PAGE
    assert header["allocation_table"] == 4 * PAGE
    np.testing.assert_array_equal(reader.column("e"), -np.arange(count))
    for n in (0, 1, 30_000, count - 1):
        np.testing.assert_array_equal(reader.read(n)["array"], np.full(5, n))
    assert not any(path.read_bytes()[metadata_end : 2 * PAGE])


def test_memory_is_a_page_and_the_tables(tmp_path: Path) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    tracemalloc.start()
    try:
        with Writer(tmp_path / "x.beton", {"i": RGBImageField()}, page_size=PAGE) as writer:
            for _ in range(1000):
                writer.write({"i": image})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (tmp_path / "x.beton").stat().st_size > 13 * PAGE
    assert peak < PAGE + (1 << 20)


def test_no_samples_make_a_file(tmp_path: Path) -> None:
    with Writer(tmp_path / "x.beton", BLOB):
        pass
    assert len(Reader(tmp_path / "x.beton")) == 0


def test_the_file_appears_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    path.write_text("what was there before")
    with Writer(path, BLOB) as writer:
        writer.write({"blob": b"abc"})
        assert path.read_text() == "what was there before"

    assert os.listdir(tmp_path) == ["x.beton"]
    assert len(Reader(path)) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Writer(tmp_path / "x.beton", BLOB) as writer:
        writer.write({"blob": b"abc"})
        raise error

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", [0, 1, 3, 4], ids=["first page", "later", "last page", "tables"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    put, calls = Writer._put, []

    def full(self: Writer, content: np.ndarray, position: int) -> None:
        calls.append(position)
        if len(calls) > room:
            with open("/dev/full", "wb", buffering=0) as device:
                monkeypatch.setattr(self, "_file", device)
                put(self, content, 0)
        put(self, content, position)

    monkeypatch.setattr(Writer, "_put", full)
    with pytest.raises(BetonError, match=r"x\.beton: cannot be written: No space left on device"):
        write_blobs(tmp_path / "x.beton", [PAGE] * 4)

    assert len(calls) == room + 1
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_at_the_end_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BetonError, match="Disk quota exceeded"):
        write_blobs(tmp_path / "x.beton", [1])

    assert os.listdir(tmp_path) == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "x.beton"
    with (
        pytest.raises(BetonError, match=r"nowhere/x\.beton: cannot be written: No such file"),
        Writer(path, BLOB),
    ):
        pass


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"blob": b"x"}, "sample 1: fields missing: n; unknown: none"),
        ({"blob": b"x", "n": 1, "m": 2}, "sample 1: fields missing: none; unknown: m"),
        ({"blob": "x", "n": 1}, "sample 1, field 'blob': expected bytes"),
        ({"blob": b"x", "n": "1"}, "sample 1, field 'n': expected an integer"),
        ({"blob": bytes(PAGE + 1), "n": 1}, "sample 1: takes 2097153 bytes .* larger page_size"),
    ],
)
def test_refused_samples_leave_no_trace(
    tmp_path: Path, sample: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.beton"
    with Writer(path, {"blob": BytesField(), "n": IntField()}, page_size=PAGE) as writer:
        writer.write({"blob": b"first", "n": 1})
        with pytest.raises(BetonError, match=message):
            writer.write(sample)
        writer.write({"blob": b"second", "n": 2})

    reader = Reader(path)
    assert reader.column("n").tolist() == [1, 2]
    assert [bytes(reader.encoded(i, "blob")) for i in range(2)] == [b"first", b"second"]


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {}, "at least one field"),
        ({"seventeen_letters": IntField()}, {}, "field 'seventeen_letters': a name has 1 to 16"),
        ({"": IntField()}, {}, "field ''"),
        ({"größe": IntField()}, {}, "field 'größe'"),
        ({"x": IntField()}, {"page_size": 1 << 20}, "page_size must be a power of two"),
        ({"x": IntField()}, {"page_size": 3 << 20}, "not 3145728"),
    ],
)
def test_impossible_files_are_refused(
    tmp_path: Path, fields: dict[str, Field], options: dict[str, int], message: str
) -> None:
    with pytest.raises(BetonError, match=message):
        Writer(tmp_path / "x.beton", fields, **options)


def test_writes_inside_its_block_only(tmp_path: Path) -> None:
    with pytest.raises(BetonError, match="inside its `with` block"):
        Writer(tmp_path / "x.beton", BLOB).write({"blob": b""})
    assert os.listdir(tmp_path) == []


def test_encoded_values_are_stored_as_they_are(tmp_path: Path) -> None:
    fields: dict[str, Field] = {"blob": BytesField(), "label": IntField()}
    for name, encoded in (("a", False), ("b", True)):
        with Writer(tmp_path / name, fields, page_size=PAGE) as writer:
            for i in range(5):
                if encoded:
                    writer.write_encoded({"label": (i, None), "blob": ((0, i), bytes(range(i)))})
                else:
                    writer.write({"blob": bytes(range(i)), "label": i})
            with pytest.raises(BetonError, match=r"sample 5: fields missing: label"):
                writer.write_encoded({"blob": ((0, 1), b"x")})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    with Writer(path, BLOB, page_size=PAGE) as orphan:
        orphan.write({"blob": b"old"})
        write_blobs(path, [7])
        orphan.write({"blob": b"old"})
    assert len(Reader(path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["x.beton"]
