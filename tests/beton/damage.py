"""Whole shards, and what has to hold for damaged copies of them; for the tests and the fuzzer."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raycl.beton import (
    BetonError,
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    Reader,
    RGBImageField,
    TorchTensorField,
    Writer,
)
from raycl.beton.layout import ALLOCATION, HEADER, metadata_dtype, metadata_position
from raycl.beton.source import Source

PAGE = 2 << 20
SAMPLES = 5
READ = 40  # samples that are read of a damaged copy, which may claim to have many more


@dataclass(frozen=True)
class Shard:
    """A whole file.

    Attributes:
        samples: what its samples read as.
        head: bytes of header and field descriptors, which say what all others mean.
        tables: where the metadata table ends, and where the allocation table starts.
        own: for every sample, the parts of the file that are its alone: its row of the metadata
            table, its records in the allocation table, and its payloads.
    """

    content: bytes
    samples: list[dict[str, Any]]
    head: int
    tables: tuple[int, int]
    own: list[list[slice]]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth image, so that its JPEG is small."""
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3))
    y, x = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    rows = corners[0][None] * (1 - y[..., None]) + corners[1][None] * y[..., None]
    return (rows[:, :, 0] * (1 - x) + rows[:, :, 1] * x).astype(np.uint8)


def shards() -> list[Shard]:
    """Every type of field and mode of image, several pages, no pages, and FFCV's loose order."""
    everything: dict[str, Field] = {
        "photo": RGBImageField("jpg"),
        "label": IntField(),
        "mask": RGBImageField("proportion"),
        "weight": FloatField(),
        "blob": BytesField(),
        "grid": NDArrayField("<u2", (2, 3)),
        "note": JSONField(),
        "tensor": TorchTensorField("float32", (2,)),
    }
    values = [
        {
            "photo": picture(40 + k, 50 - k, k),
            "label": k * k - 3,
            "mask": picture(9, 8 + k, 100 + k),
            "weight": k / 8,
            "blob": bytes([k]) * (7 * k % 4),
            "grid": np.full((2, 3), 1000 * k, np.uint16),
            "note": {"k": k, "parts": ["é"] * k},
            "tensor": np.full(2, k / 2, np.float32),
        }
        for k in range(SAMPLES)
    ]
    paged: dict[str, Field] = {"image": RGBImageField(), "blob": BytesField()}
    large = [
        {"image": picture(6, 5 + k, k), "blob": np.full(2_000_000 if k == 2 else 9, k, np.uint8)}
        for k in range(SAMPLES)
    ]
    numbers: dict[str, Field] = {"x": IntField(), "y": FloatField()}
    whole = _written(everything, values)
    return [
        _described(whole),
        _described(_loosely_ordered(whole)),
        _described(_written(paged, large)),
        _described(_written(numbers, [{"x": k, "y": -k} for k in range(SAMPLES)])),
    ]


