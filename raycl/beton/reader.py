"""Reads `.beton` files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raycl.beton.fields import Field, FloatField, IntField, RGBImageField, make_field
from raycl.beton.layout import (
    ALLOCATION,
    BetonError,
    Head,
    check_size,
    metadata_dtype,
    pointers,
    read_head,
    round_up,
)
from raycl.beton.lazy import lazy
from raycl.beton.source import MappedFile, Source

LOST = -1  # in place of the size of a payload that is not in the allocation table
_BLOCK = 256  # samples that a walk over a file fetches at once


def open_head(source: Source) -> tuple[Head, dict[str, Field]]:
    """Head and fields of a file, with one small read; finds every truncation by the file's size.

    Raises:
        BetonError: truncated, foreign, or with a field that raycl cannot read.
    """
    head = read_head(source)
    fields: dict[str, Field] = {}
    for name, (type_id, arguments) in head.fields.items():
        try:
            fields[name] = make_field(type_id, arguments)
        except BetonError as error:
            raise BetonError(f"{source.name}: field {name!r}: {error}") from error
    row = metadata_dtype({name: field.member for name, field in fields.items()})
    allocating = sum(field.allocates for field in fields.values())
    check_size(source.name, head, row.itemsize, head.samples * allocating)
    return head, fields


class Reader:
    """The samples of one file.

    Opening reads its head. Each table is read at once, when it is first needed; the payloads of a
    local file are not copied. Readers may be shared by threads; a pickled one opens the file again.

    Args:
        source: a path, or whatever else can give the bytes of a file.

    Attributes:
        name: path or URI of the file, for messages.
        fields: the fields by name.
        page_size: in bytes.

    Raises:
        BetonError: the file is truncated, damaged, foreign, or holds a field of a custom type.
    """

    def __init__(self, source: str | Path | Source) -> None:
        self._source = MappedFile(source) if isinstance(source, str | Path) else source
        self.name = self._source.name
        self._head, self.fields = open_head(self._source)
        self.page_size = self._head.page_size
        self._row = metadata_dtype({name: field.member for name, field in self.fields.items()})
        allocating = [name for name, field in self.fields.items() if field.allocates]
        self._allocating = {name: position for position, name in enumerate(allocating)}

    def __len__(self) -> int:
        return self._head.samples

    def __reduce__(self) -> tuple[type[Reader], tuple[Source]]:
        return Reader, (self._source,)

    @property
    def tables(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What lies before and after the pages: (start, size) of each in bytes."""
        end = self._head.allocation_table
        before = self._head.metadata + len(self) * self._row.itemsize
        return (0, before), (end, self._head.file_size - end)

    def check(self) -> None:
        """Reads the tables now, not when they are needed.

        Raises:
            BetonError: the allocation table has a record that cannot be.
        """
        _ = self._allocations

    def column(self, field: str) -> np.ndarray:
        """All values of a float or int field, (N,)."""
        return self.numbers(slice(None), field).copy()

    def numbers(self, rows: np.ndarray | slice, field: str) -> np.ndarray:
        """Values of a float or int field of these samples, (n,)."""
        if not isinstance(self._field(field), FloatField | IntField):
            raise BetonError(f"{self.name}: field {field!r} is not a column of numbers")
        values: np.ndarray = self._metadata[field][rows]
        return values

    def image_info(
        self, field: str, rows: np.ndarray | slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mode (0 jpg, 1 raw), height and width of all images or of these, each (n,)."""
        if not isinstance(self._field(field), RGBImageField):
            raise BetonError(f"{self.name}: field {field!r} does not hold images")
        cells = self._metadata[field][rows]
        return cells["mode"].copy(), cells["height"].copy(), cells["width"].copy()

    def encoded(self, index: int, field: str) -> memoryview:
        """The stored bytes of a value that has a payload, without a copy if the file is local."""
        self._check(index)
        starts, sizes = self.spans(np.array([index]), field)
        if sizes[0] == LOST:
            raise self._lost(index, field)
        return self._source.gather(starts, sizes, self.page_size)[0]

    def payloads(self, rows: np.ndarray, fields: Sequence[str]) -> dict[str, list[memoryview]]:
        """The stored bytes of these samples by field, in one go; empty where they are lost."""
        spans = [self.spans(rows, field) for field in fields]
        if not spans:
            return {}
        starts, sizes = (np.concatenate(part) for part in zip(*spans, strict=True))
        parts = self._source.gather(starts, np.maximum(sizes, 0), self.page_size)
        count = len(rows)
        return {f: parts[i * count : (i + 1) * count] for i, f in enumerate(fields)}

    def spans(self, rows: np.ndarray, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Where the payloads of these samples lie: start and size in bytes, each (n,) int64.

        The size of one that the allocation table does not have is LOST, its start 0.
        """
        if not self._field(field).allocates:
            raise BetonError(f"{self.name}: field {field!r} has no payload; use column()")
        cells = self._metadata[field][rows]
        starts = cells["pointer"] if cells.dtype.names else cells
        stated = cells["size"] if cells.dtype.names and "size" in cells.dtype.names else None
        table, width = self._allocations, len(self._allocating)
        # In files of raycl's writer, the record of a payload has a place of its own.
        records = table[rows * width + self._allocating[field]]
        sizes = records["size"].astype(np.int64)
        there = (records["pointer"] == starts) & (records["sample"] == rows) & (sizes > 0)
        if stated is not None:
            there |= stated == 0
        if not there.all():
            sizes[~there] = self._searched(rows[~there], starts[~there])
        if stated is not None:
            sizes[sizes.astype(np.uint64) != stated] = LOST
            sizes[stated == 0] = 0
        return np.where(sizes > 0, starts, 0).astype(np.int64), sizes

    def pages(self) -> np.ndarray:
        """The page of every sample, (N,) int64, counted from the first that holds payloads.

        The page of a sample that has no payload at all is that of the sample before it.
        """
        pages = np.full(len(self), LOST, np.int64)
        first = round_up(self._head.metadata + self._metadata.nbytes, self.page_size)
        last = max(0, (self._head.allocation_table - first - 1) // self.page_size)
        for name in self._allocating:
            cells = self._metadata[name]
            page = (pointers(self._metadata, name) // self.page_size).astype(np.int64)
            page = np.clip(page - first // self.page_size, 0, last)
            if cells.dtype.names and "size" in cells.dtype.names:
                page[cells["size"] == 0] = LOST  # an empty value may point anywhere
            pages = np.where(pages == LOST, page, pages)
        known = np.maximum.accumulate(np.where(pages == LOST, 0, np.arange(len(self))))
        return np.maximum(pages[known], 0)

    def read(self, index: int) -> dict[str, Any]:
        """One sample, decoded: images (H, W, 3) uint8 RGB, bytes as (size,) uint8 arrays.

        Raises:
            BetonError: a value is damaged; the message names file, sample and field.
        """
        self._check(index)
        payloads = self.payloads(np.array([index]), list(self._allocating))
        return {
            name: self._value(index, name, payloads[name][0] if name in payloads else None)
            for name in self.fields
        }

    def verify(self, first: int = 0, end: int | None = None) -> Iterator[str]:
        """Decodes all samples [first, end) and yields a line for each value that is damaged."""
        end = len(self) if end is None else min(end, len(self))
        for start in range(first, end, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, end))
            payloads = self.payloads(rows, list(self._allocating))
            for at, index in enumerate(rows.tolist()):
                for name in self.fields:
                    try:
                        self._value(index, name, payloads[name][at] if name in payloads else None)
                    except BetonError as error:
                        yield str(error)

    def _value(self, index: int, name: str, payload: memoryview | None) -> Any:
        if payload is None:
            payload = memoryview(b"")
        elif not payload and self.spans(np.array([index]), name)[1][0] == LOST:
            raise self._lost(index, name)
        try:
            return self.fields[name].decode(self._metadata[name][index], payload)
        except BetonError as error:
            raise BetonError(f"{self.name}: sample {index}, field {name!r}: {error}") from error

    def _lost(self, index: int, field: str) -> BetonError:
        start = int(pointers(self._metadata, field)[index])
        return BetonError(
            f"{self.name}: sample {index}, field {field!r}: damaged: no payload of its size is "
            f"allocated at byte {start}"
        )

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: sample {index} of {len(self)}")

    def _field(self, name: str) -> Field:
        if name not in self.fields:
            raise BetonError(
                f"{self.name}: there is no field {name!r}; it has {', '.join(self.fields)}"
            )
        return self.fields[name]

    @lazy
    def _metadata(self) -> np.ndarray:
        size = len(self) * self._row.itemsize
        return np.frombuffer(self._source.read(self._head.metadata, size), self._row)

    @lazy
    def _allocations(self) -> np.ndarray:
        """The allocation table. Every payload must lie in one page, and belong to a sample."""
        table = np.frombuffer(self._source.read(*self.tables[1]), ALLOCATION)
        first = round_up(self._head.metadata + self._metadata.nbytes, self.page_size)
        start, size, end = table["pointer"], table["size"], self._head.allocation_table
        # Ordered so that no term overflows where the ones before it hold.
        fits = (start >= first) & (start < end) & (size <= self.page_size)
        fits &= start % self.page_size + size <= self.page_size
        # FFCV may point anywhere with an empty value, and nothing is read from there.
        wrong = (~fits & (size > 0)) | (table["sample"] >= len(self))
        if wrong.any():
            record = int(np.argmax(wrong))
            sample, pointer, length = (int(part) for part in table[record])
            raise BetonError(
                f"{self.name}: damaged: record {record} of the allocation table puts {length} "
                f"bytes of sample {sample} at byte {pointer}, and the pages of its {len(self)} "
                f"samples are the bytes {first} to {end}, {self.page_size} each"
            )
        return table

    @lazy
    def _sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pointers, samples and sizes of all payloads, by ascending pointer.

        An empty value shares its pointer with the payload that follows, so they are left out.
        """
        table = self._allocations[self._allocations["size"] > 0]
        order = np.argsort(table["pointer"], kind="stable")
        return table["pointer"][order], table["sample"][order], table["size"][order]

    def _searched(self, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Sizes of the payloads of these samples, wherever in the table they stand.

        LOST also where a damaged pointer leads to a payload of another sample.
        """
        allocated, samples, sizes = self._sorted
        if not allocated.size:
            return np.full(len(starts), LOST, np.int64)
        nearest = np.minimum(np.searchsorted(allocated, starts), allocated.size - 1)
        there = (allocated[nearest] == starts) & (samples[nearest] == rows)
        return np.where(there, sizes[nearest].astype(np.int64), LOST)
