"""The per-rank loader: bundles of encoded samples in, batches on the device out."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raycl.beton import FloatField, IntField
from raycl.data.decode import Decoder, Encoded
from raycl.data.plan import Bundle, Plan, prefixes, read_bundle
from raycl.data.shards import Shards
from raycl.views.image import ImageView

Batch = dict[str, Tensor]
Host = tuple[Batch, dict[str, dict[str, Tensor]]]  # plain tensors, and a plan for every view

BATCHES_AHEAD = 2


@dataclass
class Loader:
    """Batches of one rank: rows of its first lane, then of its next, ...

    Attributes:
        plan: the run's plan; every row that arrives is checked against it.
        views: by stream, the views to draw.
        lanes: lanes that this rank runs, ascending.
        tables: (epoch, first step) -> bundles of these lanes, in the planned order.
        waited: seconds that the training step has waited for data.
    """

    plan: Plan
    views: Mapping[str, Mapping[str, ImageView]]
    lanes: Sequence[int]
    tables: Callable[[int, int], Iterable[pa.Table]]
    device: torch.device
    seed: int = 0
    threads: int = 1
    corrupt: str = "error"
    waited: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._decoders: dict[str, Decoder] = {}
        first = 0
        for index, (name, source) in enumerate(self.plan.sources.items()):
            for prefix in prefixes(name, index == 0, source.order.entries.shape[1]):
                views = self.views[name]
                self._decoders[prefix] = Decoder(
                    views,
                    source.shards.describe,
                    first,
                    self.seed,
                    self.threads,
                    self.corrupt,  # type: ignore[arg-type]
                )
                first += len(views)

    @property
    def steps(self) -> int:
        return self.plan.steps

    @property
    def substituted(self) -> int:
        return sum(decoder.substituted for decoder in self._decoders.values())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on. The host works ahead in a thread of its own."""
        for host in self._timed(ahead(self._host(epoch, start), BATCHES_AHEAD)):
            batch, plans = host
            yield finish(
                batch, plans, {k: v for s in self.views.values() for k, v in s.items()}, self.device
            )

    def _timed(self, batches: Iterator[Host]) -> Iterator[Host]:
        while True:
            begin = time.perf_counter()
            try:
                host = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - begin
            yield host

    def _host(self, epoch: int, start: int) -> Iterator[Host]:
        """Puts the lanes of each step together and cuts their views."""
        tables = iter(self.tables(epoch, start))
        rows = self.plan.batch
        for first in range(start, self.plan.steps, self.plan.room):
            bundles = [next(tables, None) for _ in self.lanes]
            steps = min(self.plan.room, self.plan.steps - first)
            for step in range(first, first + steps):
                at = (step - first) * rows
                parts = [
                    self._checked(table, epoch, lane, step, at)
                    for lane, table in zip(self.lanes, bundles, strict=True)
                ]
                yield self._cut(pa.concat_tables(parts), epoch)

    def _checked(
        self, table: pa.Table | None, epoch: int, lane: int, step: int, at: int
    ) -> pa.Table:
        """The rows of one lane at one step, if they are what the plan says."""
        if table is None:
            raise RuntimeError(f"the stream ended before epoch {epoch}, step {step}, lane {lane}")
        part = table.slice(at, self.plan.batch)
        found = [
            tuple(part[name][i].as_py() for name in ("epoch", "step", "lane")) for i in (0, -1)
        ]
        if any(where != (epoch, step, lane) for where in found):
            raise RuntimeError(
                f"bundles came in another order than planned: (epoch, step, lane) is {found[0]}, "
                f"planned was {(epoch, step, lane)}"
            )
        return part

    def _cut(self, table: pa.Table, epoch: int) -> Host:
        batch: Batch = {}
        plans: dict[str, dict[str, Tensor]] = {}
        step = epoch * self.plan.steps + table["step"][0].as_py()
        for index, (name, source) in enumerate(self.plan.sources.items()):
            occurrence = step // source.order.steps  # a recycled stream draws its views anew
            for prefix in prefixes(name, index == 0, source.order.entries.shape[1]):
                host = _host_batch(
                    table,
                    prefix,
                    source.shards,
                    source.fields,
                    self._decoders[prefix],
                    occurrence,
                    self.plan.batch,
                )
                batch |= host[0]
                plans |= host[1]
        return batch, plans


def _host_batch(
    table: pa.Table,
    prefix: str,
    shards: Shards,
    fields: Sequence[str],
    decoder: Decoder,
    epoch: int,
    group: int,
) -> Host:
    ids = table[f"{prefix}id"].to_numpy().copy()  # torch warns of memory it may not write to
    batch: dict[str, np.ndarray] = {}
    plans: dict[str, dict[str, Tensor]] = {}
    for name in dict.fromkeys(view.field for view in decoder.views.values()):
        column = table[prefix + name].combine_chunks()
        images = Encoded(
            [memoryview(value.as_buffer()).cast("B") for value in column],
            *(table[f"{prefix}{name}.{part}"].to_numpy() for part in ("mode", "height", "width")),
        )
        pixels, drawn, ids = decoder.cut(images, ids, epoch, group)
        for view, values in pixels.items():
            batch[prefix + view] = values
            batch[f"{prefix}{view}.box"] = drawn[view]["box"]
            batch[f"{prefix}{view}.flip"] = drawn[view]["flip"]
            plans[prefix + view] = {k: torch.from_numpy(v) for k, v in drawn[view].items()}
    batch[f"{prefix}id"] = ids
    for name in fields:
        if isinstance(shards.fields[name], IntField | FloatField):
            batch[prefix + name] = shards.column(name)[ids]
    return {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in batch.items()}, plans


def finish(
    batch: Batch,
    plans: Mapping[str, Mapping[str, Tensor]],
    views: Mapping[str, ImageView],
    device: torch.device,
) -> Batch:
    """Moves a batch to the device in one copy each and renders its views there."""
    pinned = device.type == "cuda"
    moved = {
        key: (value.pin_memory() if pinned else value).to(device, non_blocking=pinned)
        for key, value in batch.items()
    }
    for key, plan in plans.items():
        drawn = {name: value.to(device, non_blocking=pinned) for name, value in plan.items()}
        pixels = moved[key].permute(0, 3, 1, 2)
        moved[key] = views[key.rpartition(".")[2]].render(pixels, drawn)
    return moved


def walk(
    shards: Shards,
    view: ImageView,
    ids: np.ndarray,
    *,
    batch: int,
    device: torch.device,
    threads: int = 1,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[Batch]:
    """Every sample of `ids` once, in that order and without dropping: what evaluation reads.

    The batch holds the view under "view" and every number of the data set, `label` among them.
    """
    decoder = Decoder({"view": view}, shards.describe, seed=seed, threads=threads)
    fields = [n for n, f in shards.fields.items() if isinstance(f, IntField | FloatField)]

    def host() -> Iterator[Host]:
        sources = {"walk": (shards, (view.field, *fields))}
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch].astype(np.int64)
            table = read_bundle(Bundle(0, 0, 0, 1), {"walk": part[:, None]}, sources, len(part))
            yield _host_batch(table, "", shards, fields, decoder, epoch, len(part))

    for plain, plans in ahead(host(), BATCHES_AHEAD):
        yield finish(plain, plans, {"view": view}, device)


def ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """Runs an iterator in a thread, `depth` items ahead; its errors are raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=work, name="raycl-loader", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        stopped.set()
        thread.join()
