"""Images with a mask each, laid out as CamVid or as DAVIS: a class for every pixel, or an object.

    SRC/train/1.jpg, SRC/trainannot/1.png, SRC/test/2.jpg, SRC/testannot/2.png
    SRC/images/1.jpg, SRC/masks/1.png      one data set without splits
    SRC/JPEGImages/480p/dog/1.jpg, SRC/Annotations/480p/dog/1.png
    SRC/train.txt, SRC/val.txt             names of sequences; without these, one data set

A mask has the name of its image and one grey level (or palette index) for each pixel. Frames of a
sequence stay together, in order, and their label is the sequence: the classes of all splits are the
names of all sequences, in the order of the alphabet.
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
    """Images, their masks, and their labels if they have any."""

    images: Sequence[Path]
    masks: Sequence[Path]
    labels: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.images[part], self.masks[part], self.labels[part])

    def __iter__(self) -> Iterator[Item]:
        labels: Sequence[int | None] = self.labels or [None] * len(self)
        for image, mask, label in zip(self.images, self.masks, labels, strict=True):
            yield Item(image, label, str(image), mask)


def splits(source: Path) -> list[Split]:
    """Lists images and masks of every split, by name.

    Raises:
        RayclError: there are none, or an image has no mask.
    """
    if not source.is_dir():
        raise RayclError(f"{source}: a folder of images and masks is needed, this is a file")
    if (source / "JPEGImages").is_dir():
        return _sequences(source)
    folders = {name: (source / name, source / f"{name}annot") for name in SPLITS}
    folders = {name: pair for name, pair in folders.items() if pair[0].is_dir()}
    if not folders:
        folders = {"": (source / "images", source / "masks")}
    found = {name: _pairs(*pair) for name, pair in folders.items()}
    return [
        Split(name, pairs, False, None, stamp=digest(map(str, pairs.images)), mask="mask")
        for name, pairs in found.items()
    ]


def _sequences(source: Path) -> list[Split]:
    """The splits of a data set of videos that is laid out as DAVIS is."""
    sizes = sorted(path for path in (source / "JPEGImages").iterdir() if path.is_dir())
    if len(sizes) != 1:
        found = ", ".join(path.name for path in sizes) or "none"
        raise RayclError(
            f"{source / 'JPEGImages'}: one folder is needed, of the frames of one resolution as "
            f"480p, and there are: {found}; leave one of them"
        )
    images, masks = sizes[0], source / "Annotations" / sizes[0].name
    classes = sorted(path.name for path in images.iterdir() if path.is_dir())
    lists = {name: source / f"{name}.txt" for name in SPLITS}
    named = {name: path.read_text().split() for name, path in lists.items() if path.is_file()}
    splits = []
    for split, names in (named or {"": classes}).items():
        unknown = next((name for name in names if name not in classes), None)
        if unknown is not None:
            raise RayclError(f"{lists[split]}: names the sequence {unknown!r}, not in {images}")
        parts = [_pairs(images / name, masks / name) for name in sorted(names)]
        pairs = Pairs(
            [path for part in parts for path in part.images],
            [path for part in parts for path in part.masks],
            [classes.index(path.parent.name) for part in parts for path in part.images],
        )
        stamp = digest(f"{item.label} {item.origin}" for item in pairs)
        splits.append(Split(split, pairs, True, classes, stamp=stamp, mask="mask"))
    return splits


def _pairs(images: Path, masks: Path) -> Pairs:
    for folder in (images, masks):
        if not folder.is_dir():
            raise RayclError(
                f"{folder}: there is no such folder; expected are train/ and trainannot/ (test/ "
                f"and testannot/, ...), images/ and masks/, or for sequences JPEGImages/480p/NAME/ "
                f"and Annotations/480p/NAME/"
            )
    paths = sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise RayclError(f"{images}: there are no images here")
    by_stem = {path.stem: path for path in masks.iterdir() if path.suffix.lower() in SUFFIXES}
    lost = next((path for path in paths if path.stem not in by_stem), None)
    if lost is not None:
        raise RayclError(f"{lost}: has no mask of its name in {masks}")
    return Pairs(paths, [by_stem[path.stem] for path in paths])
