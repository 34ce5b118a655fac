"""From encoded samples to uint8 views: decode once, cut every view from it, in threads.

One decoded image serves all its views. Decoding and resizing release the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from raycl.beton.fields import decode_jpeg
from raycl.errors import RayclError
from raycl.views.image import ImageView

RAW = 1


@dataclass
class Encoded:
    """Images of one batch as they lie in the container; all arrays have one entry per row."""

    payload: Sequence[Any]
    mode: np.ndarray
    height: np.ndarray
    width: np.ndarray

    def decode(self, row: int) -> np.ndarray:
        """The image of a row, (H, W, 3) uint8."""
        if self.mode[row] == RAW:
            pixels = np.frombuffer(self.payload[row], np.uint8)
            return pixels.reshape(self.height[row], self.width[row], 3)
        image = decode_jpeg(self.payload[row])
        if image.shape[:2] != (self.height[row], self.width[row]):
            raise ValueError(
                f"decodes to {image.shape[1]}x{image.shape[0]} pixels, the container says "
                f"{self.width[row]}x{self.height[row]}"
            )
        return image


@dataclass
class Decoder:
    """Cuts the views of a batch.

    Attributes:
        views: by name, the views to draw.
        first: index of the first view among all of the method's, which keys its randomness.
        threads: decoding threads.
        corrupt: what to do with a sample that cannot be decoded.
        locate: says where a sample lies, for error messages.
        substituted: samples replaced so far.
    """

    views: Mapping[str, ImageView]
    locate: Callable[[int], str]
    first: int = 0
    seed: int = 0
    threads: int = 1
    corrupt: Literal["error", "substitute"] = "error"
    substituted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def cut(
        self, images: Encoded, ids: np.ndarray, epoch: int, group: int
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]], np.ndarray]:
        """Pixels (N, S, S, 3) uint8 and plan of every view, and the ids that are really there.

        Args:
            ids: (N,) sample ids.
            group: rows of one lane; a substitute comes from the same lane.
        """
        plans = {
            name: view.plan(self.seed, epoch, ids, self.first + i, images.height, images.width)
            for i, (name, view) in enumerate(self.views.items())
        }
        pixels = {
            name: np.empty((len(ids), view.size, view.size, 3), np.uint8)
            for name, view in self.views.items()
        }

        def one(row: int) -> str | None:
            try:
                image = images.decode(row)
            except (RayclError, ValueError) as error:
                return str(error)
            for name, view in self.views.items():
                plan = plans[name]
                view.cut(image, plan["box"][row], bool(plan["flip"][row]), pixels[name][row])
            return None

        rows = range(len(ids))
        if self._pool:
            span = -(-len(ids) // self.threads)
            parts = self._pool.map(lambda at: [one(r) for r in rows[at : at + span]], rows[::span])
            errors = [error for part in parts for error in part]
        else:
            errors = [one(row) for row in rows]
        bad = [row for row, error in enumerate(errors) if error]
        if not bad:
            return pixels, plans, ids
        if self.corrupt == "error":
            row = bad[0]
            raise RayclError(
                f"{self.locate(int(ids[row]))}: {errors[row]}; mend or re-import the data set "
                f"(`raycl data verify` lists all bad samples), or set data.corrupt=substitute"
            )
        ids = ids.copy()
        for row in bad:
            lane = range(row // group * group, row // group * group + group)
            good = [r for r in lane if not errors[r]]
            if not good:
                raise RayclError(
                    f"{self.locate(int(ids[row]))}: no sample of this lane is readable"
                )
            nearest = min(good, key=lambda r: (abs(r - row), r))
            ids[row] = ids[nearest]
            for values in (
                *pixels.values(),
                *(a for plan in plans.values() for a in plan.values()),
            ):
                values[row] = values[nearest]
        self.substituted += len(bad)
        return pixels, plans, ids
