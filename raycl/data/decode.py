"""From encoded samples to views: decode once, cut every view from it, in threads.

One decoded image serves all its views. What a thread does with one row is in `raycl.data.rows`;
decoding and resizing release the GIL. A GPU can do both instead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from raycl.data.rows import Graphs, Images, Masks, Pixels, Rows, least
from raycl.errors import RayclError
from raycl.views.image import ImageView, MaskView
from raycl.views.packing import GraphView, View

SPAN = 16  # rows that a thread takes at a time

_log = logging.getLogger(__name__)


def decoding_threads(count: int) -> ThreadPoolExecutor:
    """Threads that each use one core: a resize of one image would start a team of its own."""
    return ThreadPoolExecutor(count, "raycl-decode", _use_one_core)


def _use_one_core() -> None:
    torch.get_num_threads()  # torch sets a thread up when it is first asked, and must come first
    threadpool_limits(1, "openmp")


@dataclass
class Drawn:
    """What became of the rows of one lane at one step.

    Attributes:
        rows: (N,) the row whose sample each row shows: its own, or that of its substitute.
        plans: what each view's `plan` returned for these samples.
        substituted: rows that show another's sample, because theirs is damaged.
        decode, crop: seconds of thread time.
    """

    rows: np.ndarray
    plans: dict[str, dict[str, np.ndarray]]
    substituted: int = 0
    decode: float = 0.0
    crop: float = 0.0


@dataclass(frozen=True)
class Decoder:
    """Cuts the views of one stream's samples.

    Attributes:
        views: by name, the views to draw.
        pool: the decoding threads.
        locate: says where a sample lies, for error messages.
        first: index of the first view among all of the method's, which keys its randomness.
        corrupt: what to do with a sample that cannot be decoded.
        device: decodes and cuts in place of the threads, on a GPU by nvJPEG. Pixels then differ by
            some grey levels, and damage within a JPEG may show as grey instead of being noticed.
    """

    views: Mapping[str, View]
    pool: ThreadPoolExecutor
    locate: Callable[[int], str]
    first: int = 0
    seed: int = 0
    corrupt: Literal["error", "substitute"] = "error"
    device: torch.device | None = None

    def start(self, rows: Mapping[str, Any], epoch: int, out: Mapping[str, Pixels]) -> Cutting:
        """Begins to cut the views of one lane's rows at one step; `finish_together` ends it.

        Args:
            rows: columns `id`, and for every image field its payloads, `mode`, `height`, `width`;
                or the views' pixels where they were cut on another node (`raycl.data.pool`). `lost`
                tells which rows have lost an array.
            out: by view, (N, *shape) uint8, on the device if there is one; of graphs a list of N.
                Written to.
        """
        count = len(rows["id"])
        plans = {
            name: view.plan(
                self.seed,
                epoch,
                rows["id"],
                self.first + i,
                rows[f"{view.field}.height"],
                rows[f"{view.field}.width"],
            )
            for i, (name, view) in enumerate(self._images.items())
        }
        masks = {n: v for n, v in self.views.items() if isinstance(v, MaskView)}
        plans |= {n: {k: plans[v.follows][k] for k in ("box", "flip")} for n, v in masks.items()}
        if self.views and "substituted" in rows:
            for name, pixels in out.items():
                pixels[...] = rows[name].reshape(pixels.shape)
            return Cutting(self, rows["id"], plans, out, [], int(rows["substituted"].sum()))
        fields: list[Rows] = [self._field(name, rows, plans) for name in self._fields]
        graphs = {n: v for n, v in self.views.items() if isinstance(v, GraphView)}
        fields += [Graphs(rows[view.field], name, view) for name, view in graphs.items()]
        lost = np.flatnonzero(rows.get("lost", ())).tolist()
        for name, view in masks.items():
            field = self._images[view.follows].field
            sizes = zip(
                *(rows[f"{field}.{side}"].tolist() for side in ("height", "width")), strict=True
            )
            boxes, flips = (plans[name][key].tolist() for key in ("box", "flip"))
            fields.append(Masks(rows[view.field], list(sizes), name, view, boxes, flips))
        span, work = (SPAN, self._span) if self.device is None else (count, self._on_device)
        spans = [
            self.pool.submit(work, range(at, min(at + span, count)), fields, out)
            for at in range(0, count, span)
        ]
        return Cutting(self, rows["id"], plans, out, spans, lost=lost)

    @property
    def _images(self) -> dict[str, ImageView]:
        return {n: v for n, v in self.views.items() if isinstance(v, ImageView)}

    @property
    def _fields(self) -> list[str]:
        return list(dict.fromkeys(view.field for view in self._images.values()))

    def _field(
        self, name: str, rows: Mapping[str, Any], plans: Mapping[str, Mapping[str, np.ndarray]]
    ) -> Images:
        height, width = rows[f"{name}.height"], rows[f"{name}.width"]
        views = {n: v for n, v in self._images.items() if v.field == name}
        return Images(
            rows[name],
            rows[f"{name}.mode"].tolist(),
            list(zip(height.tolist(), width.tolist(), strict=True)),
            least(views, plans, height, width),
            [(n, v, plans[n]["box"].tolist(), plans[n]["flip"].tolist()) for n, v in views.items()],
        )

    def _span(
        self, span: range, fields: Sequence[Rows], out: Mapping[str, Pixels]
    ) -> tuple[dict[int, str], float, float]:
        """Cuts some rows; returns what was wrong with which, and the seconds of both halves."""
        bad: dict[int, str] = {}
        decoding = cropping = 0.0
        for row in span:
            for field in fields:
                begin = time.perf_counter()
                try:
                    sample = field.decode(row)
                except (RayclError, ValueError, OSError) as error:
                    bad[row] = str(error)
                    break
                middle = time.perf_counter()
                field.cut(sample, row, out)
                end = time.perf_counter()
                decoding, cropping = decoding + middle - begin, cropping + end - middle
        return bad, decoding, cropping

    def _on_device(
        self, span: range, fields: Sequence[Any], out: Mapping[str, Tensor]
    ) -> tuple[dict[int, str], float, float]:
        """`_span` where a whole batch of JPEGs is decoded at once."""
        bad: dict[int, str] = {}
        decoding = cropping = 0.0
        for field in fields:
            begin = time.perf_counter()
            if isinstance(field, Masks):
                bad |= field.cut_on_device(span, out)
                cropping += time.perf_counter() - begin
                continue
            stored: dict[int, np.ndarray] = {}
            for row in span:
                try:
                    stored[row] = field.stored(row)
                except (RayclError, ValueError) as error:
                    bad[row] = str(error)
            images = _decoded(stored, self.device)
            middle = time.perf_counter()
            for row, image in images.items():
                if isinstance(image, str) or image.shape[1:] != field.sizes[row]:
                    bad[row] = str(image) if isinstance(image, str) else "not of its stated size"
                    continue
                for name, view, boxes, flips in field.views:
                    view.cut_on_device(image, boxes[row], flips[row], out[name][row])
            end = time.perf_counter()
            decoding, cropping = decoding + middle - begin, cropping + end - middle
        return bad, decoding, cropping


def _decoded(
    stored: Mapping[int, np.ndarray], device: torch.device | None
) -> dict[int, Tensor | str]:
    """Images (3, H, W) uint8 on the device, or what is wrong with them."""
    from torchvision.io import ImageReadMode, decode_jpeg

    found: dict[int, Tensor | str] = {}
    jpegs = {}
    for row, content in stored.items():
        tensor = torch.from_numpy(content.copy())  # what lies in a mapped file is read-only
        if content.ndim == 3:
            found[row] = tensor.to(device).permute(2, 0, 1)
        else:
            jpegs[row] = tensor
    try:
        images = decode_jpeg(list(jpegs.values()), ImageReadMode.RGB, device) if jpegs else []
        return found | dict(zip(jpegs, images, strict=True))
    except RuntimeError as error:
        if len(jpegs) == 1:
            return found | dict.fromkeys(jpegs, str(error))
        for row in jpegs:  # which one it is shows only one by one
            found |= _decoded({row: stored[row]}, device)
        return found


@dataclass
class Cutting:
    """Views that are being cut.

    Attributes:
        substituted: rows that were replaced on another node already.
        lost: rows that have lost an array.
    """

    decoder: Decoder
    ids: np.ndarray
    plans: dict[str, dict[str, np.ndarray]]
    out: Mapping[str, Pixels]
    spans: list[Future[tuple[dict[int, str], float, float]]]
    substituted: int = 0
    lost: Sequence[int] = ()

    def damaged(self) -> dict[int, str]:
        """Waits until all is cut; what is wrong with which row, and where that sample lies."""
        errors = dict.fromkeys(self.lost, "its array is not where the file says")
        for span in self.spans:
            errors |= span.result()[0]
        locate = self.decoder.locate
        return {row: f"{locate(int(self.ids[row]))}: {error}" for row, error in errors.items()}

    def finish(self, damaged: Mapping[int, str]) -> Drawn:
        """The views, with the nearest sound row in the place of each damaged one."""
        shown = np.arange(len(self.ids))
        sound = np.setdiff1d(shown, list(damaged))
        for row in damaged:
            shown[row] = sound[np.abs(sound - row).argmin()]
            for pixels in self.out.values():
                pixels[row] = pixels[shown[row]]
        return Drawn(
            shown,
            {name: {k: v[shown] for k, v in plan.items()} for name, plan in self.plans.items()},
            self.substituted + len(damaged),
            sum(span.result()[1] for span in self.spans),
            sum(span.result()[2] for span in self.spans),
        )


def finish_together(cutting: Sequence[Cutting]) -> list[Drawn]:
    """Ends the cuts of the samples of the same entries: all of a pair, for example.

    What takes the place of a damaged sample is of the same lane and step, and it is a whole entry.
    """
    damaged = {row: error for cut in reversed(cutting) for row, error in cut.damaged().items()}
    if damaged:
        first, ids = min(damaged), cutting[0].ids
        if cutting[0].decoder.corrupt == "error":
            raise RayclError(
                f"{damaged[first]}; mend or re-import the data set (`raycl data verify` lists all "
                f"bad samples), or train with data.corrupt=substitute"
            )
        if len(damaged) == len(ids):
            raise RayclError(
                f"{damaged[first]}; no sample of its lane is readable at this step, so none can "
                f"take its place"
            )
    drawn = [cut.finish(damaged) for cut in cutting]
    for row, error in sorted(damaged.items()):
        other = cutting[0].ids[drawn[0].rows[row]]
        _log.warning("%s; in its place stands %s", error, cutting[0].decoder.locate(int(other)))
    return drawn
