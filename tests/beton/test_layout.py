from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl.beton import (
    BetonError,
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
)
from raycl.beton.layout import (
    ALLOCATION,
    DESCRIPTOR,
    HEADER,
    is_page_size,
    metadata_dtype,
    pointers,
    read_head,
    round_up,
)
from raycl.beton.source import MappedFile

FLOAT, INT, IMAGE, BYTES = FloatField(), IntField(), RGBImageField(), BytesField()
ARRAY, JSON = NDArrayField("f4", (2,)), JSONField()


def test_fixed_parts_have_the_published_sizes() -> None:
    assert (HEADER.itemsize, DESCRIPTOR.itemsize, ALLOCATION.itemsize) == (24, 1041, 24)
    assert HEADER.fields is not None
    assert [HEADER.fields[name][1] for name in HEADER.names or ()] == [0, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("fields", "row", "offsets"),
    [
        ([IMAGE, INT], 24, [0, 16]),
        ([IMAGE, BYTES], 29, [0, 13]),
        ([INT, IMAGE], 24, [0, 8]),
        ([FLOAT, IMAGE, INT], 32, [0, 8, 24]),
        ([IMAGE, INT, BYTES, ARRAY], 48, [0, 16, 24, 40]),
        ([IMAGE, IMAGE, INT, FLOAT, BYTES, ARRAY, JSON], 88, [0, 13, 32, 40, 48, 64, 72]),
    ],
)
def test_metadata_rows_are_aligned_as_in_c(
    fields: list[Field], row: int, offsets: list[int]
) -> None:
    dtype = metadata_dtype({f"f{number}": field.member for number, field in enumerate(fields)})

    assert dtype.itemsize == row
    assert dtype.fields is not None
    assert [dtype.fields[name][1] for name in dtype.names or ()] == offsets


def test_pointers_are_a_view() -> None:
    fields = {"image": IMAGE, "blob": BYTES, "array": ARRAY}
    table = np.zeros(3, metadata_dtype({name: field.member for name, field in fields.items()}))
    for name in fields:
        pointers(table, name)[...] += np.uint64(5)

    assert [int(table[1]["image"]["pointer"]), int(table[1]["blob"]["pointer"])] == [5, 5]
    assert int(table[1]["array"]) == 5


@pytest.mark.parametrize(
    ("size", "valid"),
    [
        (0, False),
        (1 << 20, False),
        (2 << 20, True),
        (3 << 20, False),
        (8 << 20, True),
        (2 << 30, True),
        (4 << 30, False),
    ],
)
def test_page_sizes(size: int, valid: bool) -> None:
    assert is_page_size(size) is valid


def test_round_up_keeps_boundaries() -> None:
    assert [round_up(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]


def descriptor(name: bytes) -> np.ndarray:
    cell = np.zeros(1, DESCRIPTOR)
    cell["name"] = list(name.ljust(16, b"\0"))
    return cell


def head(version: int = 2, fields: int = 1, page: int = 2 << 20, samples: int = 0) -> bytes:
    return np.array([(version, fields, page, samples, 0)], HEADER).tobytes()


def test_head_reads_names_of_full_length(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(head(samples=9) + descriptor(b"sixteen_letters_").tobytes())

    found = read_head(MappedFile(path))

    assert (list(found.fields), found.samples) == (["sixteen_letters_"], 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x02\x00\x01", "truncated or not a .beton file: it has 3 bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "version 2: byte 0 of the header says version 20617"),
        (head(version=3) + bytes(2000), "byte 0 of the header says version 3"),
        (head(fields=0), "0 fields"),
        (head(page=3 << 20), "pages of 3145728 bytes .byte 4."),
        (head(fields=2) + bytes(1500), "descriptors of its 2 fields: they end at byte 2106 and"),
        (head() + descriptor(b"").tobytes(), "field 0 has the name '' at byte 25"),
        (head() + descriptor(b"\xff\xfe").tobytes(), "field 0 has the name"),
        (head(fields=2) + descriptor(b"x").tobytes() * 2, "field 1 has the name 'x' at byte 1066"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_and_truncated_heads_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "foreign.beton"
    path.write_bytes(content)

    with pytest.raises(BetonError, match=rf"foreign\.beton: .*{message}"):
        read_head(MappedFile(path))


def test_unreadable_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BetonError, match=r"nowhere\.beton: there is no such file"):
        MappedFile(tmp_path / "nowhere.beton")
    with pytest.raises(BetonError, match="cannot be read: Is a directory"):
        MappedFile(tmp_path)


def test_needs_numpy_alone() -> None:
    code = "import sys, raycl.beton; print([m for m in sys.modules if m in %r])"
    heavy = ["torch", "ray", "simplejpeg", "PIL", "cv2", "pydantic"]
    loaded: Any = subprocess.check_output([sys.executable, "-c", code % heavy], text=True)

    assert loaded.strip() == "[]"
