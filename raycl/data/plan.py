"""The plan of a run's samples, and the bundles of encoded samples that it is delivered in.

A bundle holds a few steps of one lane. Bundles are numbered so that bundle k belongs to lane
k mod lanes; all have the same number of rows, and a rank of n runs the lanes rank, rank + n, ...
Every row carries epoch, step and lane, which the loader checks, because nothing promises the order
in which a distributed engine hands bundles over.

Inside a process a bundle is a dict of columns: arrays, and lists of buffers for payloads, which are
not copied. It becomes an Arrow table, with one copy, only where it has to travel.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from raycl.beton import FloatField, IntField, NDArrayField, RGBImageField
from raycl.data.order import PADDING, Order
from raycl.data.shards import Shards
from raycl.errors import RayclError

BUNDLE_BYTES = 16 << 20
BUNDLE_STEPS = 16
BUNDLES_AHEAD = 2
OWN = ("epoch", "lane", "step", "id", "substituted", "lost")  # columns of a bundle, and of a batch

Columns: TypeAlias = dict[str, Any]  # (N,) or (N, k) arrays, and lists of N buffers


@dataclass(frozen=True, eq=False)
class Source:
    """One stream of a plan: its shards, its order, and the fields that travel."""

    shards: Shards
    order: Order
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Bundle:
    """Steps [start, start + steps) of one lane in one epoch; a bundle may have room for more."""

    epoch: int
    lane: int
    start: int
    steps: int


@dataclass(frozen=True, eq=False)
class Plan:
    """All streams of a method, in one plan. The first stream defines the epoch.

    Attributes:
        row_bytes: size of a row as it travels; None: as large as the encoded samples are.
    """

    sources: Mapping[str, Source]
    row_bytes: int | None = None

    @property
    def first(self) -> Source:
        return next(iter(self.sources.values()))

    @property
    def steps(self) -> int:
        return self.first.order.steps

    @property
    def lanes(self) -> int:
        return self.first.order.lanes

    @property
    def batch(self) -> int:
        return self.first.order.batch

    @cached_property
    def room(self) -> int:
        """Steps that a bundle has room for: a few MB, and several bundles an epoch."""
        size = self.row_bytes or sum(
            s.order.width * s.shards.bytes / len(s.shards) for s in self.sources.values()
        )
        fits = int(BUNDLE_BYTES // max(size * self.batch, 1))
        return max(1, min(fits, BUNDLE_STEPS, self.steps))

    def bundles(self, epoch: int, start: int = 0) -> list[Bundle]:
        """Bundles of an epoch from a step on, in the order of delivery."""
        return [
            Bundle(epoch, lane, first, min(self.room, self.steps - first))
            for first in range(start, self.steps, self.room)
            for lane in range(self.lanes)
        ]

    def ids(self, bundle: Bundle) -> dict[str, np.ndarray]:
        """Sample ids per stream, (room * batch, k); unused room is PADDING."""
        ids = {}
        first = bundle.epoch * self.steps + bundle.start
        for name, source in self.sources.items():
            room = np.full((self.room, self.batch, source.order.width), PADDING, np.int64)
            for i in range(bundle.steps):
                room[i] = source.order.ids(first + i, bundle.lane)
            ids[name] = room.reshape(-1, source.order.width)
        return ids

    def read(self, bundle: Bundle) -> Columns:
        """The encoded samples of a bundle, one row per entry, and the seconds that it took."""
        begin = time.perf_counter()
        rows = self.room * self.batch
        step = bundle.start + np.arange(rows) // self.batch
        columns: Columns = {
            "epoch": np.full(rows, bundle.epoch),
            "lane": np.full(rows, bundle.lane),
            "step": np.where(step < bundle.start + bundle.steps, step, PADDING),
        }
        for position, (name, ids) in enumerate(self.ids(bundle).items()):
            source = self.sources[name]
            for i, prefix in enumerate(prefixes(name, position == 0, source.order.width)):
                read = read_samples(source.shards, ids[:, i], source.fields)
                columns |= {prefix + key: values for key, values in read.items()}
        return columns | {"seconds.read": np.full(rows, time.perf_counter() - begin)}


def prefixes(name: str, first: bool, width: int) -> list[str]:
    """Prefixes of a stream's columns: none for the first; `pairs.0.`, `pairs.1.` for tuples."""
    stem = "" if first else f"{name}."
    return [stem] if width == 1 else [f"{stem}{i}." for i in range(width)]


