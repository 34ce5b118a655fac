"""Importers: one file per kind of foreign data set. Each lists splits; `raycl.data.sink` writes.

An importer checks everything that can be checked cheaply before it returns, and leaves reading and
decoding of the single images to the sink.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Mode = Literal["jpg", "raw"]


class Item(NamedTuple):
    """One image to import.

    Attributes:
        image: a file, the bytes of a complete image file, or pixels (H, W, 3) uint8.
        label: index of the class, where the split is labelled.
        origin: where the image comes from, for error messages.
    """

    image: Path | bytes | np.ndarray
    label: int | None
    origin: str


@dataclass(frozen=True)
class Split:
    """One data set to write.

    Attributes:
        name: folder below the output directory; empty: the output directory itself.
        items: exactly `total` images, in the order in which they are stored.
        labelled: whether every item has a label.
        classes: names of the labels, where they are known.
        mode: how images are stored unless the user says otherwise.
    """

    name: str
    items: Iterable[Item]
    total: int
    labelled: bool
    classes: list[str] | None
    mode: Mode
