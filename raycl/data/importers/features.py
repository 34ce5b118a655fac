"""Features of images with an embedding of every class, as zero-shot benchmarks come.

Two layouts are read: the xlsa17 bundle (a directory with res101.mat and att_splits.mat, or
sent_splits.mat, counted from 1) and an .npz of `features` (N, D), `labels` (N,), `att` (C, A) and
the rows of the proposed split, counted from 0, [class_names (C,)]. The splits `train` and `test`
hold the samples, the test split those of seen and unseen classes; `classes` holds one embedding a
class, in the order of the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from raycl.data.importers import Item, Split, npz, stamp
from raycl.errors import RayclError

ROWS = {"train": ("trainval_loc",), "test": ("test_seen_loc", "test_unseen_loc")}
_NAMES = ("att_splits.mat", "sent_splits.mat")


@dataclass(frozen=True)
class Rows:
    """Items that are rows of an array (N, D) float32."""

    values: np.ndarray
    labels: Sequence[int]
    origin: str
    numbers: np.ndarray  # of the rows in the source

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Self:
        rows = (self.values[part], self.labels[part], self.origin, self.numbers[part])
        return type(self)(*rows)

    def __iter__(self) -> Iterator[Item]:
        for row, label, number in zip(self.values, self.labels, self.numbers, strict=True):
            yield Item(row, label, f"{self.origin}[{number}]")


def splits(source: Path) -> list[Split]:
    """The splits `train`, `test` and `classes`.

    Raises:
        RayclError: a file or an array is missing, or arrays contradict each other.
    """
    files = [source] if source.is_file() else _bundle(source)
    first = 0 if source.is_file() else 1
    arrays: dict[str, np.ndarray] = {}
    for path in files:
        arrays |= npz.load(path) if path.suffix == ".npz" else _mat(path)
    where = str(source)
    x = _array(arrays, "features", where)
    a = _array(arrays, "att", where)
    if first:
        x, a = x.T, a.T  # samples and classes are columns there
    y = _array(arrays, "labels", where).reshape(-1).astype(np.int64) - first
    if len(x) != len(y):
        raise RayclError(f"{where}: 'features' are of {len(x)} samples and 'labels' of {len(y)}")
    if y.min() < 0 or y.max() >= len(a):
        raise RayclError(
            f"{where}: 'labels' run from {y.min() + first} to {y.max() + first}, and 'att' has "
            f"embeddings of {len(a)} classes"
        )
    names = arrays.get("allclasses_names", arrays.get("class_names"))
    classes = [str(i) for i in range(len(a))] if names is None else [_text(n) for n in names]
    changed = stamp(files)

    def split(name: str, values: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Split:
        items = Rows(values.astype(np.float32), labels.tolist(), where, rows)
        return Split(name, items, True, classes, field="features", stamp=changed)

    found = []
    for name, keys in ROWS.items():
        rows = np.concatenate([_array(arrays, key, where).reshape(-1) for key in keys])
        rows = rows.astype(np.int64) - first
        if rows.min() < 0 or rows.max() >= len(x):
            raise RayclError(f"{where}: {keys[0]!r} and its like name row {rows.max()} of {len(x)}")
        found.append(split(name, x[rows], y[rows], rows))
    return [*found, split("classes", a, np.arange(len(a)), np.arange(len(a)))]


def _bundle(folder: Path) -> list[Path]:
    features = folder / "res101.mat"
    splits = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if splits is None or not features.is_file():
        raise RayclError(
            f"{folder}: expected are res101.mat (features) and {' or '.join(_NAMES)} (class "
            f"embeddings and splits) of the xlsa17 bundle, or an .npz instead of the directory"
        )
    return [features, splits]


def _mat(path: Path) -> Mapping[str, np.ndarray]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content: Mapping[str, Any] = loadmat(path)
    except (MatReadError, NotImplementedError, OSError, ValueError, TypeError) as error:
        raise RayclError(f"{path}: not a readable .mat file: {error}") from error
    return content


def _array(arrays: Mapping[str, np.ndarray], key: str, where: str) -> np.ndarray:
    if key not in arrays:
        known = ", ".join(name for name in arrays if not name.startswith("__"))
        raise RayclError(f"{where}: has no array {key!r}; it has: {known}")
    return arrays[key]


def _text(name: Any) -> str:
    while isinstance(name, np.ndarray):  # MATLAB's cells hold arrays of one string
        name = name.reshape(-1)[0]
    return str(name)
