"""Decoding on the cluster: Ray Data actors cut the views, and uint8 crops travel to the ranks.

It serves clusters with CPU nodes beside the GPU nodes. Samples, views and substitutes are those of
the worker's own decoding, bit for bit; what travels is larger, so bundles hold fewer steps.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import ray

from raycl.data.decode import decoding_threads, finish_together
from raycl.data.order import PADDING
from raycl.data.plan import Columns, Plan, from_table, part, to_table
from raycl.data.streams import Stream, Views, streams_of, stripped
from raycl.views.image import ImageView
from raycl.views.packing import GraphView


class Cutter:
    """What a decoding actor does with a bundle of encoded samples."""

    def __init__(
        self, plan: ray.ObjectRef[Plan], views: Views, seed: int, corrupt: str, threads: int
    ) -> None:
        self.plan: Plan = ray.get(plan)
        self.streams = streams_of(self.plan, views, decoding_threads(threads), seed, corrupt)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(cut(from_table(table), self.plan, self.streams))


def cut(columns: Columns, plan: Plan, streams: list[list[Stream]]) -> Columns:
    """A bundle with its views' pixels, (N, size * size * 3) each, in place of its payloads."""
    made = {k: v for k, v in columns.items() if not isinstance(v, list)}
    seconds = {"seconds.decode": 0.0, "seconds.crop": 0.0}
    for group in streams:
        made |= _cut_together(columns, plan, group, seconds)
    return made | {name: np.full(len(columns["step"]), spent) for name, spent in seconds.items()}


def _cut_together(
    columns: Columns, plan: Plan, group: list[Stream], seconds: dict[str, float]
) -> Columns:
    rows = len(columns["step"])
    shown = np.arange(rows)
    pixels = {
        stream.prefix + name: np.zeros((rows, *view.shape), np.uint8)
        for stream in group
        for name, view in stream.decoder.views.items()
        if not isinstance(view, GraphView)
    }
    for at in range(0, rows, plan.batch):
        if columns["step"][at] == PADDING:
            break
        step = int(columns["epoch"][at]) * plan.steps + int(columns["step"][at])
        here = part(columns, at, at + plan.batch)
        cutting = [
            stream.decoder.start(
                stripped(here, stream.prefix),
                step // stream.steps,
                {n: pixels[stream.prefix + n][at : at + plan.batch] for n in stream.decoder.views},
            )
            for stream in group
        ]
        for drawn in finish_together(cutting):
            shown[at : at + plan.batch] = at + drawn.rows
            seconds["seconds.decode"] += drawn.decode
            seconds["seconds.crop"] += drawn.crop
    made = {name: values.reshape(rows, -1) for name, values in pixels.items()}
    for stream in group:
        of_sample = {"id", *stream.numbers} | {
            f"{view.field}.{name}"
            for view in stream.decoder.views.values()
            if isinstance(view, ImageView)
            for name in ("mode", "height", "width")
        }
        made |= {stream.prefix + name: columns[stream.prefix + name][shown] for name in of_sample}
        made[f"{stream.prefix}substituted"] = (shown != np.arange(rows)).astype(np.uint8)
    return made
