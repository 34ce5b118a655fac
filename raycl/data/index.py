"""The sidecar of a shard: its tables in one small file beside it.

    header | samples of each page, int32 | start of the shard up to its pages | its allocation table

A remote shard is opened by reading its sidecar at once, and its page counts by reading the first
part of it. Checksums guard both. Without a sidecar, or with a stale one, nothing changes but the
number of reads.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from raycl.beton import Reader
from raycl.beton.layout import HEAD_BYTES
from raycl.beton.source import MappedFile, Source
from raycl.errors import RayclError

SUFFIX = ".index"
_MAGIC = b"raycl-1\n"
_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("shard_size", "<u8"),
        ("samples", "<u8"),
        ("pages", "<u8"),
        ("ascending", "<u8"),
        ("head", "<u8"),
        ("table", "<u8"),
        ("tables_crc", "<u4"),
        ("counts_crc", "<u4"),
    ]
)
_FIRST_READ = 64 << 10


def write(shard: Path) -> None:
    """Writes the sidecar of a complete shard.

    Raises:
        RayclError: the shard is damaged, or the sidecar cannot be written.
    """
    source = MappedFile(shard)
    reader = Reader(source)
    reader.check()
    counts, ids = page_counts(reader)
    head, table = (bytes(source.read(*part)) for part in reader.tables)
    header = np.zeros(1, _HEADER)
    header[0] = (
        _MAGIC, source.size, len(reader), len(counts), ids is None, len(head), len(table),
        _checksum(head, table), 0,
    )  # fmt: skip
    header["counts_crc"] = _counts_checksum(header, counts.tobytes())
    path = shard.with_name(shard.name + SUFFIX)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(b"".join((header.tobytes(), counts.tobytes(), head, table)))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RayclError(f"{path}: cannot be written: {error.strerror or error}") from error


def page_counts(reader: Reader) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples of each page that has any, (P,) int32, and the rows in page order, (N,) int64.

    The rows are None where they ascend by page already, as in the files of raycl's writer.
    """
    pages = reader.pages()
    counts = np.bincount(pages)
    ascending = not (np.diff(pages) < 0).any()
    rows = None if ascending else np.argsort(pages, kind="stable").astype(np.int64)
    return counts[counts > 0].astype(np.int32), rows


def stored_counts(sidecar: Source, shard_size: int) -> np.ndarray | None:
    """Samples of each page, (P,) int32, if a sidecar knows and the rows ascend by page."""
    start = sidecar.read(0, min(sidecar.size, _FIRST_READ))
    header = _header(start, shard_size)
    if header is None or not header["ascending"]:
        return None
    end = _HEADER.itemsize + 4 * int(header["pages"])
    if end > sidecar.size:
        return None
    counts = (start if end <= len(start) else sidecar.read(0, end))[_HEADER.itemsize : end]
    if _counts_checksum(header, counts) != header["counts_crc"]:
        return None
    return np.frombuffer(counts, np.int32)


class Indexed:
    """A source whose tables are in memory already, from its sidecar."""

    def __init__(
        self, source: Source, sidecar: Source, head: memoryview, table: memoryview
    ) -> None:
        self.name, self.size = source.name, source.size
        self._source, self._sidecar, self._table = source, sidecar, table
        # What follows the metadata in the file is zeros too.
        self._head = memoryview(bytes(head).ljust(min(HEAD_BYTES, source.size), b"\0"))

    def __reduce__(self) -> tuple[object, tuple[Source, Source]]:
        return indexed, (self._source, self._sidecar)

    def read(self, start: int, size: int) -> memoryview:
        at = start - (self.size - len(self._table))
        if start + size <= len(self._head):
            return self._head[start : start + size]
        if at >= 0:
            return self._table[at : at + size]
        return self._source.read(start, size)

    def gather(self, starts: np.ndarray, sizes: np.ndarray, page_size: int) -> list[memoryview]:
        return self._source.gather(starts, sizes, page_size)


def indexed(source: Source, sidecar: Source) -> Source:
    """A source with the tables of its sidecar; the source itself where that one is stale."""
    content = sidecar.read(0, sidecar.size)
    header = _header(content, source.size)
    if header is None:
        return source
    begin = _HEADER.itemsize + 4 * int(header["pages"])
    middle = begin + int(header["head"])
    head, table = content[begin:middle], content[middle:]
    whole = len(head) == int(header["head"]) and len(table) == int(header["table"])
    if not whole or _checksum(head, table) != header["tables_crc"]:
        return source
    return Indexed(source, sidecar, head, table)


def _header(content: memoryview, shard_size: int) -> np.void | None:
    if len(content) < _HEADER.itemsize:
        return None
    header: np.void = np.frombuffer(content, _HEADER, 1)[0]
    fits = header["magic"] == _MAGIC and int(header["shard_size"]) == shard_size
    return header if fits else None


def _checksum(*parts: bytes | memoryview) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _counts_checksum(header: np.ndarray | np.void, counts: bytes | memoryview) -> int:
    """Covers the header too, all of it that stands before this checksum."""
    return _checksum(header.tobytes()[:-4], counts)
