"""Decoding on the cluster: Ray Data actors cut the views, and uint8 crops travel to the ranks.

It serves clusters with CPU nodes beside the GPU nodes. Samples, views and substitutes are those of
the worker's own decoding, bit for bit; what travels is larger, so bundles hold fewer steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import ray

from raycl.data.decode import decoding_threads
from raycl.data.loader import Stream, streams_of, stripped
from raycl.data.order import PADDING
from raycl.data.plan import Columns, Plan, from_table, part, to_table
from raycl.views.image import ImageView

Views = Mapping[str, Mapping[str, ImageView]]


def row_bytes(plan: Plan, views: Views) -> int:
    """Bytes of the crops of one row."""
    return sum(
        source.order.width * sum(view.size**2 * 3 for view in views[name].values())
        for name, source in plan.sources.items()
    )


class Cutter:
    """What a decoding actor does with a bundle of encoded samples."""

    def __init__(
        self, plan: ray.ObjectRef[Plan], views: Views, seed: int, corrupt: str, threads: int
    ) -> None:
        self.plan: Plan = ray.get(plan)
        self.streams = streams_of(self.plan, views, decoding_threads(threads), seed, corrupt)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(cut(from_table(table), self.plan, self.streams))


def cut(columns: Columns, plan: Plan, streams: list[Stream]) -> Columns:
    """A bundle with its views' pixels, (N, size * size * 3) each, in place of its payloads."""
    rows = len(columns["step"])
    made = {k: v for k, v in columns.items() if not isinstance(v, list)}
    seconds = {"decode": 0.0, "crop": 0.0}
    for stream in streams:
        views = stream.decoder.views
        pixels = {n: np.zeros((rows, v.size, v.size, 3), np.uint8) for n, v in views.items()}
        shown = np.arange(rows)
        for at in range(0, rows, plan.batch):
            if columns["step"][at] == PADDING:
                break
            step = int(columns["epoch"][at]) * plan.steps + int(columns["step"][at])
            here = slice(at, at + plan.batch)
            drawn = stream.decoder.start(
                stripped(part(columns, here.start, here.stop), stream.prefix),
                step // stream.steps,
                {name: values[here] for name, values in pixels.items()},
            )()
            shown[here] = at + drawn.rows
            seconds["decode"] += drawn.decode
            seconds["crop"] += drawn.crop
        prefix = stream.prefix
        of_sample = {"id", *stream.numbers} | {
            f"{view.field}.{name}"
            for view in views.values()
            for name in ("mode", "height", "width")
        }
        made |= {prefix + name: columns[prefix + name][shown] for name in of_sample}
        made |= {prefix + name: values.reshape(rows, -1) for name, values in pixels.items()}
        made[f"{prefix}substituted"] = (shown != np.arange(rows)).astype(np.uint8)
    return made | {f"seconds.{name}": np.full(rows, spent) for name, spent in seconds.items()}
