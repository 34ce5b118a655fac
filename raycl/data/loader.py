"""The per-rank loader: bundles of encoded samples in, batches on the device out."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raycl.data.decode import Cutting, Decoder, decoding_threads, finish_together
from raycl.data.host import IN_FLIGHT, QUEUE, Batch, Host, Slot, Waits, move, render, slots_of
from raycl.data.plan import Columns, Plan, part, read_samples, travelling
from raycl.data.shards import Shards
from raycl.data.streams import Stream, Views, numbers_of, streams_of, stripped
from raycl.errors import RayclError
from raycl.views.image import ImageView, MaskView
from raycl.views.packing import GraphView, View

SPARED = 8  # damaged samples of a lane that are too few to speak of a share


@dataclass
class Loader:
    """Batches of one rank: rows of its first lane, then of its next, ...

    Attributes:
        plan: the run's plan; every row that arrives is checked against it.
        views: by stream, the views to draw.
        lanes: lanes that this rank runs, ascending.
        bundles: (epoch, first step) -> bundles of these lanes, in the planned order.
        waits: what the training step has waited for.
        corrupt_share: of a lane's samples, how many may be damaged before the run is refused.
        on_device: whether the device decodes and cuts.
        substituted: samples that stood in for damaged ones.
    """

    plan: Plan
    views: Views
    lanes: Sequence[int]
    bundles: Callable[[int, int], Iterable[Columns]]
    device: torch.device
    seed: int = 0
    threads: int = 1
    corrupt: str = "error"
    corrupt_share: float = 0.01
    on_device: bool = False
    waits: Waits = field(default_factory=Waits, init=False)
    substituted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._slots = slots_of(self.device)
        self._seen, self._damaged = 0, np.zeros(len(self.lanes), np.int64)  # rows of every lane
        pool = decoding_threads(self.threads)
        device = self.device if self.on_device else None
        self._streams = streams_of(self.plan, self.views, pool, self.seed, self.corrupt, device)

    @property
    def steps(self) -> int:
        return self.plan.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on. The host works ahead in threads of its own."""
        views = {
            name: view
            for stream in self.views.values()
            for name, view in stream.items()
            if isinstance(view, ImageView)
        }
        for host in self.host(epoch, start):
            begin = time.perf_counter()
            moved = move(host, self.device)
            self.waits.copy += time.perf_counter() - begin
            yield render(moved, views)

    def host(self, epoch: int, start: int = 0) -> Iterator[Host]:
        """The batches before they go to the device; one is valid until the next is asked for."""
        batches = ahead(self._pipelined(epoch, start), QUEUE)
        while True:
            begin = time.perf_counter()
            host = next(batches, None)
            if host is None:
                return
            self.waits.add(time.perf_counter() - begin, host)
            self._count(host.substituted)
            yield host

    def _count(self, substituted: np.ndarray) -> None:
        """Refuses to go on where too much is damaged.

        Every lane counts for itself, so that it does not matter how many of them a rank runs.
        """
        self.substituted += int(substituted.sum())
        self._seen += self.plan.batch * sum(map(len, self._streams))
        self._damaged += substituted
        worst = int(self._damaged.argmax())
        if self._damaged[worst] > max(SPARED, self.corrupt_share * self._seen):
            raise RayclError(
                f"data.corrupt_share: {self._damaged[worst]} of {self._seen} samples of lane "
                f"{self.lanes[worst]} are damaged, allowed is a share of {self.corrupt_share:g}; "
                f"`raycl data verify` lists them all: mend or re-import the data set"
            )

    def _pipelined(self, epoch: int, start: int) -> Iterator[Host]:
        """Keeps the decoding threads busy from one step to the next."""
        flying: deque[Callable[[], Host]] = deque()
        for step, parts, made, starved in self._steps(epoch, start):
            flying.append(self._begin(epoch, step, parts, made, starved))
            if len(flying) > IN_FLIGHT:
                yield flying.popleft()()
        for finish in flying:
            yield finish()

    def _steps(
        self, epoch: int, start: int
    ) -> Iterator[tuple[int, list[Columns], dict[str, float], float]]:
        """Rows of each lane at each step, with the seconds that their bundles took."""
        bundles = iter(self.bundles(epoch, start))
        rows = self.plan.batch
        for first in range(start, self.plan.steps, self.plan.room):
            begin = time.perf_counter()
            here = [next(bundles, None) for _ in self.lanes]
            starved = time.perf_counter() - begin
            made = _seconds([bundle for bundle in here if bundle])
            for step in range(first, min(first + self.plan.room, self.plan.steps)):
                at = (step - first) * rows
                parts = [
                    _checked(bundle, epoch, lane, step, slice(at, at + rows))
                    for lane, bundle in zip(self.lanes, here, strict=True)
                ]
                yield step, parts, made, starved
                made, starved = {}, 0.0

    def _begin(
        self, epoch: int, step: int, parts: list[Columns], made: dict[str, float], starved: float
    ) -> Callable[[], Host]:
        slot = next(self._slots)
        run_step = epoch * self.plan.steps + step
        drawing = [
            [
                _start(s, [stripped(lane, s.prefix) for lane in parts], run_step // s.steps, slot)
                for s in group
            ]
            for group in self._streams
        ]

        def finish() -> Host:
            host = Host({}, {}, slot, made=made, starved=starved)
            for group in drawing:
                _put(host, group)
            return host

        return finish


def _seconds(bundles: Sequence[Columns]) -> dict[str, float]:
    """What bundles took, by cause; each row of a bundle says the same."""
    causes = [name for name in (bundles[0] if bundles else ()) if name.startswith("seconds.")]
    return {
        name.partition(".")[2]: sum(float(bundle[name][0]) for bundle in bundles) for name in causes
    }


def _checked(bundle: Columns | None, epoch: int, lane: int, step: int, rows: slice) -> Columns:
    """The rows of one lane at one step, if they are what the plan says."""
    if bundle is None:
        raise RuntimeError(f"the stream ended before epoch {epoch}, step {step}, lane {lane}")
    columns = part(bundle, rows.start, rows.stop)
    for name, planned in (("epoch", epoch), ("step", step), ("lane", lane)):
        if not (columns[name] == planned).all():
            found = tuple(columns[key].tolist()[0] for key in ("epoch", "step", "lane"))
            raise RuntimeError(
                f"bundles came in another order than planned: (epoch, step, lane) is {found}, "
                f"planned was {(epoch, step, lane)}"
            )
    return columns


@dataclass
class Drawing:
    """One stream's views of one step while they are being cut, lane by lane."""

    stream: Stream
    lanes: list[Columns]
    pixels: dict[str, Tensor]
    cutting: list[Cutting]

    def packed(self) -> Batch:
        """The graphs of all lanes, by the names of the batch."""
        arrays: dict[str, np.ndarray] = {}
        for name, view in self.stream.decoder.views.items():
            if isinstance(view, GraphView):
                arrays |= view.pack([graph for cut in self.cutting for graph in cut.out[name]])
        return {name: torch.from_numpy(values) for name, values in arrays.items()}


def _start(stream: Stream, lanes: list[Columns], epoch: int, slot: Slot) -> Drawing:
    ends = np.cumsum([0, *(len(lane["id"]) for lane in lanes)]).tolist()
    device, views = stream.decoder.device, stream.decoder.views
    graphs = [name for name, view in views.items() if isinstance(view, GraphView)]
    pixels = {
        name: slot.take(stream.prefix + name, (ends[-1], *view.shape), device)
        for name, view in views.items()
        if not isinstance(view, GraphView)
    }
    arrays = pixels if device else {name: values.numpy() for name, values in pixels.items()}
    cutting = []
    for lane, (a, b) in zip(lanes, pairwise(ends), strict=True):
        out: dict[str, Any] = {name: values[a:b] for name, values in arrays.items()}
        out |= {name: [None] * (b - a) for name in graphs}
        cutting.append(stream.decoder.start(lane, epoch, out))
    return Drawing(stream, lanes, pixels, cutting)


def _put(host: Host, group: Sequence[Drawing]) -> None:
    """Waits for the views of one source, whose entries are replaced as a whole, and adds them."""
    by_lane = zip(*(drawing.cutting for drawing in group), strict=True)
    for drawing, drawn in zip(group, zip(*map(finish_together, by_lane), strict=True), strict=True):
        prefix = drawing.stream.prefix
        for name, shape in {"id": (), **drawing.stream.numbers}.items():
            rows = [lane[name][d.rows] for lane, d in zip(drawing.lanes, drawn, strict=True)]
            host.batch[prefix + name] = _joined(rows).reshape(-1, *shape)
        for name, values in drawing.pixels.items():
            plan = {
                key: _joined([d.plans[name][key] for d in drawn]) for key in drawn[0].plans[name]
            }
            host.batch[prefix + name] = values
            host.batch |= {f"{prefix}{name}.{key}": plan[key] for key in ("box", "flip")}
            if isinstance(drawing.stream.decoder.views[name], ImageView):
                host.plans[prefix + name] = plan
        host.batch |= {prefix + name: values for name, values in drawing.packed().items()}
        host.substituted = host.substituted + [d.substituted for d in drawn]
        host.cut["decode"] += sum(d.decode for d in drawn)
        host.cut["crop"] += sum(d.crop for d in drawn)


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def walk(
    shards: Shards,
    view: ImageView | GraphView | str,
    ids: np.ndarray,
    *,
    batch: int,
    device: torch.device,
    threads: int = 1,
    seed: int = 0,
    epoch: int = 0,
    masked: bool = False,
) -> Iterator[Batch]:
    """Every sample of `ids` once, in that order and without dropping: what evaluation reads.

    The batch holds the view under "view" and every number of the data set, `label` among them; if
    it is `masked`, also what of the field "mask" the view shows, (N, size, size) uint8. A view that
    is the name of a field stands for its array, as float32; one of graphs for what it packs.
    """
    images = {"view": view} if isinstance(view, ImageView) else {}
    numbers = numbers_of(shards, travelling(shards, [view] if isinstance(view, str) else []))
    views: dict[str, View] = {} if isinstance(view, str) else {"view": view}
    if masked:
        views["mask"] = MaskView(follows="view", size=images["view"].size)
    slots = slots_of(device)

    def hosts() -> Iterator[Host]:
        with decoding_threads(threads) as pool:
            decoder = Decoder(views, pool, shards.describe, seed=seed)
            stream = Stream("", numbers, 1, decoder)
            for start in range(0, len(ids), batch):
                part = ids[start : start + batch].astype(np.int64)
                rows = read_samples(shards, part, (*(v.field for v in views.values()), *numbers))
                slot = next(slots)
                host = Host({}, {}, slot)
                _put(host, [_start(stream, [rows], epoch, slot)])
                yield host

    for host in ahead(hosts(), QUEUE):
        found = render(move(host, device), images)
        yield found | {"view": found[view].float()} if isinstance(view, str) else found


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
