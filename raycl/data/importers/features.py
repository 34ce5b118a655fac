"""Features of images with an embedding of every class, as zero-shot benchmarks come.

Three layouts are read: the xlsa17 bundle (a directory with res101.mat and att_splits.mat, or
sent_splits.mat, counted from 1); an .npz of `features` (N, D), `labels` (N,), `att` (C, A) and
the rows of the proposed split, counted from 0, [class_names (C,)]; and what `raycl embed` wrote,
with a table of classes. The splits `train` and `test` hold the samples, the test split those of
seen and unseen classes; `classes` holds one embedding a class, in the order of the labels.

The table of classes is a .csv with a head: the name of a class, 1 if it is unseen and else 0, and
the numbers of its embedding. Every fifth sample of a seen class goes to the test split.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from raycl.data.importers import Item, Split, npz, stamp
from raycl.errors import RayclError

ROWS = {"train": ("trainval_loc",), "test": ("test_seen_loc", "test_unseen_loc")}
EMBEDDED = "_embedding.json"
HELD_OUT = 5  # every so many samples of a seen class are for testing
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


def splits(source: Path, table: Path | None = None) -> list[Split]:
    """The splits `train`, `test` and `classes`.

    Args:
        table: of the classes, for what `raycl embed` wrote.

    Raises:
        RayclError: a file or an array is missing, or arrays contradict each other.
    """
    embedded = (source / EMBEDDED).is_file()
    if embedded != (table is not None):
        raise RayclError(
            f"{source}: what `raycl embed` wrote is imported with a table of its classes "
            f"(--classes FILE.csv), and nothing else is"
        )
    arrays: dict[str, np.ndarray] = {}
    if table is not None:
        files, first = [*sorted(source.glob("*.parquet")), table], 0
        arrays = _embedded(source, table)
    else:
        files = [source] if source.is_file() else _bundle(source)
        first = 0 if source.is_file() else 1
        for path in files:
            arrays |= npz.load(path) if path.suffix == ".npz" else _mat(path)
    where = str(source)
    x = _array(arrays, "features", where)
    a = _array(arrays, "att", where)
    if first == 1:
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


def _embedded(source: Path, table: Path) -> dict[str, np.ndarray]:
    """The arrays of the .npz layout, from features in Parquet and a table of classes."""
    about = json.loads((source / EMBEDDED).read_text(encoding="utf-8"))
    place, samples = about["data"]["place"], about["data"]["samples"]
    names, unseen, embeddings = _classes(table)
    line = {name: row for row, name in enumerate(names)}
    known: list[str] = about["classes"] or [str(i) for i in range(len(names))]
    missing = next((name for name in known if name not in line), None)
    if missing is not None:
        raise RayclError(f"{table}: has no line of the class {missing!r} of {place}")
    imaged = set(known)
    order = [line[name] for name in [*known, *(name for name in names if name not in imaged)]]
    x, y = _rows(source)
    if len(x) != samples:
        raise RayclError(
            f"{source}: holds {len(x)} of {samples} samples; run `raycl embed` again, which goes on"
        )
    if y.min() < 0 or y.max() >= len(known):
        raise RayclError(
            f"{source}: labels run from {y.min()} to {y.max()}, and {len(known)} classes are known"
        )
    new = unseen[order][y]
    if new.all() or not new.any():
        raise RayclError(
            f"{table}: {'all' if new.all() else 'none'} of the classes with images are unseen; "
            f"some must be and some not"
        )
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        held_out[np.flatnonzero(y == label)[HELD_OUT - 1 :: HELD_OUT]] = True
    return {
        "features": x,
        "labels": y,
        "att": embeddings[order],
        "class_names": np.array(names)[order],
        "trainval_loc": np.flatnonzero(~new & ~held_out),
        "test_seen_loc": np.flatnonzero(~new & held_out),
        "test_unseen_loc": np.flatnonzero(new),
    }


def _rows(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and labels (N,) of all parts that are there."""
    x, y = [], []
    for path in sorted(source.glob("*.parquet")):
        try:
            rows = parquet.read_table(path).combine_chunks()
        except (pa.ArrowInvalid, OSError) as error:
            raise RayclError(
                f"{path}: is not whole; run `raycl embed` again, which goes on: {error}"
            ) from error
        if "label" not in rows.column_names:
            raise RayclError(f"{path}: its samples have no label, so no class is known")
        x.append(rows["features"].chunk(0).flatten().to_numpy().reshape(len(rows), -1))
        y.append(rows["label"].to_numpy())
    if not x:
        raise RayclError(f"{source}: holds no features yet; run `raycl embed` again, which goes on")
    return np.concatenate(x), np.concatenate(y)


def _classes(table: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, which are unseen (C,), and embeddings (C, A) of a table of classes."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RayclError(f"{table}: not a readable table: {error}") from error
    names: dict[str, int] = {}
    unseen: list[bool] = []
    embeddings: list[list[float]] = []
    for number, line in lines[1:]:
        where = f"{table}: line {number}"
        if not line:
            continue
        try:
            name, new, *values = line
            unseen.append({"0": False, "1": True}[new.strip()])
            embeddings.append([float(value) for value in values])
        except (ValueError, KeyError) as error:
            raise RayclError(
                f"{where}: the name of a class, 1 if it is unseen or else 0, and numbers are needed"
            ) from error
        if not values or not np.isfinite(embeddings[-1]).all():
            raise RayclError(f"{where}: finite numbers are needed, the embedding of the class")
        if len(values) != len(embeddings[0]):
            raise RayclError(
                f"{where}: has {len(values)} numbers, and the lines before it {len(embeddings[0])}"
            )
        if name in names:
            raise RayclError(f"{where}: the class {name!r} stands in line {names[name]} already")
        names[name] = number
    if not names:
        raise RayclError(f"{table}: a head, and a line for each class are needed")
    return list(names), np.array(unseen), np.array(embeddings, np.float32)


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