def _written(fields: dict[str, Field], samples: list[dict[str, Any]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.beton"
        with Writer(path, fields, page_size=PAGE) as writer:
            for sample in samples:
                writer.write(sample)
        return path.read_bytes()


def _loosely_ordered(content: bytes) -> bytes:
    """The same file with its allocation table in the order that several processes leave."""
    start = int(np.frombuffer(content, HEADER, 1)[0]["allocation_table"])
    table = np.frombuffer(content, ALLOCATION, offset=start)
    return content[:start] + np.random.default_rng(0).permutation(table).tobytes()


def _described(content: bytes) -> Shard:
    reader = Reader(Memory(content))
    start = int(np.frombuffer(content, HEADER, 1)[0]["allocation_table"])
    head = metadata_position(len(reader.fields))
    row = metadata_dtype({name: field.member for name, field in reader.fields.items()}).itemsize
    own = [[slice(head + k * row, head + (k + 1) * row)] for k in range(len(reader))]
    for at, record in enumerate(np.frombuffer(content, ALLOCATION, offset=start)):
        sample, pointer, size = (int(part) for part in record)
        record_at = start + at * ALLOCATION.itemsize
        own[sample] += [
            slice(record_at, record_at + ALLOCATION.itemsize),
            slice(pointer, pointer + size),
        ]
    samples = [reader.read(k) for k in range(len(reader))]
    return Shard(content, samples, head, (head + len(reader) * row, start), own)


class Memory:
    """A file that is in memory."""

    name = "memory.beton"

    def __init__(self, content: bytes | bytearray) -> None:
        self._bytes = memoryview(content).toreadonly()
        self.size = len(content)

    def read(self, start: int, size: int) -> memoryview:
        return self._bytes[start : start + size]

    def gather(self, starts: np.ndarray, sizes: np.ndarray, page_size: int) -> list[memoryview]:
        return [
            self.read(start, size)
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]


def check(shard: Shard, content: bytes | bytearray, source: str | Path | Source) -> None:
    """Reads all of a damaged copy and compares it with what the whole file holds.

    What holds for any damage: an operation gives values or raises BetonError, and a payload is
    what a record of the allocation table that bears the sample's own number describes. So damage
    never brings another sample's bytes, unless it forges a record.

    What holds where the head, the length and a sample's own bytes are undamaged: the sample reads
    as it did, or raises BetonError.

    The format has no checksums, so no more can be promised: damage of a sample's own bytes may
    change a label or pixels unnoticed, and damage of the head what all values mean (floats that are
    read as integers).
    """
    try:
        reader = Reader(source)
    except BetonError:
        return
    rows = np.arange(min(len(reader), READ))
    for name in reader.fields:
        with contextlib.suppress(BetonError):
            reader.column(name)
        with contextlib.suppress(BetonError):
            reader.image_info(name)
        with contextlib.suppress(BetonError):
            _check_spans(content, reader, rows, name)
    with contextlib.suppress(BetonError):
        assert reader.pages().shape == (len(reader),)
    if len(reader) <= READ:
        with contextlib.suppress(BetonError):
            assert all(isinstance(line, str) for line in reader.verify())
    known = len(content) == len(shard.content) and same(shard, content, slice(0, shard.head))
    for index in rows.tolist():
        try:
            read = reader.read(index)
        except BetonError:
            continue
        if known and all(same(shard, content, part) for part in shard.own[index]):
            assert equal(read, shard.samples[index]), f"sample {index} has other values"


def _check_spans(content: bytes | bytearray, reader: Reader, rows: np.ndarray, name: str) -> None:
    starts, sizes = reader.spans(rows, name)
    end = int(np.frombuffer(content, HEADER, 1)[0]["allocation_table"])
    records = {tuple(map(int, record)) for record in np.frombuffer(content, ALLOCATION, -1, end)}
    payloads = reader.payloads(rows, [name])[name]
    for index, start, size, payload in zip(
        rows.tolist(), starts.tolist(), sizes, payloads, strict=True
    ):
        assert len(payload) == max(size, 0)
        if size > 0:
            assert (index, start, size) in records
            assert (
                start + size <= end
                and start // reader.page_size == (start + size - 1) // reader.page_size
            )
            assert payload == content[start : start + size]
            assert payload == reader.encoded(index, name)


def same(shard: Shard, content: bytes | bytearray, part: slice) -> bool:
    return content[part] == shard.content[part]


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(map(_equal, left.values(), right.values()))


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right)


def records(shard: Shard) -> np.ndarray:
    """The allocation table."""
    return np.frombuffer(shard.content[shard.tables[1] :], ALLOCATION)


def integers(shard: Shard) -> Iterator[int]:
    """Numbers that are likely to break arithmetic, and those that stand in the file's tables."""
    for bits in (8, 15, 16, 31, 32, 63, 64):
        yield from ((1 << bits) - 1, 1 << bits, (1 << bits) + 1)
    yield from (0, 1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, *shard.tables)
    yield from (len(shard.content) - 1, len(shard.content), len(shard.content) + 1)
    for record in records(shard):
        yield from (int(record["pointer"]), int(record["size"]))
