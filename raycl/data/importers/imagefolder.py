"""Folders of image files: the user's own images, or ImageNet as it is usually laid out.

    SRC/cat/1.jpg, SRC/dog/2.png          one labelled data set
    SRC/1.jpg, SRC/2.png                  one data set without labels
    SRC/train/..., SRC/test/...           one data set per split, each like one of the above

The labels of all splits come from one sorted list of class names. Files are stored in an order that
is shuffled once, always alike, so that a prefix of a data set holds all classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raycl.data.importers import Item, Split
from raycl.errors import RayclError

SPLITS = ("train", "val", "valid", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def splits(source: Path) -> list[Split]:
    """Lists the files of every split.

    Raises:
        RayclError: if there are no images, or folders whose meaning is unclear.
    """
    if not source.is_dir():
        raise RayclError(f"{source}: an image folder is needed, this is a file")
    folders = _folders(source)
    named = [folder for folder in folders if folder.name in SPLITS]
    if named and len(named) < len(folders) and any(_folders(folder) for folder in named):
        others = ", ".join(folder.name for folder in folders if folder not in named)
        raise RayclError(
            f"{source}: holds the split {named[0].name}/ beside {others}; import one split alone "
            f"({named[0]}), or leave only {', '.join(SPLITS)} in there"
        )
    parts = {f.name: f for f in named} if named and len(named) == len(folders) else {"": source}
    files = {name: _files(folder) for name, folder in parts.items()}
    classes = sorted({label for part in files.values() for _, label in part if label is not None})
    return [_split(name, part, classes) for name, part in files.items()]


def _split(name: str, files: list[tuple[Path, str | None]], classes: list[str]) -> Split:
    order = np.random.default_rng(0).permutation(len(files))
    index = {label: i for i, label in enumerate(classes)}
    labelled = files[0][1] is not None

    def items() -> Iterator[Item]:
        for i in order:
            path, label = files[i]
            yield Item(path, None if label is None else index[label], str(path))

    return Split(name, items(), len(files), labelled, classes if labelled else None, "jpg")


def _files(folder: Path) -> list[tuple[Path, str | None]]:
    """Image files with the names of their class folders, sorted by path."""
    loose = sorted(path for path in folder.iterdir() if path.is_file() and _is_image(path))
    classes = _folders(folder)
    if loose and classes:
        raise RayclError(
            f"{folder}: holds both images ({loose[0].name}) and folders ({classes[0].name}); put "
            f"every image into a class folder, or all of them side by side for a set without labels"
        )
    if not loose and not classes:
        raise RayclError(
            f"{folder}: there are no images here; expected are files ending in "
            f"{', '.join(SUFFIXES)}, or one folder of them per class"
        )
    found: list[tuple[Path, str | None]] = [(path, None) for path in loose]
    for folder_of_class in classes:
        inside = _walk(folder_of_class)
        if not inside:
            raise RayclError(
                f"{folder_of_class}: this class folder holds no images; remove it, or complete it"
            )
        found += [(path, folder_of_class.name) for path in inside]
    return found


def _walk(folder: Path) -> list[Path]:
    found = [Path(top, n) for top, _, names in os.walk(folder, followlinks=True) for n in names]
    return sorted(path for path in found if _is_image(path))


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
