"""FFCV's own Loader in the place of raycl's, for comparison and for those who trust it.

Samples, their order and resuming are raycl's, because FFCV is handed the plan's ids. So are colour,
blur and normalisation. Decoding, crops and flips are FFCV's, and with them go these promises:

- Crops and flips are drawn by FFCV's threads, which no seed reaches: they differ from run to run,
  and after a resume. A batch does not tell them (there is no "view1.box" and no "view1.flip").
- A crop is resized with cv2.INTER_AREA after a fast, less exact DCT, whatever the view's
  `interpolation` says.
- A damaged image is not noticed: FFCV delivers what lay in its buffer before.
- Every worker maps the whole file and holds its metadata; nothing comes through Ray Data.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raycl.beton import FloatField, IntField, NDArrayField, RGBImageField
from raycl.data.host import Batch, Host, Slot, Waits, move, render
from raycl.data.plan import Plan
from raycl.data.streams import Views
from raycl.errors import RayclError
from raycl.views.image import ImageView


@dataclass
class FFCVLoader:
    """Batches of one rank, as `raycl.data.loader.Loader` gives them.

    Attributes:
        plan: the run's plan; its one stream has single samples of one local shard.
        views: by stream, the views to draw.
        lanes: lanes that this rank runs, ascending.
        threads: decoding threads of FFCV, at most one per core.
        waits: what the training step has waited for; decode stands for all that FFCV does.

    Raises:
        RayclError: FFCV is not installed, or it cannot serve this data set or these views.
    """

    plan: Plan
    views: Mapping[str, Mapping[str, ImageView]]
    lanes: Sequence[int]
    device: torch.device
    seed: int = 0
    threads: int = 1
    corrupt: str = "error"
    corrupt_share: float = 0.01
    waits: Waits = field(default_factory=Waits, init=False)
    substituted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check(self.plan, self.views, self.corrupt)
        self._views = next(iter(self.views.values()))
        compute = torch.get_num_threads()  # FFCV sets torch's threads too
        self._loader = _ffcv_loader(
            str(self.plan.first.shards.paths[0]),
            self._views,
            list(self.plan.first.shards.fields),
            len(self.lanes) * self.plan.batch,
            self.threads,
        )
        torch.set_num_threads(compute)

    @property
    def steps(self) -> int:
        return self.plan.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on; FFCV works ahead in threads of its own."""
        ids = self._ids(epoch, start)
        pixels = _decoded(self._loader, ids)
        try:
            for rows in ids:
                begin = time.perf_counter()
                views = next(pixels)
                middle = time.perf_counter()
                self.waits.decode += middle - begin
                moved = move(self._host(epoch, rows, views), self.device)
                self.waits.copy += time.perf_counter() - middle
                yield render(moved, self._views)
        finally:
            pixels.close()

    def _ids(self, epoch: int, start: int) -> np.ndarray:
        """Sample ids of this rank, (steps, rows)."""
        order, first = self.plan.first.order, epoch * self.plan.steps
        return np.stack(
            [
                np.concatenate([order.ids(first + step, lane)[:, 0] for lane in self.lanes])
                for step in range(start, self.plan.steps)
            ]
        )

    def _host(self, epoch: int, ids: np.ndarray, views: Mapping[str, np.ndarray]) -> Host:
        shards, fields = self.plan.first.shards, self.plan.first.fields
        numbers = [n for n in fields if isinstance(shards.fields[n], IntField | FloatField)]
        columns = {"id": ids} | {name: shards.column(name)[ids] for name in numbers}
        batch = {name: torch.from_numpy(values) for name, values in columns.items()}
        plans = {}
        sizes = np.ones(len(ids))  # of the images, which only the box depends on
        for index, (name, view) in enumerate(self._views.items()):
            batch[name] = _own(views[name], self.device)
            drawn = view.plan(self.seed, epoch, ids, index, sizes, sizes)
            plans[name] = {
                key: torch.from_numpy(values)
                for key, values in drawn.items()
                if key not in ("box", "flip")
            }
        return Host(batch, plans, Slot(pinned=False))


