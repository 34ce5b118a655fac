"""Streams: what of a plan's rows goes into a batch, and by which views."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from raycl.beton import FloatField, IntField, NDArrayField
from raycl.data.decode import Decoder
from raycl.data.plan import Columns, Plan, prefixes
from raycl.data.shards import Shards
from raycl.views.packing import GraphView, View

Views = Mapping[str, Mapping[str, View]]  # of each stream, by name


@dataclass(frozen=True)
class Stream:
    """One stream of samples on its way into a batch.

    Attributes:
        prefix: of its columns and of its names in the batch.
        numbers: fields that go into the batch as they are, with the shape of a value.
        steps: of one pass; a stream that is shorter than the epoch is recycled, and a new pass
            draws its views anew.
    """

    prefix: str
    numbers: Mapping[str, tuple[int, ...]]
    steps: int
    decoder: Decoder


def streams_of(
    plan: Plan,
    views: Views,
    pool: ThreadPoolExecutor,
    seed: int,
    corrupt: str,
    device: torch.device | None = None,
) -> list[list[Stream]]:
    """The streams of each source; views are numbered through, so each has its own randomness."""
    groups: list[list[Stream]] = []
    first = 0
    for index, (name, source) in enumerate(plan.sources.items()):
        shards = source.shards
        groups.append([])
        for prefix in prefixes(name, index == 0, source.order.width):
            where = shards.describe
            decoder = Decoder(views[name], pool, where, first, seed, corrupt, device)  # type: ignore[arg-type]
            numbers = numbers_of(shards, source.fields)
            groups[-1].append(Stream(prefix, numbers, source.order.steps, decoder))
            first += len(views[name])
    return groups


def row_bytes(plan: Plan, views: Views) -> int:
    """Bytes of the crops of one row."""
    return sum(
        source.order.width * math.prod(view.shape)
        for name, source in plan.sources.items()
        for view in views[name].values()
        if not isinstance(view, GraphView)
    )


def numbers_of(shards: Shards, fields: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of values of those of these fields that are numbers or arrays of them."""
    kinds = {name: shards.fields[name] for name in fields}
    numbers: dict[str, tuple[int, ...]] = {
        name: () for name, kind in kinds.items() if isinstance(kind, IntField | FloatField)
    }
    return numbers | {n: kind.shape for n, kind in kinds.items() if isinstance(kind, NDArrayField)}


def stripped(columns: Columns, prefix: str) -> Columns:
    """The columns of one stream, by their own names."""
    return {k[len(prefix) :]: values for k, values in columns.items() if k.startswith(prefix)}
