"""Reads `.beton` files through a memory map."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
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

_NOT_ALLOCATED = -1


def open_head(path: Path) -> tuple[Head, dict[str, Field]]:
    """Head and fields of a file, with one small read; finds every truncation by the file's size.

    Raises:
        BetonError: truncated, foreign, or with a field that raycl cannot read.
    """
    head = read_head(path)
    fields: dict[str, Field] = {}
    for name, (type_id, arguments) in head.fields.items():
        try:
            fields[name] = make_field(type_id, arguments)
        except BetonError as error:
            raise BetonError(f"{path}: field {name!r}: {error}") from error
    row = metadata_dtype({name: field.member for name, field in fields.items()})
    allocating = sum(field.allocates for field in fields.values())
    check_size(path, head, row.itemsize, head.samples * allocating)
    return head, fields


class Reader:
    """The samples of one file. Opening reads the tables only; payloads are not copied or decoded.

    Readers may be shared by threads, and a pickled one opens the file again.

    Raises:
        BetonError: the file is truncated, damaged, foreign, or holds a field of a custom type.
    """

    def __init__(self, path: str | Path) -> None:
        # Absolute, because it may be pickled into a process with another working directory.
        self.path = Path(path).absolute()
        self._head, self.fields = open_head(self.path)
        self.page_size = self._head.page_size
        try:
            with open(self.path, "rb") as file:
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise BetonError(f"{self.path}: cannot be mapped into memory: {error}") from error
        row = metadata_dtype({name: field.member for name, field in self.fields.items()})
        self._metadata = self._table(row, self._head.metadata, self._head.samples)
        self._payloads: tuple[np.ndarray, np.ndarray] | None = None
        self._spans: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._check_allocations()

    def __len__(self) -> int:
        return self._head.samples

    def __reduce__(self) -> tuple[type[Reader], tuple[Path]]:
        return Reader, (self.path,)

    def column(self, field: str) -> np.ndarray:
        """All values of a float or int field, (N,)."""
        if not isinstance(self._field(field), FloatField | IntField):
            raise BetonError(f"{self.path}: field {field!r} is not a column of numbers")
        return self._metadata[field].copy()

    def encoded(self, index: int, field: str) -> memoryview:
        """The stored bytes of a value that has a payload, without a copy."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: sample {index} of {len(self)}")
        span = self._spans.get(field)
        starts, sizes = self._locate(field) if span is None else span
        start, size = int(starts[index]), int(sizes[index])
        if size == _NOT_ALLOCATED:
            raise BetonError(
                f"{self.path}: sample {index}, field {field!r}: damaged: no payload of its size is "
                f"allocated at byte {start}"
            )
        return self._bytes[start : start + size]

    def image_info(self, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mode (0 jpg, 1 raw), height and width of all images, each (N,)."""
        if not isinstance(self._field(field), RGBImageField):
            raise BetonError(f"{self.path}: field {field!r} does not hold images")
        cells = self._metadata[field]
        return cells["mode"].copy(), cells["height"].copy(), cells["width"].copy()

    def read(self, index: int) -> dict[str, Any]:
        """One sample, decoded: images (H, W, 3) uint8 RGB, bytes as (size,) uint8 arrays.

        Raises:
            BetonError: a value is damaged; the message names file, sample and field.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: sample {index} of {len(self)}")
        return {name: self._value(index, name) for name in self.fields}

    def verify(self) -> Iterator[str]:
        """Decodes everything and yields a line for each value that is damaged."""
        for index in range(len(self)):
            for name in self.fields:
                try:
                    self._value(index, name)
                except BetonError as error:
                    yield str(error)

    def _value(self, index: int, name: str) -> Any:
        field = self.fields[name]
        payload = self.encoded(index, name) if field.allocates else self._bytes[:0]
        try:
            return field.decode(self._metadata[name][index], payload)
        except BetonError as error:
            raise BetonError(f"{self.path}: sample {index}, field {name!r}: {error}") from error

    def _field(self, name: str) -> Field:
        if name not in self.fields:
            raise BetonError(
                f"{self.path}: there is no field {name!r}; it has {', '.join(self.fields)}"
            )
        return self.fields[name]

    def _table(self, dtype: np.dtype[Any], start: int, count: int) -> np.ndarray:
        return np.frombuffer(self._bytes[start : start + count * dtype.itemsize], dtype)

    def _allocations(self) -> np.ndarray:
        start = self._head.allocation_table
        return self._table(ALLOCATION, start, (len(self._bytes) - start) // ALLOCATION.itemsize)

    def _check_allocations(self) -> None:
        """Every payload must lie in one page, and belong to a sample."""
        table = self._allocations()
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
                f"{self.path}: damaged: record {record} of the allocation table puts {length} "
                f"bytes of sample {sample} at byte {pointer}, and the pages of its {len(self)} "
                f"samples are the bytes {first} to {end}, {self.page_size} each"
            )

    def _locate(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Start and size of all payloads of a field; its size is `_NOT_ALLOCATED` if one is lost.

        The size of an image or array stands in the allocation table only. An empty value shares
        its pointer with the payload that follows, so empty ones are left out of the search.
        """
        if not self._field(name).allocates:
            raise BetonError(f"{self.path}: field {name!r} has no payload; use column()")
        if self._payloads is None:
            table = self._allocations()
            table = table[table["size"] > 0]
            order = np.argsort(table["pointer"], kind="stable")
            self._payloads = table["pointer"][order], table["size"][order].astype(np.int64)
        allocated, allocated_sizes = self._payloads
        starts = pointers(self._metadata, name).copy()
        sizes = np.full(len(self), _NOT_ALLOCATED, np.int64)
        if allocated.size:
            nearest = np.minimum(np.searchsorted(allocated, starts), allocated.size - 1)
            found = allocated[nearest] == starts
            sizes[found] = allocated_sizes[nearest[found]]
        cells = self._metadata[name]
        if cells.dtype.names and "size" in cells.dtype.names:
            stated = cells["size"]
            sizes[sizes.astype(np.uint64) != stated] = _NOT_ALLOCATED
            starts[stated == 0] = sizes[stated == 0] = 0
        self._spans[name] = starts, sizes
        return self._spans[name]
