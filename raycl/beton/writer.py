"""Writes `.beton` files, page by page."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from raycl.beton.fields import Field, Payload
from raycl.beton.layout import (
    ALLOCATION,
    ARGUMENT_BYTES,
    DESCRIPTOR,
    HEADER,
    MAX_PAGE,
    MIN_PAGE,
    NAME_BYTES,
    VERSION,
    BetonError,
    is_page_size,
    metadata_dtype,
    metadata_position,
    pointers,
    round_up,
)


class Writer:
    """Writes samples one after the other; used in a `with` statement.

    The file appears under its name when the block ends without an error, and not at all otherwise.
    Memory holds one page and the tables, about 50 bytes per sample and field.

    Args:
        fields: the fields by name; names are ASCII, at most 16 characters.
        page_size: power of two from 2 MiB to 2 GiB, and the most that one sample can take.

    Raises:
        BetonError: a field or a value that the file cannot hold, or the disk is full.
    """

    def __init__(
        self, path: str | Path, fields: Mapping[str, Field], *, page_size: int = 8 << 20
    ) -> None:
        self.path = Path(path).absolute()
        self.fields = dict(fields)
        self.page_size = page_size
        if not is_page_size(page_size):
            raise BetonError(
                f"{self.path}: page_size must be a power of two from {MIN_PAGE} to {MAX_PAGE}, "
                f"not {page_size}"
            )
        if not self.fields:
            raise BetonError(f"{self.path}: a data set needs at least one field")
        for name in self.fields:
            if not (name.isascii() and name.isprintable() and 0 < len(name) <= NAME_BYTES):
                raise BetonError(
                    f"{self.path}: field {name!r}: a name has 1 to {NAME_BYTES} printable ASCII "
                    f"characters"
                )
        row = metadata_dtype({name: field.member for name, field in self.fields.items()})
        self._row = np.zeros(1, row)
        self._metadata = bytearray()
        self._allocations = bytearray()
        self._page = np.zeros(page_size, np.uint8)
        self._used = 0
        self._pages = 0
        # A name of its own: the orphan of a killed program may still be writing the same file.
        self._partial = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.partial")
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        try:
            self._file = FileIO(self._partial, "w+")
        except OSError as error:
            raise self._failure(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                self._finish()
                self._file.close()
                os.replace(self._partial, self.path)
        except OSError as failure:
            raise self._failure(failure) from failure
        finally:
            self._file.close()
            self._file = None
            self._partial.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._metadata) // self._row.itemsize

    def write(self, sample: Mapping[str, Any]) -> None:
        """Adds a sample. One that is refused leaves no trace, so the caller may go on.

        Raises:
            BetonError: names the sample and the field that is missing, unknown, of the wrong kind
                or too large, or says that the disk is full.
        """
        self._check_open()
        self._check_names(sample)
        encoded: dict[str, tuple[Any, Payload | None]] = {}
        for name, field in self.fields.items():
            try:
                encoded[name] = field.encode(sample[name])
            except BetonError as error:
                raise BetonError(f"{self._place()}, field {name!r}: {error}") from error
        self.write_encoded(encoded)

    def write_encoded(self, sample: Mapping[str, tuple[Any, Payload | None]]) -> None:
        """Adds a sample whose values are cells and payloads already, as `Field.encode` gives them.

        For values that were encoded in threads, or come from another file; nothing is checked but
        their names and sizes.

        Raises:
            BetonError: fields are missing or unknown, the sample is too large, or the disk is full.
        """
        self._check_open()
        self._check_names(sample)
        cells = [sample[name][0] for name in self.fields]
        payloads: list[tuple[str, np.ndarray]] = []
        for name in self.fields:
            payload = sample[name][1]
            if payload is not None:
                payloads.append((name, np.frombuffer(payload, np.uint8)))
        # An empty value takes one byte. Without it, its pointer would be that of the next payload,
        # and FFCV, which looks sizes up by pointer, would confuse the two.
        sizes = [max(payload.size, 1) for _, payload in payloads]
        if sum(sizes) > self.page_size:
            parts = ", ".join(f"{name} {payload.size}" for name, payload in payloads)
            raise BetonError(
                f"{self._place()}: takes {sum(sizes)} bytes ({parts}) and a page "
                f"{self.page_size}; choose a larger page_size or smaller values"
            )
        if self._used + sum(sizes) > self.page_size:
            self._flush()
        self._row[0] = tuple(cells)
        for (name, payload), size in zip(payloads, sizes, strict=True):
            # Relative to the first page, whose position depends on the number of samples.
            pointer = self._pages * self.page_size + self._used
            pointers(self._row, name)[0] = pointer
            self._allocations += struct.pack("<3Q", len(self), pointer, payload.size)
            self._page[self._used : self._used + payload.size] = payload
            self._page[self._used + payload.size : self._used + size] = 0
            self._used += size
        self._metadata += self._row.tobytes()

    def _place(self) -> str:
        return f"{self.path}: sample {len(self)}"

    def _check_open(self) -> None:
        if self._file is None:
            raise BetonError(f"{self.path}: a Writer writes inside its `with` block only")

    def _check_names(self, sample: Mapping[str, Any]) -> None:
        if sample.keys() != self.fields.keys():
            missing = ", ".join(self.fields.keys() - sample.keys()) or "none"
            unknown = ", ".join(sample.keys() - self.fields.keys()) or "none"
            raise BetonError(f"{self._place()}: fields missing: {missing}; unknown: {unknown}")

    def _flush(self) -> None:
        self._page[self._used :] = 0
        # The tables come first in the file, and their size is known last. One page is kept free
        # for them, which holds some hundred thousand samples; see _finish for more than that.
        self._put(self._page, self.page_size * (1 + self._pages))
        self._pages += 1
        self._used = 0

    def _finish(self) -> None:
        """Writes the last page and the tables, and puts the pages where they belong."""
        if self._used:
            self._flush()
        metadata = np.frombuffer(self._metadata, self._row.dtype)
        allocations = np.frombuffer(self._allocations, ALLOCATION)
        metadata_end = metadata_position(len(self.fields)) + metadata.nbytes
        first = round_up(metadata_end, self.page_size)
        if first > self.page_size:
            self._move_pages(first)
            self._put(np.zeros(first - metadata_end, np.uint8), metadata_end)
        for name, field in self.fields.items():
            if field.allocates:
                pointers(metadata, name)[...] += np.uint64(first)
        allocations["pointer"] += np.uint64(first)
        end = first + self._pages * self.page_size if self._pages else metadata_end
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, len(self.fields), self.page_size, len(self), end)
        descriptors = np.zeros(len(self.fields), DESCRIPTOR)
        for descriptor, (name, field) in zip(descriptors, self.fields.items(), strict=True):
            descriptor["type_id"] = field.type_id
            descriptor["name"] = list(name.encode().ljust(NAME_BYTES, b"\0"))
            descriptor["arguments"] = list(field.arguments().ljust(ARGUMENT_BYTES, b"\0"))
        self._put(header, 0)
        self._put(descriptors, header.nbytes)
        self._put(metadata, header.nbytes + descriptors.nbytes)
        self._put(allocations, end)
        assert self._file is not None
        os.fsync(self._file.fileno())

    def _move_pages(self, first: int) -> None:
        """Makes room for a metadata table of several pages; the last page goes first."""
        assert self._file is not None
        for page in reversed(range(self._pages)):
            self._file.seek(self.page_size * (1 + page))
            rest = self._page.data
            while rest:
                rest = rest[self._file.readinto(rest) :]
            self._put(self._page, first + self.page_size * page)

    def _put(self, content: np.ndarray, position: int) -> None:
        assert self._file is not None
        rest = content.view(np.uint8).data
        self._file.seek(position)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> BetonError:
        return BetonError(
            f"{self.path}: cannot be written: {error.strerror or error}; nothing was left behind"
        )
