"""Importers: one file per kind of foreign data set. Each lists splits; `raycl.data.encode` writes.

An importer checks everything that can be checked cheaply before it returns, and leaves reading and
decoding of the single samples to the tasks that write the shards. What a task gets is a stretch of
the split's items, so items hold references (a path, a position in a tar file, rows of a Parquet
file) wherever the data do not lie in memory anyway.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np

from raycl.errors import RayclError

Mode = Literal["raw", "jpg", "smart", "proportion"]

SPLITS = ("train", "val", "valid", "validation", "test")
PAGE = 8 << 20
_SPLIT_IN_NAME = re.compile(rf"(?:^|[-_.])({'|'.join(SPLITS)})(?=[-_.])")


class Item(NamedTuple):
    """One sample to import.

    Attributes:
        content: a file, the bytes of a complete file (as bytes or as (size,) uint8), the pixels
            (H, W, 3) uint8 of an image, an array (D,) float32 of features, or a stored graph.
        label: index of the class, where the split is labelled.
        origin: where the sample comes from, for error messages.
        mask: an image file with one grey level for each of its pixels, or its content, where the
            split has masks.
        objects: rows (n, 6) of what the image shows, where the split has objects: x0, y0, x1, y1 in
            pixels, class, and 1 where neither finding nor missing it counts, else 0.
        size: width and height of the image that these pixels are of.
    """

    content: Path | bytes | np.ndarray
    label: int | None
    origin: str
    mask: Path | bytes | None = None
    objects: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)


class Items(Protocol):
    """Samples in the order in which they are stored; a list of items is one, and so is `Files`.

    A slice is small when pickled, and reading starts only when it is iterated over.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Items: ...

    def __iter__(self) -> Iterator[Item]: ...


@dataclass(frozen=True)
class Split:
    """One data set to write.

    Attributes:
        name: folder below the output directory; empty: the output directory itself.
        labelled: whether every item has a label.
        mask: name of the field of the masks, where every item has one.
        objects: rows of the field "objects", as many as an item has or more; 0: there is none.
        classes: names of the labels, where they are known.
        mode: how images are stored unless the user says otherwise.
        field: name of the field that takes the contents; files of a "video" keep their bytes.
        page: bytes of a page, and the most that a sample can take; a power of two.
        stamp: changes when the source does.
    """

    name: str
    items: Items
    labelled: bool
    classes: list[str] | None
    mode: Mode = "jpg"
    field: Literal["image", "video", "features", "graph"] = "image"
    page: int = PAGE
    stamp: str = ""
    mask: str = ""
    objects: int = 0


@dataclass(frozen=True)
class Files:
    """Items that are files of their own.

    Attributes:
        labels: one for each path; empty where there are none.
    """

    paths: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.paths[part], self.labels[part])

    def __iter__(self) -> Iterator[Item]:
        labels: Sequence[int | None] = self.labels or [None] * len(self)
        for path, label in zip(self.paths, labels, strict=True):
            yield Item(Path(path), label, path)

    def stamp(self) -> str:
        """Changes with names and labels; contents may be mended in the middle of an import."""
        lines = (f"{item.label} {item.origin}" for item in self)
        return digest(lines)


def digest(lines: Iterable[str]) -> str:
    """A short hash of some lines."""
    state = hashlib.blake2b(digest_size=16)
    for line in lines:
        state.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return state.hexdigest()


def stamp(paths: Iterable[Path]) -> str:
    """Changes when one of these files does, by name, size or time."""
    stats = [(path, path.stat()) for path in paths]
    return digest(f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)


def by_split(source: str | Path, suffix: str) -> dict[str, list[Path]]:
    """The files of every split: of one data set without a name, unless the names tell splits apart.

    Splits are sub-folders called train, test and so on, or stand in the names of all the files of
    a folder (train-00000-of-00005.parquet, imagenet1k-validation-07.tar). A single file or the
    files of a glob are one data set.

    Args:
        suffix: which files to look for, dot included.

    Raises:
        RayclError: there are no such files, or splits in some of the names only.
    """
    path = Path(source)
    if path.is_file():
        return {"": [path]}
    if not path.is_dir():
        found = sorted(Path(name) for name in glob.glob(str(source), recursive=True))
        if not found:
            raise RayclError(
                f"{source}: there is no such file or directory, and no match of a glob"
            )
        return {"": found}
    folders = [path / name for name in SPLITS if any((path / name).glob(f"*{suffix}"))]
    files = sorted(path.glob(f"*{suffix}"))
    if folders and files:
        raise RayclError(
            f"{path}: holds both {files[0].name} and the split {folders[0].name}/; import one of "
            f"them alone"
        )
    if folders:
        return {folder.name: sorted(folder.glob(f"*{suffix}")) for folder in folders}
    if not files:
        raise RayclError(f"{path}: there is no {suffix} file in this directory")
    names = [_SPLIT_IN_NAME.search(file.name) for file in files]
    if not any(names):
        return {"": files}
    splits: dict[str, list[Path]] = {}
    for file, found_name in zip(files, names, strict=True):
        if found_name is None:
            raise RayclError(
                f"{file}: its name tells no split ({', '.join(SPLITS)}), but other names in this "
                f"directory do; move it, or import a glob of the files that belong together"
            )
        splits.setdefault(found_name[1], []).append(file)
    return splits


def class_names(
    labels: dict[str, list[str]], where: Callable[[str, int], str]
) -> tuple[dict[str, list[int]], list[str] | None]:
    """Labels of all splits as indices, and the names of the classes if they were names.

    Texts that are all whole numbers are taken as indices; others are names, which are numbered in
    the order of the alphabet.

    Args:
        labels: texts of all samples by split.
        where: names a sample, given its split and position, for messages.

    Raises:
        RayclError: numbers and names are mixed, or a number is negative.
    """
    names = sorted({text for part in labels.values() for text in part})
    numbers = [name for name in names if name.lstrip("-").isdecimal()]
    if not numbers:
        index = {name: i for i, name in enumerate(names)}
        return {split: [index[text] for text in part] for split, part in labels.items()}, names
    wrong = next((n for n in names if not n.isdecimal()), None)
    if wrong is not None:
        split, position = next(
            (s, part.index(wrong)) for s, part in labels.items() if wrong in part
        )
        raise RayclError(
            f"{where(split, position)}: its label is {wrong!r}, and others are numbers such as "
            f"{numbers[0]!r}; labels are either all names, or all indices from 0 on"
        )
    return {split: [int(text) for text in part] for split, part in labels.items()}, None
