"""Damaged shards: an error or right data, never a crash, a hang, or another sample's bytes.

`damage.check` says what is promised. `fuzz_reader.py` asks the same with a fuzzer that is guided by
coverage, and runs for as long as one likes.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycl.beton import BetonError, Reader
from tests.beton.damage import PAGE, SAMPLES, Shard, check, equal, integers, records, shards

SHARDS = shards()
HEADROOM = 128 << 20  # bytes of memory for reading files of 2 to 7 MB

Damage = Callable[[bytearray], None]


@contextmanager
def little_memory() -> Iterator[None]:
    """Any allocation that the files do not justify is a MemoryError, which no test expects."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def anywhere(shard: Shard) -> st.SearchStrategy[int]:
    """Positions in the file; the head, which is small, as often as the rest."""
    last = len(shard.content) - 1
    return st.one_of(st.integers(0, 23), st.integers(24, shard.head - 1), st.integers(0, last))


def behind_the_head(shard: Shard) -> st.SearchStrategy[int]:
    """Positions in the tables, and in the first bytes of payloads: the headers of JPEGs."""
    metadata, table = shard.tables
    starts = [part.start for parts in shard.own for part in parts if metadata <= part.start < table]
    regions = [st.integers(shard.head, metadata - 1)]
    if starts:
        regions.append(st.integers(table, len(shard.content) - 1))
        regions.append(st.builds(int.__add__, st.sampled_from(starts), st.integers(0, 700)))
    return st.one_of(regions)


def pointers(shard: Shard) -> st.SearchStrategy[int]:
    """Positions of 8 bytes of the tables that hold one number."""
    metadata, table = shard.tables
    text, found = shard.content, {int(r["pointer"]) for r in records(shard)}
    cells = [at for at in range(shard.head, metadata - 7) if _number(text, at) in found]
    return st.sampled_from(cells + list(range(table, len(text), 8)) or [shard.head])


def _number(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 8], "little")


def overwritten(content: bytearray, at: int, part: bytes) -> None:
    """Puts bytes in the place of others, as far as there are any."""
    there = len(content[at : at + len(part)])
    content[at : at + there] = part[:there]


def flip(at: int, bit: int) -> Damage:
    return lambda content: overwritten(
        content, at, bytes(byte ^ 1 << bit for byte in content[at : at + 1])
    )


def number(at: int, size: int, value: int, order: Literal["little", "big"]) -> Damage:
    part = (value % (1 << 8 * size)).to_bytes(size, order)
    return lambda content: overwritten(content, at, part)


def fill(at: int, size: int, value: int) -> Damage:
    return lambda content: overwritten(content, at, bytes([value]) * size)


def copy(source: int, target: int, size: int) -> Damage:
    return lambda content: overwritten(content, target, bytes(content[source : source + size]))


def swap(one: int, two: int, size: int) -> Damage:
    def damage(content: bytearray) -> None:
        first, second = bytes(content[one : one + size]), bytes(content[two : two + size])
        overwritten(content, one, second)
        overwritten(content, two, first)

    return damage


def cut(at: int, size: int) -> Damage:
    return lambda content: content.__delitem__(slice(at, at + size))


def insert(at: int, part: bytes) -> Damage:
    return lambda content: content.__setitem__(slice(at, at), part)


def in_place(shard: Shard, place: st.SearchStrategy[int]) -> st.SearchStrategy[Damage]:
    length, cell = st.integers(1, 3000), pointers(shard)
    value = st.sampled_from(sorted(set(integers(shard))))
    page = st.integers(0, 3).map(PAGE.__mul__)
    return st.one_of(
        st.builds(flip, place, st.integers(0, 7)),
        st.builds(
            number, place, st.sampled_from([1, 2, 4, 8]), value, st.sampled_from(["little", "big"])
        ),
        st.builds(number, cell, st.just(8), value, st.just("little")),
        st.builds(fill, place, length, st.one_of(st.just(0), st.integers(0, 255))),
        st.builds(copy, place, place, length),
        st.builds(copy, cell, cell, st.sampled_from([8, 16, 24])),
        st.builds(swap, cell, cell, st.sampled_from([8, 16, 24])),
        st.builds(swap, place, place, st.sampled_from([1, 4, 16])),
        st.builds(swap, page, page, st.just(PAGE)),
    )


def of_any_kind(shard: Shard) -> st.SearchStrategy[Damage]:
    place, size = anywhere(shard), len(shard.content)
    return st.one_of(
        in_place(shard, place),
        st.builds(cut, place, st.one_of(st.integers(1, 5000), st.just(size))),
        st.builds(insert, place, st.binary(min_size=1, max_size=40)),
    )


def in_the_body(shard: Shard) -> st.SearchStrategy[Damage]:
    return in_place(shard, behind_the_head(shard))


@pytest.mark.parametrize(("kind", "examples"), [(of_any_kind, 100), (in_the_body, 200)])
@pytest.mark.parametrize("shard", SHARDS, ids=["all fields", "loose order", "pages", "numbers"])
def test_damage_is_an_error_or_stays_where_it_is(
    shard: Shard,
    kind: Callable[[Shard], st.SearchStrategy[Damage]],
    examples: int,
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.beton"

    if len(shard.content) > 3 * PAGE:
        examples //= 2  # of a large file

    # Derandomised, so that it finds the same today and tomorrow.
    @settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @given(st.lists(kind(shard), min_size=1, max_size=4))
    def damaged(damages: list[Damage]) -> None:
        content = bytearray(shard.content)
        for damage in damages:
            damage(content)
        path.write_bytes(content)
        with little_memory():
            check(shard, content, path)

    damaged()


@pytest.mark.parametrize("shard", SHARDS[:2], ids=["all fields", "loose order"])
def test_a_pointer_to_another_samples_payload_is_an_error(shard: Shard, tmp_path: Path) -> None:
    path, content = tmp_path / "x.beton", bytearray(shard.content)
    rows = [parts[0] for parts in shard.own]
    tensor = rows[0].stop - rows[0].start - 8  # the last member: arrays, all of one size
    content[rows[3].start + tensor : rows[3].stop] = content[rows[1].start + tensor : rows[1].stop]
    path.write_bytes(content)
    reader = Reader(path)
    with pytest.raises(BetonError, match="sample 3, field 'tensor': damaged: no payload"):
        reader.read(3)
    assert equal(reader.read(1), shard.samples[1])
    check(shard, content, path)


@pytest.mark.parametrize(
    ("which", "at", "value", "message"),
    [
        (3, 8, SAMPLES - 1, "where neither the metadata table nor a page of 2097152 bytes ends"),
        (3, 2, 1, "where neither the metadata table nor a page"),
        (0, 16, 2 * PAGE + 24, "where neither the metadata table nor a page"),
        (0, 16, PAGE, "where neither the metadata table nor a page"),
        (0, 2, 0xFFFF, "truncated in the descriptors of its 65535 fields"),
    ],
    ids=["fewer samples", "fewer fields", "table in a page", "no pages", "many fields"],
)
def test_the_parts_of_a_file_must_fit_together(
    which: int, at: int, value: int, message: str, tmp_path: Path
) -> None:
    path, content = tmp_path / "x.beton", bytearray(SHARDS[which].content)
    size = 2 if at == 2 else 8
    content[at : at + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    with pytest.raises(BetonError, match=message), little_memory():
        Reader(path)