def read_samples(shards: Shards, ids: np.ndarray, fields: Sequence[str]) -> Columns:
    """Columns of some samples: `id`, numbers, arrays, payloads and what is known of each image.

    What a damaged file has lost is empty, and so are the rows of PADDING; of arrays, which are 0
    there, `lost` tells it.
    """
    columns: Columns = {"id": ids}
    real = ids != PADDING
    stored = [f for f in fields if not isinstance(shards.fields[f], IntField | FloatField)]
    payloads = shards.payloads(ids[real], stored)
    for field in fields:
        if field not in stored:
            columns[field] = _scattered(shards.numbers(ids[real], field), real)
            continue
        column: list[Any] = [b""] * len(ids)
        for at, payload in zip(np.flatnonzero(real).tolist(), payloads[field], strict=True):
            column[at] = payload
        columns[field] = column
        if isinstance(shards.fields[field], RGBImageField):
            info = shards.image_info(ids[real], field)
            for part, values in zip(("mode", "height", "width"), info, strict=True):
                columns[f"{field}.{part}"] = _scattered(values.astype(np.int32), real)
        kind = shards.fields[field]
        if isinstance(kind, NDArrayField):
            columns[field], lost = _arrays(kind, column)
            columns["lost"] = columns.get("lost", 0) | lost
    return columns


def _arrays(kind: NDArrayField, payloads: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values (N, ...) of an array field, and 1 for each row (N,) that has lost its own."""
    values = np.zeros((len(payloads), *kind.shape), kind.dtype)
    lost = np.array([len(payload) != values[0].nbytes for payload in payloads], np.uint8)
    for row in np.flatnonzero(lost == 0).tolist():
        values[row] = kind.decode(0, payloads[row])
    return values, lost


def _scattered(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    spread = np.zeros(len(real), values.dtype)
    spread[real] = values
    return spread


def part(columns: Columns, start: int, stop: int) -> Columns:
    """Some rows of a bundle."""
    return {name: values[start:stop] for name, values in columns.items()}


def to_table(columns: Columns) -> pa.Table:
    """A bundle as it travels; payloads are copied once, arrays of rows are not."""
    arrays = {}
    for name, values in columns.items():
        if isinstance(values, list):
            arrays[name] = pa.array(values, pa.large_binary())
        elif values.ndim > 1:
            flat = pa.array(values.reshape(-1))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values[0].size)
        else:
            arrays[name] = pa.array(values)
    return pa.table(arrays)


def from_table(table: pa.Table) -> Columns:
    """The columns of `to_table`, as views of the table's memory; arrays of rows are (N, k)."""
    columns: Columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if pa.types.is_large_binary(values.type):
            _, offsets, data = values.buffers()
            ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
            memory = memoryview(data).cast("B") if data else memoryview(b"")
            columns[name] = [memory[a:b] for a, b in pairwise(ends.tolist())]
        elif pa.types.is_fixed_size_list(values.type):
            columns[name] = values.flatten().to_numpy().reshape(len(values), -1)
        else:
            columns[name] = values.to_numpy()
    return columns


_MADE_BY = {
    "mask": "; `raycl data saliency` makes masks of images",
    "objects": "; `raycl data import detection` writes it",
    "instances": "; `raycl data import detection` writes it where all objects have a mask",
}


def check_fields(shards: Shards, needed: Sequence[str], section: str) -> None:
    """Refuses a data set that lacks a field that is read."""
    for field in needed:
        if field not in shards.fields:
            raise RayclError(
                f"{section}: {shards.place} has no field {field!r}, which is read; it has: "
                f"{', '.join(shards.fields)}{_MADE_BY.get(field, '')}"
            )
        if field in OWN:
            raise RayclError(
                f"{section}: the views read the field {field!r} of {shards.place}, and a batch has "
                f"{', '.join(OWN)} of its own; write that field under another name"
            )


def travelling(shards: Shards, needed: Sequence[str]) -> tuple[str, ...]:
    """Fields that travel: those that are needed, and every number (labels, indices).

    A number by the name of one of a batch's own columns stays behind.
    """
    fields = {name: field for name, field in shards.fields.items() if name not in OWN}
    numbers = [n for n, f in fields.items() if isinstance(f, IntField | FloatField)]
    return tuple(dict.fromkeys([*needed, *numbers]))


def local_bundles(plan: Plan, lanes: Sequence[int], epoch: int, start: int) -> Iterator[Columns]:
    """Bundles of the given lanes read in this process, ahead of their use: without Ray."""
    waiting: deque[Future[Columns]] = deque()
    with ThreadPoolExecutor(1, "raycl-read") as reader:
        for bundle in plan.bundles(epoch, start):
            if bundle.lane in lanes:
                waiting.append(reader.submit(plan.read, bundle))
            if len(waiting) > BUNDLES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