def _own(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """FFCV's memory as it is, or a copy that no later batch overwrites while a GPU reads it."""
    shared = torch.from_numpy(values)
    if device.type == "cpu":
        return shared
    return torch.empty(shared.shape, dtype=shared.dtype, pin_memory=True).copy_(shared)


def check(plan: Plan, views: Views, corrupt: str) -> None:
    """Refuses what FFCV cannot serve, and that it is not installed."""
    try:
        import ffcv.loader  # noqa: F401
    except ImportError as error:
        raise RayclError(
            f"data.engine=ffcv: FFCV cannot be imported ({error}); install it as raycl's README "
            f"says, or use data.engine=raycl"
        ) from error
    reason = ""
    shards = plan.first.shards
    cut = [view for stream in views.values() for view in stream.values()]
    fields = {view.field for view in cut}
    if len(plan.sources) > 1:
        reason = f"the method reads {len(plan.sources)} streams, FFCV's loader one"
    elif plan.first.order.width > 1:
        reason = "data.pairs hands out tuples of samples, FFCV's loader single ones"
    elif len(shards.paths) > 1:
        reason = (
            f"the data set has {len(shards.paths)} shards, FFCV's loader reads one file; put them "
            f"into one with `raycl data concat`"
        )
    elif "://" in str(shards.paths[0]):
        reason = f"{shards.paths[0]} is remote, FFCV's loader reads local files"
    elif not all(isinstance(shards.fields[name], RGBImageField) for name in fields):
        reason = f"the views read {', '.join(sorted(fields))}, FFCV cuts views of images only"
    elif any(isinstance(shards.fields[name], NDArrayField) for name in plan.first.fields):
        reason = "the method reads arrays of the samples, FFCV's loader hands on numbers only"
    elif any(isinstance(view, ImageView) and view.whole for view in cut):
        reason = "a view shows whole images, FFCV's loader crops them"
    elif corrupt == "substitute":
        reason = "data.corrupt=substitute needs a decoder that notices damage, FFCV's does not"
    if reason:
        raise RayclError(f"data.engine=ffcv: {reason}; or use data.engine=raycl")


def _ffcv_loader(
    path: str, views: Mapping[str, ImageView], fields: Sequence[str], rows: int, threads: int
) -> Any:
    """FFCV's loader with one pipeline per view and all else switched off."""
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import RandomHorizontalFlip

    def pipeline(view: ImageView) -> Any:
        size = (view.size, view.size)
        if view.crop:
            decoder = RandomResizedCropRGBImageDecoder(size, view.crop.scale, view.crop.ratio)
        else:
            decoder = CenterCropRGBImageDecoder(size, view.central)
        flips = [RandomHorizontalFlip(view.flip)] if view.flip else []
        return PipelineSpec(view.field, decoder, flips)

    return Loader(
        path,
        rows,
        min(threads, len(os.sched_getaffinity(0))),
        os_cache=True,
        pipelines=dict.fromkeys(fields) | {name: pipeline(view) for name, view in views.items()},
    )


def _decoded(loader: Any, ids: np.ndarray) -> Generator[dict[str, np.ndarray], None, None]:
    """Views (rows, size, size, 3) uint8 of each row of ids; valid until the next are asked for.

    `Loader.__iter__` does the same with an order of its own.
    """
    from ffcv.loader.epoch_iterator import EpochIterator

    compute = torch.get_num_threads()
    batches = EpochIterator(loader, ids.reshape(-1).astype(np.uint64))
    try:
        for _ in ids:
            while (
                batches.output_queue.empty()
            ):  # next() waits for ever once FFCV's thread has failed
                batches.join(0.001)
                if not batches.is_alive() and batches.output_queue.empty():
                    raise RuntimeError("FFCV's thread has ended early; its error is printed above")
            views = next(batches)
            torch.set_num_threads(compute)
            yield dict(zip(loader.pipeline_specs, views, strict=True))
    finally:
        # Two epochs at once would share FFCV's compiled code, which not every thread pool allows.
        batches.close()
        while batches.is_alive():
            with contextlib.suppress(queue.Empty):
                batches.output_queue.get(timeout=0.1)
