"""The sidecar of a shard: right when it is whole, without effect when it is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycl.beton import BytesField, Field, FloatField, IntField, NDArrayField, Reader, Writer
from raycl.beton.layout import ALLOCATION, HEADER
from raycl.beton.source import MappedFile
from raycl.data import index
from raycl.data.index import Indexed, indexed, page_counts, stored_counts
from raycl.errors import RayclError

PAGE = 2 << 20
GRID = NDArrayField("u1", (4,))
FIELDS: dict[str, Field] = {"blob": BytesField(), "label": IntField(), "grid": GRID}


class Counted(MappedFile):
    """A local file that remembers what was read of it."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, size: int) -> memoryview:
        self.reads.append((start, size))
        return super().read(start, size)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """20 samples of 300 KB, six or seven to a page."""
    path = tmp_path / "x.beton"
    with Writer(path, FIELDS, page_size=PAGE) as writer:
        for i in range(20):
            grid = np.full(4, i, np.uint8)
            writer.write({"blob": bytes([i]) * 300_000, "label": i, "grid": grid})
    index.write(path)
    return path


def sidecar(shard: Path) -> Path:
    return shard.with_name("x.beton.index")


def test_a_shard_is_opened_with_one_read_of_its_sidecar(shard: Path) -> None:
    source, beside = Counted(shard), Counted(sidecar(shard))
    reader = Reader(indexed(source, beside))

    assert beside.reads == [(0, sidecar(shard).stat().st_size)]
    assert reader.column("label").tolist() == list(range(20))
    starts, sizes = reader.spans(np.arange(20), "blob")
    assert not source.reads
    assert sizes.tolist() == [300_000] * 20 and starts[0] == PAGE
    assert reader.name == str(shard) and len(reader) == 20
    sample = reader.read(13)
    assert sample["grid"].tolist() == [13] * 4 and bytes(sample["blob"]) == b"\r" * 300_000
    assert list(reader.verify()) == []
    assert sidecar(shard).stat().st_size < 10_000
    assert pickle.loads(pickle.dumps(reader)).read(7)["label"] == 7


def test_without_a_sidecar_three_reads(shard: Path) -> None:
    source = Counted(shard)
    reader = Reader(source)
    assert len(source.reads) == 1
    reader.column("label")
    assert len(source.reads) == 2
    reader.spans(np.arange(20), "blob")
    reader.spans(np.arange(20), "grid")
    assert len(source.reads) == 3


def test_page_counts(shard: Path) -> None:
    counts, rows = page_counts(Reader(shard))
    assert (counts.tolist(), counts.dtype, rows) == ([6, 6, 6, 2], np.int32, None)

    beside = Counted(sidecar(shard))
    stored = stored_counts(beside, shard.stat().st_size)
    assert stored is not None and stored.tolist() == [6, 6, 6, 2] and stored.dtype == np.int32
    assert len(beside.reads) == 1


