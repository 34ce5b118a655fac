from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
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
    Reader,
    RGBImageField,
    Writer,
)
from raycl.beton.layout import ALLOCATION, HEADER

PAGE = 2 << 20
METADATA = 24 + 6 * 1041
ROW = 72
SAMPLES = 30
FIELDS: dict[str, Field] = {
    "image": RGBImageField("proportion"),
    "label": IntField(),
    "weight": FloatField(),
    "blob": BytesField(),
    "grid": NDArrayField("<u2", (2, 2)),
    "note": JSONField(),
}


def sample(index: int) -> dict[str, Any]:
    return {
        "image": np.full((200 + index, 300 - index, 3), 7 * index, np.uint8),
        "label": index % 10,
        "weight": index / 4,
        "blob": bytes([index]) * (index % 3),
        "grid": np.full((2, 2), index * 1000, np.uint16),
        "note": {"index": index},
    }


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("reader") / "whole.beton"
    with Writer(path, FIELDS, page_size=PAGE) as writer:
        for index in range(SAMPLES):
            writer.write(sample(index))
    return path.read_bytes()


@pytest.fixture
def whole(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.beton"
    path.write_bytes(content)
    return path


def tables_of(content: bytes | bytearray) -> tuple[int, np.ndarray]:
    start = int(np.frombuffer(content, HEADER, 1)[0]["allocation_table"])
    return start, np.frombuffer(content, ALLOCATION, offset=start)


def test_reads_every_value(whole: Path) -> None:
    reader = Reader(str(whole))

    assert (len(reader), reader.name, reader.page_size) == (SAMPLES, str(whole), PAGE)
    assert list(reader.fields) == list(FIELDS)
    for index in range(SAMPLES):
        read, expected = reader.read(index), sample(index)
        # A grey field of one value survives JPEG but for rounding.
        np.testing.assert_allclose(read["image"].astype(int), expected["image"], atol=1)
        assert bytes(read["blob"]) == expected["blob"]
        np.testing.assert_array_equal(read["grid"], expected["grid"])
        for name in ("label", "weight", "note"):
            assert read[name] == expected[name]
    assert list(reader.verify()) == []


def test_values_do_not_depend_on_the_file(whole: Path) -> None:
    reader = Reader(whole)
    value = reader.read(3)["grid"]
    value += 1

    assert reader.read(3)["grid"][0, 0] == 3000


def test_columns(whole: Path) -> None:
    reader = Reader(whole)
    modes, heights, widths = reader.image_info("image")

    np.testing.assert_array_equal(reader.column("label"), np.arange(SAMPLES) % 10)
    assert reader.column("label").dtype == np.int64
    np.testing.assert_array_equal(reader.column("weight"), np.arange(SAMPLES) / 4)
    np.testing.assert_array_equal(heights, 200 + np.arange(SAMPLES))
    np.testing.assert_array_equal(widths, 300 - np.arange(SAMPLES))
    assert set(modes) == {0, 1}


def test_encoded_is_a_view_of_the_stored_bytes(whole: Path) -> None:
    reader = Reader(whole)
    raw = np.flatnonzero(reader.image_info("image")[0] == 1)[0]

    payload = reader.encoded(int(raw), "image")

    assert payload.readonly
    assert bytes(payload) == sample(raw)["image"].tobytes()
    assert bytes(reader.encoded(5, "blob")) == b"\5\5"
    assert bytes(reader.encoded(3, "blob")) == b""
    assert bytes(reader.encoded(2, "note")) == b'{"index": 2}\0'


def test_pickles_by_path(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.parent)
    reader = Reader(whole.name)
    reader.encoded(0, "image")
    data = pickle.dumps(reader)
    monkeypatch.chdir("/")

    assert len(data) < 500
    assert pickle.loads(data).read(4)["label"] == 4


@pytest.mark.parametrize("index", [-1, SAMPLES])
def test_indices_are_checked(whole: Path, index: int) -> None:
    reader = Reader(whole)
    with pytest.raises(IndexError, match=rf"x\.beton: sample {index} of 30"):
        reader.read(index)
    with pytest.raises(IndexError):
        reader.encoded(index, "image")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda reader: reader.column("lable"), "no field 'lable'; it has image, label, weight"),
        (lambda reader: reader.column("image"), "field 'image' is not a column of numbers"),
        (lambda reader: reader.encoded(0, "label"), "field 'label' has no payload; use column"),
        (lambda reader: reader.encoded(0, "nothing"), "no field 'nothing'"),
        (lambda reader: reader.image_info("blob"), "field 'blob' does not hold images"),
    ],
)
def test_wrong_fields_are_named(whole: Path, ask: Callable[[Reader], Any], message: str) -> None:
    with pytest.raises(BetonError, match=rf"x\.beton: .*{message}"):
        ask(Reader(whole))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (0, "the file is empty"),
        (10, "truncated or not a .beton file"),
        (24 + 1041 * 3, "truncated in the descriptors of its 6 fields"),
        (METADATA, "truncated in the metadata table: 30 samples of 72 bytes end at byte 8430"),
        (METADATA + SAMPLES * ROW - 1, "truncated in the metadata table"),
        (METADATA + SAMPLES * ROW, "truncated in the pages: they end at byte"),
        (PAGE + 12345, "and the file at byte 2109497"),
        (-24 * 4 * SAMPLES - 1, "truncated in the pages"),
        (-24 * 4 * SAMPLES, "truncated in the allocation table: 120 records end at"),
        (-24, "truncated in the allocation table"),
        (-1, "truncated in the allocation table"),
    ],
)
def test_truncated_files_are_refused(whole: Path, content: bytes, cut: int, message: str) -> None:
    whole.write_bytes(content[:cut])
    with pytest.raises(BetonError, match=rf"x\.beton: .*{message}"):
        Reader(whole)


