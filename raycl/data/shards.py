"""A data set of one or many `.beton` files, with one index over all of them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raycl.beton import Reader
from raycl.beton.fields import Field
from raycl.beton.reader import open_head
from raycl.errors import RayclError

SIDECAR = "dataset.json"


class Shards:
    """The samples of several files, numbered through.

    Files of a directory or a glob are sorted by name, and a list keeps its order. Opening reads the
    head of every file, which finds truncated ones; the rest is read when a sample is asked for.

    Args:
        spec: a `.beton` file, a directory of them, a glob, or a list of these.

    Attributes:
        paths: the files, in the order of the samples.
        fields: the fields by name, the same in all files.
        classes: names of the labels, from the `dataset.json` beside the files, if there is one.

    Raises:
        RayclError: there are no files or no samples, a file is damaged, files differ in their
            fields, or one that `dataset.json` lists is missing.
    """

    def __init__(self, spec: str | Path | Sequence[str | Path]) -> None:
        parts = [spec] if isinstance(spec, str | Path) else list(spec)
        if not parts:
            raise RayclError("an empty list of data sets; name a .beton file or a directory")
        self.paths = list(dict.fromkeys(path for part in parts for path in _find(part)))
        self.fields: dict[str, Field] = {}
        sizes = []
        for path in self.paths:
            head, fields = open_head(path)
            self.fields = self.fields or fields
            if fields != self.fields:
                raise RayclError(
                    f"{path}: its fields ({_listed(fields)}) are not those of {self.paths[0]} "
                    f"({_listed(self.fields)}); shards of one data set have the same fields"
                )
            sizes.append(head.samples)
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if not len(self):
            raise RayclError(f"{', '.join(map(str, parts))}: the data set has no samples")
        self.classes = _classes(self.paths)
        self._readers: dict[int, Reader] = {}
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[type[Shards], tuple[list[Path]]]:
        return Shards, (self.paths,)

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of every sample, and its row there; both int64 in the shape of `ids`."""
        ids = np.asarray(ids, np.int64)
        wrong = (ids < 0) | (ids >= len(self))
        if wrong.any():
            raise RayclError(
                f"{self.paths[0].parent}: there is no sample {ids[wrong].flat[0]}; the data set "
                f"has {len(self)}, counted from 0"
            )
        shard = np.searchsorted(self._starts, ids, side="right") - 1
        return shard, ids - self._starts[shard]

    def reader(self, shard: int) -> Reader:
        """The reader of a file, opened when it is first asked for."""
        if shard not in self._readers:
            self._readers[shard] = Reader(self.paths[shard])
        return self._readers[shard]

    def column(self, field: str) -> np.ndarray:
        """All values of a float or int field, (N,); read once, so not to be written to."""
        if field not in self._columns:
            self._columns[field] = np.concatenate([r.column(field) for r in self._all()])
        return self._columns[field]

    def describe(self, index: int) -> str:
        """Where a sample lies, for messages: file and sample."""
        shard, row = self.locate(np.array(index))
        return f"{self.paths[int(shard)]}, sample {int(row)}"

    def read(self, index: int) -> dict[str, Any]:
        """One sample, decoded as by `Reader.read`."""
        shard, row = self.locate(np.array(index))
        return self.reader(int(shard)).read(int(row))

    def verify(self) -> Iterator[str]:
        """Decodes everything and yields a line for each value or file that is damaged."""
        for shard in range(len(self.paths)):
            try:
                yield from self.reader(shard).verify()
            except RayclError as error:
                yield str(error)

    def _all(self) -> Iterator[Reader]:
        return (self.reader(shard) for shard in range(len(self.paths)))


def _find(part: str | Path) -> list[Path]:
    """The files that a path or a glob names, absolute: workers have other working directories."""
    path = Path(part).absolute()
    if path.is_dir():
        found = sorted(path.glob("*.beton"))
        missing = [name for name in _sidecar(path).get("shards", []) if not (path / name).exists()]
        if missing:
            raise RayclError(
                f"{path}: {', '.join(missing)} missing, which {SIDECAR} lists; import the data set "
                f"again, or copy all of it"
            )
        if not found:
            folders = [folder.name for folder in path.iterdir() if any(folder.glob("*.beton"))]
            hint = f"; did you mean {path / sorted(folders)[0]}?" if folders else ""
            raise RayclError(f"{path}: there is no .beton file in this directory{hint}")
        return found
    if path.exists():
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path)))]
    matches = [match for match in matches if match.is_dir() or match.suffix == ".beton"]
    if not matches:
        raise RayclError(f"{path}: there is no such .beton file, directory or glob")
    return [file for match in matches for file in _find(match)]


def _sidecar(directory: Path) -> dict[str, Any]:
    path = directory / SIDECAR
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RayclError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise RayclError(f"{path}: expected an object with classes and shards")
    return content


def _classes(paths: list[Path]) -> list[str] | None:
    classes: list[str] | None = None
    for directory in dict.fromkeys(path.parent for path in paths):
        here = _sidecar(directory).get("classes")
        if here is None:
            continue
        if classes is not None and here != classes:
            raise RayclError(
                f"{directory / SIDECAR}: its classes are not those of the directories before it; "
                f"their labels cannot be mixed"
            )
        classes = [str(name) for name in here]
    return classes


def _listed(fields: dict[str, Field]) -> str:
    return ", ".join(f"{name}: {type(field).__name__}" for name, field in fields.items())
