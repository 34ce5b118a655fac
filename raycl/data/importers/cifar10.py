"""CIFAR-10 (Krizhevsky 2009) in any of the forms in which it travels.

train.npz, test.npz                             see `raycl.data.importers.npz`
data_batch_1 ... data_batch_5, test_batch       the official "python version"
data_batch_1.bin ... , test_batch.bin           the official "binary version"
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raycl.data.importers import Item, Split, npz, stamp
from raycl.errors import RayclError

CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_PIXELS = 3 * 32 * 32


def splits(source: Path) -> list[Split]:
    """Train and test.

    Raises:
        RayclError: if files are missing or hold something else.
    """
    if all((source / f"{name}.npz").is_file() for name in _BATCHES):
        return [npz.split(name, source / f"{name}.npz") for name in _BATCHES]
    for folder in _FOLDERS:
        for suffix, read in (("", _python), (".bin", _binary)):
            files = {
                split: [source / folder / f"{batch}{suffix}" for batch in batches]
                for split, batches in _BATCHES.items()
            }
            missing = [p for paths in files.values() for p in paths if not p.is_file()]
            if not missing:
                return [_split(name, paths, read) for name, paths in files.items()]
            if len(missing) < sum(map(len, files.values())):
                names = ", ".join(path.name for path in missing)
                raise RayclError(f"{missing[0].parent}: CIFAR-10 is incomplete, missing: {names}")
    raise RayclError(
        f"{source}: no CIFAR-10 here; expected is a directory with train.npz and test.npz, or the "
        f"unpacked official archive with data_batch_1 or data_batch_1.bin in it"
    )


def _split(
    name: str, paths: list[Path], read: Callable[[Path], tuple[np.ndarray, np.ndarray]]
) -> Split:
    batches = [_checked(path, *read(path)) for path in paths]

    items = [
        Item(image, int(label), f"{path}[{i}]")
        for path, (images, labels) in zip(paths, batches, strict=True)
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return Split(name, items, True, CLASSES, "raw", stamp=stamp(paths))


def _checked(path: Path, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of three colour planes to images (N, 32, 32, 3)."""
    if rows.dtype != np.uint8 or not len(rows) or rows.shape != (len(labels), _PIXELS):
        raise RayclError(
            f"{path}: not a CIFAR-10 batch, which holds {_PIXELS} bytes and a label per image"
        )
    if not (labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < len(CLASSES)):
        raise RayclError(f"{path}: not a CIFAR-10 batch, its labels are not all in 0..9")
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.fromfile(path, np.uint8)
    if len(content) % (_PIXELS + 1):
        raise RayclError(
            f"{path}: {len(content)} bytes are no whole number of CIFAR-10 records of "
            f"{_PIXELS + 1} bytes; the file is truncated or another one"
        )
    records = content.reshape(-1, _PIXELS + 1)
    return records[:, 1:], records[:, 0]


def _python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _Unpickler(file, encoding="bytes").load()
        return np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except RayclError as error:
        raise RayclError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise RayclError(f"{path}: not a readable CIFAR-10 batch: {error!r}") from error


class _Unpickler(pickle.Unpickler):
    """Reads arrays and plain containers only: a pickle from the network could run any code."""

    _ALLOWED = frozenset({("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        known = ("numpy.core.multiarray", "numpy._core.multiarray")
        short = "multiarray" if module in known else module
        if (short, name) not in self._ALLOWED:
            raise RayclError(
                f"refused: this pickle asks for {module}.{name}, which no CIFAR-10 batch needs"
            )
        return super().find_class("numpy._core.multiarray" if short != module else module, name)
