"""Detectors of salient pixels by name, `package.module:function`, and masks of what they return.

A detector takes an image (H, W, 3) uint8 and returns how salient each of its pixels is: (H, W),
floats in [0, 1] or uint8. It is a pure function, and called in several threads at a time.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raycl.data.importers import stamp
from raycl.errors import RayclError
from raycl.mistakes import kind, nearest

DEFAULT = "raycl.data.saliency:detect"


def resolve(name: str) -> Callable[[np.ndarray], Any]:
    """The function of a name.

    Raises:
        RayclError: there is no such module or function.
    """
    place, _, function = name.partition(":")
    if not (place and function):
        raise RayclError(f"detector: {name!r} was given, expected is package.module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look where the user stands
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise RayclError(
            f"detector: {place} cannot be imported from {Path.cwd()} ({error}); name a module that "
            f"lies there, or is installed on every machine that writes"
        ) from error
    found = getattr(module, function, None)
    if found is None:
        raise RayclError(f"detector: {place} has no {function}{nearest(function, vars(module))}")
    if not callable(found):
        raise RayclError(f"detector: {name} is no function, but {kind(found)}")
    return found


def version(name: str) -> str:
    """Changes when the file of a detector's module does, but not with what that imports."""
    resolve(name)
    file = sys.modules[name.partition(":")[0]].__file__
    return stamp([Path(file)] if file else [])


def mask(name: str, image: np.ndarray) -> bytes:
    """The PNG of an image's mask: one grey level for each pixel, 255 where it is most salient.

    Args:
        name: of the detector.
        image: (H, W, 3) uint8.

    Raises:
        RayclError: the detector failed, or what it returned is no mask of this image.
    """
    detect = resolve(name)
    try:
        found = np.asarray(detect(image))
    except Exception as error:  # of code that is not raycl's
        raise RayclError(f"detector {name} failed: {type(error).__name__}: {error}") from error
    wrong = _wrong(found, image.shape[:2])
    if wrong:
        raise RayclError(
            f"detector {name} returned {wrong}; it has to return an array (H, W) of uint8, or of "
            f"floats from 0 to 1"
        )
    grey = found if found.dtype == np.uint8 else np.rint(255 * found).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def _wrong(found: np.ndarray, size: tuple[int, ...]) -> str:
    """What keeps an array from being the mask of an image of this size; empty: nothing."""
    if found.shape != size:
        return f"the shape {found.shape} for an image of {size[0]} x {size[1]} pixels"
    if found.dtype == np.uint8:
        return ""
    if not np.issubdtype(found.dtype, np.floating):
        return f"values of type {found.dtype}"
    if not np.isfinite(found).all():
        return "values that are NaN or infinite"
    low, high = float(found.min()), float(found.max())
    return f"values from {low:.4g} to {high:.4g}" if low < 0 or high > 1 else ""