def test_every_truncation_is_found(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.beton"
    for cut in np.random.default_rng(0).integers(0, len(content), 40):
        path.write_bytes(content[:cut])
        with pytest.raises(BetonError, match=r"x\.beton"):
            Reader(path)


def test_appended_bytes_are_refused(whole: Path, content: bytes) -> None:
    whole.write_bytes(content + b"more")
    with pytest.raises(BetonError, match="4 bytes too many after the allocation table"):
        Reader(whole)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version", 1, "not a .beton file of version 2: byte 0 of the header says version 1"),
        ("num_samples", 10**15, "truncated in the metadata table: 1000000000000000 samples"),
        ("num_samples", SAMPLES - 1, "too many after the allocation table"),
        ("allocation_table", 0, "unfinished: .* write the file again"),
        ("allocation_table", 100, "said to start at byte 100, inside the metadata table"),
    ],
)
def test_wrong_headers_are_refused(
    whole: Path, content: bytes, name: str, value: int, message: str
) -> None:
    header = np.frombuffer(content, HEADER, 1).copy()
    header[name] = value
    whole.write_bytes(header.tobytes() + content[24:])

    with pytest.raises(BetonError, match=message):
        Reader(whole)


@pytest.mark.parametrize(("type_id", "message"), [(255, "custom type"), (77, "unknown type 77")])
def test_unknown_types_are_refused_by_name(
    whole: Path, content: bytes, type_id: int, message: str
) -> None:
    position = 24 + 1041
    whole.write_bytes(content[:position] + bytes([type_id]) + content[position + 1 :])

    with pytest.raises(BetonError, match=rf"x\.beton: field 'label': has .*{message}"):
        Reader(whole)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pointer", 0),
        ("pointer", 2**64 - 1),
        ("size", PAGE + 1),
        ("size", 2**64 - 1),
        ("sample", SAMPLES),
    ],
)
def test_wrong_allocations_are_refused(whole: Path, content: bytes, name: str, value: int) -> None:
    start, table = tables_of(content)
    table = table.copy()
    table[name][8] = value
    whole.write_bytes(content[:start] + table.tobytes())

    reader = Reader(whole)  # the table is read when a payload is first asked for
    with pytest.raises(BetonError, match="record 8 of the allocation table puts"):
        reader.encoded(0, "image")


def test_payloads_across_pages_are_refused(whole: Path, content: bytes) -> None:
    start, table = tables_of(content)
    table = table.copy()
    table["pointer"][8] = 2 * PAGE - 10
    table["size"][8] = 11
    whole.write_bytes(content[:start] + table.tobytes())

    with pytest.raises(BetonError, match="11 bytes of sample 2 at byte 4194294"):
        Reader(whole).encoded(0, "image")


