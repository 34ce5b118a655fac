"""The plan of a run's samples, and the bundles of encoded samples that it is delivered in.

A bundle holds a few steps of one lane as an Arrow table. Bundles are numbered so that bundle k
belongs to lane k mod lanes; all have the same number of rows, and a rank of n runs the lanes
rank, rank + n, ... Every row carries epoch, step and lane, which the loader checks, because nothing
promises the order in which a distributed engine hands bundles over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa

from raycl.beton import BetonError, FloatField, IntField, RGBImageField
from raycl.data.order import PADDING, Order, step_ids
from raycl.data.shards import Shards
from raycl.errors import RayclError

BUNDLE_BYTES = 16 << 20
BUNDLE_STEPS = 16


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
    """All streams of a method, in one plan. The first stream defines the epoch."""

    sources: Mapping[str, Source]

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
        size = sum(
            s.order.entries.shape[1] * sum(p.stat().st_size for p in s.shards.paths) / len(s.shards)
            for s in self.sources.values()
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
        for name, source in self.sources.items():
            width = source.order.entries.shape[1]
            room = np.full((self.room, self.batch, width), PADDING, np.int64)
            for i in range(bundle.steps):
                step = bundle.epoch * self.steps + bundle.start + i
                room[i] = step_ids(source.order, step)[bundle.lane]
            ids[name] = room.reshape(-1, width)
        return ids

    def read(self, bundle: Bundle) -> pa.Table:
        return read_bundle(
            bundle,
            self.ids(bundle),
            {n: (s.shards, s.fields) for n, s in self.sources.items()},
            self.batch,
        )


def prefixes(name: str, first: bool, width: int) -> list[str]:
    """Prefixes of a stream's columns: none for the first; `pairs.0.`, `pairs.1.` for tuples."""
    stem = "" if first else f"{name}."
    return [stem] if width == 1 else [f"{stem}{i}." for i in range(width)]


def read_bundle(
    bundle: Bundle,
    ids: Mapping[str, np.ndarray],
    sources: Mapping[str, tuple[Shards, Sequence[str]]],
    batch: int,
) -> pa.Table:
    """The encoded samples of a bundle as an Arrow table, one row per entry."""
    rows = len(next(iter(ids.values())))
    step = bundle.start + np.arange(rows) // batch
    columns: dict[str, pa.Array] = {
        "epoch": pa.array(np.full(rows, bundle.epoch)),
        "lane": pa.array(np.full(rows, bundle.lane)),
        "step": pa.array(np.where(step < bundle.start + bundle.steps, step, PADDING)),
    }
    for position, (name, (shards, fields)) in enumerate(sources.items()):
        width = ids[name].shape[1]
        for i, prefix in enumerate(prefixes(name, position == 0, width)):
            columns |= _columns(shards, ids[name][:, i], fields, prefix)
    return pa.table(columns)


def _columns(
    shards: Shards, ids: np.ndarray, fields: Sequence[str], prefix: str
) -> dict[str, pa.Array]:
    columns = {f"{prefix}id": pa.array(ids)}
    real = ids != PADDING
    shard, row = shards.locate(ids[real])
    readers = [shards.reader(int(s)) for s in shard]
    for field in fields:
        kind = shards.fields[field]
        if isinstance(kind, IntField | FloatField):
            values = np.zeros(len(ids), shards.column(field).dtype)
            values[real] = shards.column(field)[ids[real]]
            columns[prefix + field] = pa.array(values)
            continue
        payload: list[memoryview | bytes] = [b""] * len(ids)
        for at, reader, r in zip(np.flatnonzero(real), readers, row, strict=True):
            # What a damaged file has lost stays empty here: the loader decides what to do about it.
            with contextlib.suppress(BetonError):
                payload[at] = reader.encoded(int(r), field)
        columns[prefix + field] = pa.array(payload, pa.large_binary())
        if isinstance(kind, RGBImageField):
            infos = {int(s): shards.reader(int(s)).image_info(field) for s in np.unique(shard)}
            for index, part in enumerate(("mode", "height", "width")):
                values = np.zeros(len(ids), np.int32)
                values[real] = [infos[s][index][r] for s, r in zip(shard, row, strict=True)]
                columns[f"{prefix}{field}.{part}"] = pa.array(values)
    return columns


@lru_cache(maxsize=8)
def open_shards(paths: tuple[str, ...]) -> Shards:
    """Shards of this process; a read task on another node finds them open already."""
    return Shards(list(paths))


def check_fields(shards: Shards, needed: Sequence[str], section: str) -> None:
    """Refuses a data set that lacks a field that a view reads."""
    for field in needed:
        if field not in shards.fields:
            raise RayclError(
                f"{section}: {shards.paths[0].parent} has no field {field!r}, which the views "
                f"read; it has: {', '.join(shards.fields)}"
            )


def travelling(shards: Shards, needed: Sequence[str]) -> tuple[str, ...]:
    """Fields that travel: those that views read, and every number (labels, indices)."""
    numbers = [n for n, f in shards.fields.items() if isinstance(f, IntField | FloatField)]
    return tuple(dict.fromkeys([*needed, *numbers]))


def local_tables(plan: Plan, lanes: Sequence[int], epoch: int, start: int) -> Iterator[pa.Table]:
    """Bundles of the given lanes read in this process: what one worker without Ray uses."""
    for bundle in plan.bundles(epoch, start):
        if bundle.lane in lanes:
            yield plan.read(bundle)
