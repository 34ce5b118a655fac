"""What a decoding thread does with one field of a row: images, masks and graphs.

An image goes straight from the thread's own buffer into the batch.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raycl.beton.fields import JPG, RAW, check_jpeg, decode_jpeg
from raycl.views.image import ImageView, MaskView
from raycl.views.packing import GraphView, Matrices

FINER = 2.0  # a scaled JPEG still has at least so many pixels for one of the view, along each side

Pixels = Any  # an array; a tensor where a device cuts; a list of what is packed later

_memory = threading.local()


class Rows(Protocol):
    """One field of some rows."""

    def decode(self, row: int) -> Any: ...

    def cut(self, sample: Any, row: int, out: Mapping[str, Pixels]) -> None: ...


@dataclass(frozen=True)
class Images:
    """One image field of some rows, as plain lists, which a thread reads fastest."""

    payloads: Sequence[Any]
    modes: list[int]
    sizes: list[tuple[int, int]]
    least: list[tuple[int, int]]
    views: list[tuple[str, ImageView, list[list[int]], list[bool]]]

    def stored(self, row: int) -> np.ndarray:
        """The pixels (H, W, 3) of a raw image, or the bytes (n,) of a JPEG, read-only."""
        height, width = self.sizes[row]
        payload, mode, bytes_ = self.payloads[row], self.modes[row], height * width * 3
        if mode == RAW:
            if not bytes_ or len(payload) != bytes_:
                raise ValueError(
                    f"a raw image of {height} x {width} pixels takes {bytes_} bytes, and "
                    f"{len(payload)} are stored"
                )
            return np.frombuffer(payload, np.uint8).reshape(height, width, 3)
        if mode != JPG:
            raise ValueError(f"unknown image mode {mode}; 0 is jpg and 1 is raw")
        check_jpeg(payload, (height, width))  # before memory is taken for what a damaged file says
        return np.frombuffer(payload, np.uint8)

    def decode(self, row: int) -> np.ndarray:
        """The image of a row, (H, W, 3) uint8; valid until this thread decodes the next."""
        stored = self.stored(row)
        if stored.ndim == 3:
            return stored
        height, width = self.sizes[row]
        bytes_ = height * width * 3
        memory = getattr(_memory, "buffer", None)
        if memory is None or memory.size < bytes_:
            memory = _memory.buffer = np.empty(bytes_, np.uint8)
        return decode_jpeg(self.payloads[row], self.least[row], memory)

    def cut(self, image: np.ndarray, row: int, out: Mapping[str, Pixels]) -> None:
        for name, view, boxes, flips in self.views:
            box = boxes[row]
            if image.shape[:2] != self.sizes[row]:
                box = shrunk(box, self.sizes[row], image.shape[:2])
            view.cut(image, box, flips[row], out[name][row])


@dataclass(frozen=True)
class Masks:
    """The masks of some rows, and the sizes of the images that they belong to."""

    payloads: Sequence[Any]
    sizes: list[tuple[int, int]]
    name: str
    view: MaskView
    boxes: list[list[int]]
    flips: list[bool]

    def decode(self, row: int) -> np.ndarray:
        """The mask of a row, (H, W) uint8."""
        with Image.open(io.BytesIO(self.payloads[row])) as image:
            if image.mode not in ("L", "P", "1"):
                raise ValueError(f"its mask has {image.mode!r} pixels, not one grey level each")
            if image.size[::-1] != self.sizes[row]:
                raise ValueError(
                    f"its mask has {image.size[1]} x {image.size[0]} pixels, and its image has "
                    f"{self.sizes[row][0]} x {self.sizes[row][1]}"
                )
            return np.asarray(image.convert("L") if image.mode == "1" else image)

    def cut(self, mask: np.ndarray, row: int, out: Mapping[str, Pixels]) -> None:
        self.view.cut(mask, self.boxes[row], self.flips[row], out[self.name][row])

    def cut_on_device(self, span: range, out: Mapping[str, Tensor]) -> dict[int, str]:
        """Cuts them here and copies them there."""
        bad: dict[int, str] = {}
        for row in span:
            try:
                mask = self.decode(row)
            except (OSError, ValueError) as error:
                bad[row] = str(error)
                continue
            here = np.empty(self.view.shape, np.uint8)
            self.cut(mask, row, {self.name: {row: here}})
            out[self.name][row].copy_(torch.from_numpy(here))
        return bad


@dataclass(frozen=True)
class Graphs:
    """The graphs of some rows."""

    payloads: Sequence[Any]
    name: str
    view: GraphView

    def decode(self, row: int) -> Matrices:
        return self.view.open(self.payloads[row])

    def cut(self, graph: Matrices, row: int, out: Mapping[str, Pixels]) -> None:
        out[self.name][row] = graph


def shrunk(box: Sequence[int], size: tuple[int, int], to: tuple[int, ...]) -> list[int]:
    """A box of an image of a size, on that image decoded to another; both sides round up there."""
    share = to[0] / size[0]
    top, left, height, width = (round(x * share) for x in box)
    return [top, left, min(height, to[0] - top), min(width, to[1] - left)]


def least(
    views: Mapping[str, ImageView],
    plans: Mapping[str, Mapping[str, np.ndarray]],
    height: np.ndarray,
    width: np.ndarray,
) -> list[tuple[int, int]]:
    """Height and width of each decoded image that will do for all its views; 0, 0: all of it.

    The boxes on an image that was decoded at half its size are rounded to whole pixels of that.
    With FINER of these for one of the view, that moves the view by a quarter of its pixel at most.
    """
    share = np.max(
        [
            FINER * view.size / np.maximum(plans[name]["box"][:, 2:].min(axis=1), 1)
            for name, view in views.items()
        ],
        axis=0,
    )
    share = np.where(share > 0.5, 0, share)
    return [
        (round(h), round(w))
        for h, w in zip((share * height).tolist(), (share * width).tolist(), strict=True)
    ]
