"""scikit-learn's handwritten digits: 1,797 real images that need no network and no files.

They are stored as 32x32 RGB, enlarged bicubically from 8x8, because random crops of eight pixels
would hold next to nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from raycl.data.importers import Item, Split

SIDE = 32
TEST = 360
_WHITE = 16  # the brightest of the 17 grey levels


def splits() -> list[Split]:
    """Train (1,437) and test (360), always the same ones, with equal shares of every class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=TEST, stratify=digits.target, random_state=0
    )
    return [_split(name, ids, digits) for name, ids in (("train", train), ("test", test))]


def _split(name: str, ids: np.ndarray, digits: Any) -> Split:
    items = [Item(_enlarge(digits.images[i]), int(digits.target[i]), f"digit {i}") for i in ids]
    return Split(name, items, True, [str(d) for d in range(10)], "raw")


def _enlarge(digit: np.ndarray) -> np.ndarray:
    """(8, 8) grey levels of 0..16 to (32, 32, 3) uint8."""
    grey = Image.fromarray(np.round(digit * (255 / _WHITE)).astype(np.uint8))
    large = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return np.repeat(large[:, :, None], 3, axis=2)