def test_many_pages_take_a_second_read(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_FIRST_READ", 80)
    stored = stored_counts(MappedFile(sidecar(shard)), shard.stat().st_size)
    assert stored is not None and stored.tolist() == [6, 6, 6, 2]


def reversed_shard(shard: Path) -> None:
    """The same pages with the rows of the metadata backwards, as several processes may write."""
    content = bytearray(shard.read_bytes())
    reader = Reader(shard)
    (_, before), (table, _) = reader.tables
    rows = np.frombuffer(content, np.uint8, before - 24 - 3 * 1041, 24 + 3 * 1041).reshape(20, -1)
    rows[:] = rows[::-1].copy()
    records = np.frombuffer(content, ALLOCATION, offset=table)
    records["sample"] = 19 - records["sample"]
    shard.write_bytes(content)


def test_rows_that_do_not_ascend_by_page(shard: Path) -> None:
    reversed_shard(shard)
    reader = Reader(shard)
    assert reader.read(0)["label"] == 19 and bytes(reader.read(3)["blob"][:2]) == b"\x10\x10"
    assert list(reader.verify()) == []
    counts, rows = page_counts(reader)
    assert counts.tolist() == [6, 6, 6, 2]
    assert rows is not None and rows.tolist() == [
        *range(14, 20), *range(8, 14), *range(2, 8), 0, 1,
    ]  # fmt: skip
    index.write(shard)
    assert stored_counts(MappedFile(sidecar(shard)), shard.stat().st_size) is None
    assert Reader(indexed(MappedFile(shard), MappedFile(sidecar(shard)))).read(0)["label"] == 19


@pytest.mark.parametrize("values", [0, 3])
def test_without_payloads_a_shard_is_one_page(tmp_path: Path, values: int) -> None:
    path = tmp_path / "x.beton"
    with Writer(path, {"score": FloatField()}) as writer:
        for i in range(values):
            writer.write({"score": i})
    index.write(path)
    counts, rows = page_counts(Reader(path))
    assert (counts.tolist(), rows) == ([values] * bool(values), None)
    reader = Reader(indexed(MappedFile(path), MappedFile(sidecar(path))))
    assert reader.column("score").tolist() == list(range(values))


def test_empty_values_belong_to_the_page_before(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    sizes = [0, 1_500_000, 0, 1_500_000, 0]
    with Writer(path, {"blob": BytesField()}, page_size=PAGE) as writer:
        for size in sizes:
            writer.write({"blob": bytes(size)})
    assert page_counts(Reader(path))[0].tolist() == [3, 2]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:50],
        lambda content: content[:-1],
        lambda content: b"x" + content[1:],
        lambda content: content[:-9] + bytes([content[-9] ^ 255]) + content[-8:],
        lambda content: content[:24] + b"\xff" * 8 + content[32:],
        lambda content: content[:40] + b"\xff" * 8 + content[48:],
        lambda content: content[:48] + b"\xff" * 8 + content[56:],
    ],
    ids=["empty", "head", "tail", "magic", "tables", "pages", "size of head", "size of table"],
)
def test_a_damaged_sidecar_is_ignored(shard: Path, damage: Callable[[bytes], bytes]) -> None:
    path = sidecar(shard)
    path.write_bytes(damage(path.read_bytes()))
    source = indexed(MappedFile(shard), MappedFile(path))
    assert not isinstance(source, Indexed)
    assert Reader(source).read(5)["label"] == 5


def test_damaged_counts_are_ignored(shard: Path) -> None:
    path, content = sidecar(shard), bytearray(sidecar(shard).read_bytes())
    for position in (16, 32, 64, 66):
        damaged = content.copy()
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert stored_counts(MappedFile(path), shard.stat().st_size) is None


def test_the_sidecar_of_another_size_is_stale(shard: Path) -> None:
    size = shard.stat().st_size
    assert stored_counts(MappedFile(sidecar(shard)), size + 1) is None
    with Writer(shard, FIELDS, page_size=PAGE) as writer:
        writer.write({"blob": b"", "label": 7, "grid": np.zeros(4, np.uint8)})
    source = indexed(MappedFile(shard), MappedFile(sidecar(shard)))
    assert Reader(source).column("label").tolist() == [7]


def test_a_damaged_shard_gets_no_sidecar(shard: Path) -> None:
    sidecar(shard).unlink()
    content = shard.read_bytes()
    shard.write_bytes(content[:-30])
    with pytest.raises(RayclError, match="truncated"):
        index.write(shard)
    end = int(np.frombuffer(content, HEADER, 1)[0]["allocation_table"])
    shard.write_bytes(content[: end + 16] + b"\xff" * 8 + content[end + 24 :])
    with pytest.raises(RayclError, match="record 0 of the allocation table"):
        index.write(shard)
    assert list(shard.parent.iterdir()) == [shard]


def test_a_sidecar_that_cannot_be_written_is_named(shard: Path) -> None:
    sidecar(shard).unlink()
    sidecar(shard).mkdir()
    with pytest.raises(RayclError, match=r"x\.beton\.index: cannot be written"):
        index.write(shard)
