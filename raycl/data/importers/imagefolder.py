"""Folders of image files: the user's own images, or ImageNet as it is usually laid out.

    SRC/cat/1.jpg, SRC/dog/2.png          one labelled data set
    SRC/1.jpg, SRC/2.png                  one data set without labels
    SRC/train/..., SRC/test/...           one data set per split, each like one of the above

The labels of all splits come from one sorted list of class names. Files are stored in an order that
is shuffled once, always alike, so that a prefix of a data set holds all classes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from raycl.data.importers import SPLITS, Files, Split
from raycl.errors import RayclError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def splits(source: Path) -> list[Split]:
    """Lists the images of every split.

    Raises:
        RayclError: if there are no images, or folders whose meaning is unclear.
    """
    parts, classes = files_by_split(source, SUFFIXES, "images")
    return [
        Split(name, part, bool(part.labels), classes if part.labels else None, stamp=part.stamp())
        for name, part in parts.items()
    ]


def files_by_split(
    source: Path, suffixes: tuple[str, ...], what: str
) -> tuple[dict[str, Files], list[str]]:
    """The files of every split in the order in which they are stored, and the names of all classes.

    Args:
        suffixes: of the files, in small letters.
        what: the files are called in messages.

    Raises:
        RayclError: if there are none, or folders whose meaning is unclear.
    """
    if not source.is_dir():
        raise RayclError(f"{source}: a folder of {what} is needed, this is a file")
    folders = _folders(source)
    named = [folder for folder in folders if folder.name in SPLITS]
    if named and len(named) < len(folders) and any(_folders(folder) for folder in named):
        others = ", ".join(folder.name for folder in folders if folder not in named)
        raise RayclError(
            f"{source}: holds the split {named[0].name}/ beside {others}; import one split alone "
            f"({named[0]}), or leave only {', '.join(SPLITS)} in there"
        )
    parts = {f.name: f for f in named} if named and len(named) == len(folders) else {"": source}
    found = {name: _files(folder, suffixes, what) for name, folder in parts.items()}
    classes = sorted({label for part in found.values() for _, label in part if label is not None})
    index = {label: i for i, label in enumerate(classes)}
    shuffled = {}
    for name, part in found.items():
        order = np.random.default_rng(0).permutation(len(part))
        paths, labels = zip(*(part[i] for i in order), strict=True)
        shuffled[name] = Files(paths, [index[label] for label in labels if label is not None])
    return shuffled, classes


def _files(folder: Path, suffixes: tuple[str, ...], what: str) -> list[tuple[str, str | None]]:
    """Files with the names of their class folders, sorted by path."""
    loose = sorted(
        entry.name
        for entry in os.scandir(folder)
        if _is_wanted(entry.name, suffixes) and entry.is_file()
    )
    classes = _folders(folder)
    if loose and classes:
        raise RayclError(
            f"{folder}: holds both {what} ({loose[0]}) and folders ({classes[0].name}); put all "
            f"{what} into class folders, or all of them side by side for a set without labels"
        )
    if not loose and not classes:
        raise RayclError(
            f"{folder}: there are no {what} here; expected are files ending in "
            f"{', '.join(suffixes)}, or one folder of them per class"
        )
    found: list[tuple[str, str | None]] = [(str(folder / name), None) for name in loose]
    for folder_of_class in classes:
        inside = _walk(folder_of_class, suffixes)
        if not inside:
            raise RayclError(
                f"{folder_of_class}: this class folder holds no {what}; remove it, or complete it"
            )
        found += [(path, folder_of_class.name) for path in inside]
    return found


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    return sorted(
        os.path.join(top, name)
        for top, _, names in os.walk(folder, followlinks=True)
        for name in names
        if _is_wanted(name, suffixes)
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_wanted(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")
