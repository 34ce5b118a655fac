"""NumPy archives: one file, or a directory of them with one split each (train.npz, test.npz).

Two layouts are read, both without pickled objects:

    data (bytes of all image files end to end), offsets (N + 1,), [labels (N,), names (N,), classes]
    images (N, H, W) or (N, H, W, 1 or 3) uint8, [labels (N,), classes]
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raycl.data.importers import Item, Mode, Split, stamp
from raycl.errors import RayclError

Image = Callable[[int], np.ndarray]

EXPECTED = "'data' and 'offsets' (encoded images end to end), or 'images' (N, H, W[, 3]) uint8"


def splits(source: Path) -> list[Split]:
    """One split per archive, named after its file; a single archive has no split's name."""
    if source.is_file():
        return [split("", source)]
    archives = sorted(source.glob("*.npz"))
    if not archives:
        raise RayclError(f"{source}: there is no .npz file in this directory")
    return [split(archive.stem, archive) for archive in archives]


def split(name: str, path: Path) -> Split:
    """The split that an archive holds.

    Raises:
        RayclError: if it is no archive, or its arrays are missing or contradict each other.
    """
    arrays = load(path)
    if "data" in arrays and "offsets" in arrays:
        total, image, mode = _encoded(path, arrays["data"], arrays["offsets"])
    elif "images" in arrays:
        total, image, mode = _plain(path, arrays["images"])
    else:
        found = ", ".join(map(repr, arrays)) or "nothing"
        raise RayclError(f"{path}: expected are the keys {EXPECTED}; found: {found}")
    if not total:
        raise RayclError(f"{path}: this archive holds no images")
    classes = [_text(name) for name in arrays["classes"]] if "classes" in arrays else None
    labels = _labels(path, arrays["labels"], total, classes) if "labels" in arrays else None
    names = arrays.get("names")

    items = []
    for i in range(total):
        named = f" ({_text(names[i])})" if names is not None and i < len(names) else ""
        label = None if labels is None else int(labels[i])
        items.append(Item(image(i), label, f"{path}[{i}]{named}"))
    return Split(name, items, labels is not None, classes, mode, stamp=stamp([path]))


def load(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive, none of them pickled."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.lib.npyio.NpzFile):
            with archive:
                return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RayclError(f"{path}: not a readable .npz archive: {error}") from error
    raise RayclError(f"{path}: a single array, where an .npz with {EXPECTED} is needed")


def _encoded(path: Path, data: np.ndarray, offsets: np.ndarray) -> tuple[int, Image, Mode]:
    if data.dtype != np.uint8 or data.ndim != 1:
        raise RayclError(f"{path}: 'data' must be (bytes,) uint8, it is {_form(data)}")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        raise RayclError(f"{path}: 'offsets' must be (N + 1,) integers, it is {_form(offsets)}")
    ends = offsets.astype(np.int64)
    if ends[0] < 0 or ends[-1] > len(data) or (np.diff(ends) < 0).any():
        raise RayclError(
            f"{path}: 'offsets' must ascend within the {len(data)} bytes of 'data', they run from "
            f"{ends[0]} to {ends[-1]}"
        )
    return len(ends) - 1, lambda i: data[ends[i] : ends[i + 1]], "jpg"


def _plain(path: Path, images: np.ndarray) -> tuple[int, Image, Mode]:
    pixels = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise RayclError(
            f"{path}: 'images' must be (N, H, W) or (N, H, W, 3) uint8, it is {_form(images)}"
        )
    if not all(pixels.shape[1:]):
        raise RayclError(f"{path}: 'images' have no pixels, their shape is {images.shape}")
    return len(pixels), lambda i: np.broadcast_to(pixels[i], (*pixels.shape[1:3], 3)), "raw"


def _labels(path: Path, labels: np.ndarray, total: int, classes: list[str] | None) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.size != total:
        raise RayclError(f"{path}: 'labels' must be ({total},) integers, it is {_form(labels)}")
    low, high = int(labels.min()), int(labels.max())
    if classes is not None and not (low >= 0 and high < len(classes)):
        raise RayclError(
            f"{path}: 'labels' run from {low} to {high}, but 'classes' names {len(classes)} classes"
        )
    return labels.reshape(total)


def _text(value: np.generic) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _form(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
