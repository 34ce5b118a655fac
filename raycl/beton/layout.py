"""Where everything lies in a `.beton` file: FFCV's container, version 2.

    header | field descriptors | metadata table | zeros up to a page | pages | allocation table

All integers are little-endian. The metadata table has one row per sample: scalars by value, all
else as a pointer (an absolute position in the file) to a payload in a page. A payload never crosses
a page, and all payloads of a sample lie in one page. The allocation table lists every payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raycl.errors import RayclError

if TYPE_CHECKING:
    from raycl.beton.source import Source

VERSION = 2
MIN_PAGE = 2 << 20
MAX_PAGE = 2 << 30
NAME_BYTES = 16
ARGUMENT_BYTES = 1024
HEAD_BYTES = 128 << 10  # read at once: header and descriptors of up to 125 fields
CUSTOM_TYPE = 255

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("allocation_table", "<u8"),
    ]
)
DESCRIPTOR = np.dtype(
    [("type_id", "u1"), ("name", "u1", NAME_BYTES), ("arguments", "u1", ARGUMENT_BYTES)]
)
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])


class BetonError(RayclError):
    """A file or a value that the container cannot hold; the message says which, and where."""


@dataclass(frozen=True)
class Head:
    """What the first bytes of a file say.

    Attributes:
        fields: (type id, arguments) of every field by name, in the order of the columns.
        allocation_table: its position, which is also the end of the pages.
    """

    page_size: int
    samples: int
    allocation_table: int
    file_size: int
    fields: dict[str, tuple[int, bytes]]

    @property
    def metadata(self) -> int:
        """Position of the metadata table."""
        return metadata_position(len(self.fields))


def metadata_position(num_fields: int) -> int:
    return HEADER.itemsize + num_fields * DESCRIPTOR.itemsize


def round_up(position: int, page_size: int) -> int:
    """The first page boundary at or after a position."""
    return -(-position // page_size) * page_size


def is_page_size(size: int) -> bool:
    return MIN_PAGE <= size <= MAX_PAGE and size & (size - 1) == 0


def metadata_dtype(members: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """The row of the metadata table: a C struct, so every member starts at its alignment."""
    return np.dtype(list(members.items()), align=True)


def pointers(table: np.ndarray, field: str) -> np.ndarray:
    """The (N,) uint64 pointers of a field, as a view into a metadata table."""
    column = table[field]
    return column["pointer"] if column.dtype.names else column


def read_head(source: Source) -> Head:
    """Reads and checks header and field descriptors with one small read.

    Raises:
        BetonError: not readable, not a `.beton` file, another version, cut off before its
            metadata, or without fields that raycl can name.
    """
    path, file_size = source.name, source.size
    if file_size == 0:
        raise BetonError(f"{path}: the file is empty")
    if file_size < HEADER.itemsize:
        raise BetonError(
            f"{path}: truncated or not a .beton file: it has {file_size} bytes, and the header "
            f"alone takes {HEADER.itemsize}"
        )
    start = source.read(0, min(file_size, HEAD_BYTES))
    header = np.frombuffer(start, HEADER, 1)[0]
    version, num_fields = int(header["version"]), int(header["num_fields"])
    if version != VERSION:
        raise BetonError(
            f"{path}: not a .beton file of version {VERSION}: byte 0 of the header says version "
            f"{version}"
        )
    page_size = int(header["page_size"])
    if num_fields == 0 or not is_page_size(page_size):
        raise BetonError(
            f"{path}: not a .beton file: its header states {num_fields} fields (byte 2) and pages "
            f"of {page_size} bytes (byte 4), which must be a power of two from {MIN_PAGE}"
        )
    end = metadata_position(num_fields)
    if end > file_size:
        raise BetonError(
            f"{path}: truncated in the descriptors of its {num_fields} fields: they end at byte "
            f"{end} and the file at byte {file_size}"
        )
    descriptors = (start if end <= len(start) else source.read(0, end))[HEADER.itemsize : end]
    fields: dict[str, tuple[int, bytes]] = {}
    for number, descriptor in enumerate(np.frombuffer(descriptors, DESCRIPTOR)):
        name = descriptor["name"].tobytes().split(b"\0")[0].decode("ascii", "replace")
        if not name or not name.isprintable() or "\ufffd" in name or name in fields:
            raise BetonError(
                f"{path}: not a .beton file, or damaged: field {number} has the name {name!r} at "
                f"byte {HEADER.itemsize + number * DESCRIPTOR.itemsize + 1}; names are different "
                f"from each other, and ASCII"
            )
        fields[name] = (int(descriptor["type_id"]), descriptor["arguments"].tobytes())
    return Head(
        page_size=page_size,
        samples=int(header["num_samples"]),
        allocation_table=int(header["allocation_table"]),
        file_size=file_size,
        fields=fields,
    )


def check_size(path: str, head: Head, row_bytes: int, allocations: int) -> None:
    """Compares the size of the file with what its head promises, which finds every truncation.

    Args:
        row_bytes: size of a row of the metadata table.
        allocations: payloads in the file; each sample has one for each field that is not a scalar.
    """
    metadata_end = head.metadata + head.samples * row_bytes
    if metadata_end > head.file_size:
        raise BetonError(
            f"{path}: truncated in the metadata table: {head.samples} samples of {row_bytes} bytes "
            f"end at byte {metadata_end}, and the file at byte {head.file_size}"
        )
    if head.allocation_table == 0:
        raise BetonError(
            f"{path}: unfinished: the header has no position of an allocation table (byte 16), so "
            f"its writer was stopped; write the file again"
        )
    if head.allocation_table < metadata_end:
        raise BetonError(
            f"{path}: damaged: the allocation table is said to start at byte "
            f"{head.allocation_table}, inside the metadata table, which ends at {metadata_end}"
        )
    if head.allocation_table > head.file_size:
        raise BetonError(
            f"{path}: truncated in the pages: they end at byte {head.allocation_table}, and the "
            f"file at byte {head.file_size}"
        )
    pages = head.allocation_table - round_up(metadata_end, head.page_size)
    whole = allocations > 0 and pages > 0 and pages % head.page_size == 0
    if head.allocation_table != metadata_end and not whole:
        raise BetonError(
            f"{path}: damaged: the allocation table is said to start at byte "
            f"{head.allocation_table}, where neither the metadata table nor a page of "
            f"{head.page_size} bytes ends"
        )
    expected = head.allocation_table + allocations * ALLOCATION.itemsize
    if expected > head.file_size:
        raise BetonError(
            f"{path}: truncated in the allocation table: {allocations} records end at byte "
            f"{expected}, and the file at byte {head.file_size}"
        )
    if expected < head.file_size:
        raise BetonError(
            f"{path}: damaged: {head.file_size - expected} bytes too many after the allocation "
            f"table, which ends at byte {expected}"
        )