def test_verify_names_every_damaged_value(whole: Path, content: bytes) -> None:
    reader, damaged = Reader(whole), bytearray(content)
    jpg = int(np.flatnonzero(reader.image_info("image")[0] == 0)[1])
    _, table = tables_of(content)
    records = table.reshape(SAMPLES, 4)

    start, size = (int(records[jpg, 0][part]) for part in ("pointer", "size"))
    damaged[start + size // 2 : start + size] = bytes(size - size // 2)
    start = int(records[8, 3]["pointer"])
    damaged[start : start + 1] = b"?"
    lost = METADATA + 17 * ROW
    damaged[lost + 5 : lost + 13] = (PAGE + 1).to_bytes(8, "little")
    wrong_size = METADATA + 20 * ROW + 40
    damaged[wrong_size : wrong_size + 8] = (1).to_bytes(8, "little")
    whole.write_bytes(damaged)

    lines = sorted(Reader(whole).verify())
    expected = sorted(
        [
            f"{whole}: sample {jpg}, field 'image': not a whole JPEG",
            f"{whole}: sample 8, field 'note': not JSON",
            f"{whole}: sample 17, field 'image': damaged: no payload",
            f"{whole}: sample 20, field 'blob': damaged: no payload",
        ]
    )
    assert len(lines) == 4
    for line, start_of_line in zip(lines, expected, strict=True):
        assert line.startswith(start_of_line)
    with pytest.raises(BetonError, match=r"x\.beton: sample 8, field 'note': not JSON"):
        Reader(whole).read(8)


def test_an_empty_value_does_not_hide_the_next_one(whole: Path, content: bytes) -> None:
    # FFCV gives an empty value the pointer of the payload that follows it.
    start, table = tables_of(content)
    table, changed = table.copy(), bytearray(content[:start])
    records = table.reshape(SAMPLES, 4)
    shared = int(records[3, 2]["pointer"])
    records[3, 1]["pointer"] = shared
    cell = METADATA + 3 * ROW + 32
    changed[cell : cell + 8] = shared.to_bytes(8, "little")
    for order in (slice(None), slice(None, None, -1)):
        whole.write_bytes(bytes(changed) + table[order].tobytes())
        read = Reader(whole).read(3)
        assert read["blob"].size == 0
        np.testing.assert_array_equal(read["grid"], np.full((2, 2), 3000))


def test_opening_looks_at_no_single_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.beton"
    with Writer(path, {"blob": BytesField(), "n": IntField()}, page_size=PAGE) as writer:
        for index in range(2000):
            writer.write({"blob": b"abc", "n": index})
    calls: list[str] = []

    def count(frame: Any, event: str, argument: Any) -> None:
        calls.append(event)

    sys.setprofile(count)
    try:
        reader = Reader(path)
        reader.encoded(1999, "blob")
        reader.column("n")
    finally:
        sys.setprofile(None)

    assert len(calls) < 1000


def test_payloads_of_several_fields_at_once(whole: Path) -> None:
    reader, rows = Reader(whole), np.array([4, 1, 4, 3])
    payloads = reader.payloads(rows, ["blob", "note"])
    assert list(payloads) == ["blob", "note"]
    assert [bytes(part) for part in payloads["blob"]] == [b"\4", b"\1", b"\4", b""]
    assert [bytes(part) for part in payloads["note"]] == [
        f'{{"index": {row}}}\0'.encode() for row in rows
    ]
    assert reader.payloads(rows, []) == {}
    assert reader.payloads(rows[:0], ["note"]) == {"note": []}


def test_spans_do_not_depend_on_the_order_of_the_table(whole: Path, content: bytes) -> None:
    rows = np.array([7, 0, 29, 12])
    expected = {name: Reader(whole).spans(rows, name) for name in ("image", "blob", "note")}
    start, table = tables_of(content)
    shuffled = np.random.default_rng(0).permutation(table)
    whole.write_bytes(content[:start] + shuffled.tobytes())
    for name, spans in expected.items():
        np.testing.assert_array_equal(Reader(whole).spans(rows, name), spans)


def test_numbers_and_sizes_of_some_rows(whole: Path) -> None:
    reader, rows = Reader(whole), np.array([7, 0, 29])
    assert reader.numbers(rows, "weight").tolist() == [1.75, 0, 7.25]
    mode, height, width = reader.image_info("image", rows)
    assert (height.tolist(), width.tolist(), len(mode)) == ([207, 200, 229], [293, 300, 271], 3)


def test_pages(whole: Path) -> None:
    reader = Reader(whole)
    starts, _ = reader.spans(np.arange(SAMPLES), "grid")
    np.testing.assert_array_equal(reader.pages(), starts // PAGE - 1)


def test_damaged_pointers_belong_to_some_page(whole: Path, content: bytes) -> None:
    last, damaged = Reader(whole).pages().max(), bytearray(content)
    for row, pointer in ((3, 0), (4, 2**64 - 1)):
        cell = METADATA + row * ROW + 5
        damaged[cell : cell + 8] = pointer.to_bytes(8, "little")
    whole.write_bytes(damaged)
    pages = Reader(whole).pages()
    assert (pages.min(), pages.max()) == (0, last)
