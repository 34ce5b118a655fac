"""Images with a mask each, as CamVid is laid out: a class for every pixel, or an object.

    SRC/train/1.jpg, SRC/trainannot/1.png, SRC/test/2.jpg, SRC/testannot/2.png
    SRC/images/1.jpg, SRC/masks/1.png      one data set without splits

A mask has the name of its image and one grey level (or palette index) for each pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from raycl.data.importers import SPLITS, Item, Split, digest
from raycl.data.importers.imagefolder import SUFFIXES
from raycl.errors import RayclError


@dataclass(frozen=True)
class Pairs:
    """Images and their masks."""

    images: Sequence[Path]
    masks: Sequence[Path]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.images[part], self.masks[part])

    def __iter__(self) -> Iterator[Item]:
        for image, mask in zip(self.images, self.masks, strict=True):
            yield Item(image, None, str(image), mask)


def splits(source: Path) -> list[Split]:
    """Lists images and masks of every split, by name.

    Raises:
        RayclError: there are none, or an image has no mask.
    """
    if not source.is_dir():
        raise RayclError(f"{source}: a folder of images and masks is needed, this is a file")
    folders = {name: (source / name, source / f"{name}annot") for name in SPLITS}
    folders = {name: pair for name, pair in folders.items() if pair[0].is_dir()}
    if not folders:
        folders = {"": (source / "images", source / "masks")}
    found = {name: _pairs(*pair) for name, pair in folders.items()}
    return [
        Split(name, pairs, False, None, stamp=digest(map(str, pairs.images)), masked=True)
        for name, pairs in found.items()
    ]


def _pairs(images: Path, masks: Path) -> Pairs:
    for folder in (images, masks):
        if not folder.is_dir():
            raise RayclError(
                f"{folder}: there is no such folder; expected are train/ and trainannot/ (test/ "
                f"and testannot/, ...), or images/ and masks/"
            )
    paths = sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise RayclError(f"{images}: there are no images here")
    by_stem = {path.stem: path for path in masks.iterdir() if path.suffix.lower() in SUFFIXES}
    lost = next((path for path in paths if path.stem not in by_stem), None)
    if lost is not None:
        raise RayclError(f"{lost}: has no mask of its name in {masks}")
    return Pairs(paths, [by_stem[path.stem] for path in paths])
