"""Images with objects, laid out as COCO or as VOC: boxes with classes and, if there are any, masks.

    SRC/annotations/instances_train2017.json, SRC/train2017/1.jpg
    SRC/JPEGImages/1.jpg, SRC/Annotations/1.xml
    SRC/ImageSets/Main/train.txt      (val, trainval, test) names; without these, one data set
    SRC/SegmentationObject/1.png      k where the k-th object of 1.xml is, else 0 or 255

A split has masks where all of its objects have. Crowds, difficult objects and boxes without an area
(COCO has a few) are kept and marked: neither finding nor missing them counts.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from raycl.data.importers import Item, Split, digest, stamp
from raycl.errors import RayclError

LISTS = ("train", "val", "trainval", "test")
MOST = 254  # objects of an image with masks: 0 is none of them, and VOC's 255 their border
SLACK = 1.0  # pixels by which a box may leave its image: annotations are rounded


class Annotated(NamedTuple):
    """An image file, its width and height, its objects as `Item` has them, and their masks.

    Masks are a file, or of each object what COCO calls its segmentation; None: there are none.
    """

    path: Path
    size: tuple[int, int]
    objects: list[tuple[float, ...]]
    masks: Path | list[Any] | None


@dataclass(frozen=True)
class Images:
    """Items with objects; segmentations are drawn when an item is asked for."""

    images: Sequence[Annotated]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Self:
        return type(self)(self.images[part])

    def __iter__(self) -> Iterator[Item]:
        for image in self.images:
            mask = _drawn(image, image.masks) if isinstance(image.masks, list) else image.masks
            rows = np.array(image.objects, np.float32).reshape(-1, 6)
            yield Item(image.path, None, str(image.path), mask, rows, image.size)


def splits(source: Path) -> list[Split]:
    """Lists images and objects of every split, by name; classes are numbered from 0.

    Raises:
        RayclError: naming the file and what is wrong in it.
    """
    files = sorted((source / "annotations").glob("instances_*.json"))
    if files:
        found, classes = _coco(source, files)
        stamps = [stamp([path]) for path in files]
    elif (source / "Annotations").is_dir():
        found, classes = _voc(source)
        stamps = [digest(map(str, images)) for images in found.values()]
    else:
        raise RayclError(
            f"{source}: expected are annotations/instances_NAME.json and NAME/ as COCO has them, "
            f"or Annotations/ and JPEGImages/ as VOC has"
        )
    for name, part in found.items():
        if not any(image.objects for image in part):
            where = f"its split {name!r}" if name else "the data set"
            raise RayclError(f"{source}: {where} has {len(part)} images, and no objects")
    images = [image for part in found.values() for image in part]
    most = max(len(image.objects) for image in images)
    # So that data sets of about as many objects have one shape, and can be read together.
    rows = max(64, 1 << (most - 1).bit_length())
    crowded = next((i for i in images if i.masks is not None and len(i.objects) > MOST), None)
    if crowded:
        raise RayclError(
            f"{crowded.path}: has {len(crowded.objects)} objects with masks, and a mask tells "
            f"{MOST} apart; leave the image or the masks out"
        )
    return [
        Split(name, Images(part), False, classes, stamp=key, objects=rows,
              mask="" if any(image.masks is None for image in part) else "instances")
        for (name, part), key in zip(found.items(), stamps, strict=True)
    ]  # fmt: skip


def _coco(source: Path, files: list[Path]) -> tuple[dict[str, list[Annotated]], list[str]]:
    found = {}
    classes: dict[Path, list[str]] = {}
    for path in files:
        name = path.stem.removeprefix("instances_")
        found[name], classes[path] = _instances(path, source / name)
        if classes[path] != classes[files[0]]:
            raise RayclError(f"{path}: its categories are not those of {files[0].name}")
    return found, classes[files[0]]


def _instances(path: Path, folder: Path) -> tuple[list[Annotated], list[str]]:
    """The images of one of COCO's files, and the names of the classes."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise RayclError(f"{path}: not readable JSON: {error}") from error
    names = {
        _of(entry, "id", f"{path}: a category"): str(_of(entry, "name", f"{path}: a category"))
        for entry in _of(content, "categories", str(path))
    }
    index = {number: i for i, number in enumerate(sorted(names))}
    found: dict[Any, Annotated] = {}
    outlines: dict[Any, list[Any]] = {}
    for entry in _of(content, "images", str(path)):
        where = f"{path}: image {_of(entry, 'id', f'{path}: an image')}"
        width, height = (_of(entry, side, where) for side in ("width", "height"))
        size = (_side(width, "width", where), _side(height, "height", where))
        file = folder / str(_of(entry, "file_name", where))
        found[entry["id"]] = Annotated(_existing(file, where), size, [], None)
        outlines[entry["id"]] = []
    for entry in _of(content, "annotations", str(path)):
        where = f"{path}: annotation {_of(entry, 'id', f'{path}: an annotation')}"
        for key, known in (("image_id", found), ("category_id", index)):
            if _of(entry, key, where) not in known:
                raise RayclError(f"{where}: there is no such {key} as {entry[key]!r}")
        box = _of(entry, "bbox", where)
        if not isinstance(box, list) or len(box) != 4:
            raise RayclError(f"{where}: bbox is {box!r}, needed are x, y, width and height")
        x, y, width, height = (_number(number, "bbox", where) for number in box)
        image, ends = found[entry["image_id"]], (x, y, x + width, y + height)
        kind, crowd = index[entry["category_id"]], bool(entry.get("iscrowd"))
        image.objects.append(_row(ends, image.size, kind, crowd, where))
        outlines[entry["image_id"]].append(entry.get("segmentation"))
    if all(outline for part in outlines.values() for outline in part):
        _coco_tools()  # where they are missing, an import ends before it begins
        found = {number: image._replace(masks=outlines[number]) for number, image in found.items()}
    return list(found.values()), [names[number] for number in index]


def _voc(source: Path) -> tuple[dict[str, list[Annotated]], list[str]]:
    lists = {name: source / "ImageSets" / "Main" / f"{name}.txt" for name in LISTS}
    named = {
        split: [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        for split, path in lists.items()
        if path.is_file()
    } or {"": sorted(path.stem for path in (source / "Annotations").glob("*.xml"))}
    every = sorted({name for names in named.values() for name in names})
    read = {name: _parsed(source, name) for name in every}
    classes = sorted({kind for _, kinds in read.values() for kind in kinds})
    found: dict[str, list[Annotated]] = {}
    for split, names in named.items():
        masks = [source / "SegmentationObject" / f"{name}.png" for name in names]
        masked = all(mask.is_file() for mask in masks)
        found[split] = []
        for (image, kinds), mask in zip((read[name] for name in names), masks, strict=True):
            rows = [
                (*row[:4], classes.index(kind), row[5])
                for row, kind in zip(image.objects, kinds, strict=True)
            ]
            found[split].append(image._replace(objects=rows, masks=mask if masked else None))
    return found, classes


def _parsed(source: Path, name: str) -> tuple[Annotated, list[str]]:
    """An image of VOC's, all of whose objects are of class 0, and the names of their classes."""
    path = source / "Annotations" / f"{name}.xml"
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise RayclError(f"{path}: not readable XML: {error}") from error

    def number(node: ElementTree.Element, field: str) -> float:
        return _number(node.findtext(field), field, str(path))

    width, height = root.findtext("size/width"), root.findtext("size/height")
    size = (_side(width, "size/width", str(path)), _side(height, "size/height", str(path)))
    rows, kinds = [], []
    for node in root.findall("object"):
        x0, y0, x1, y1 = (number(node, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
        ignored = node.findtext("difficult") == "1"
        # Their pixels are counted from 1, and the last one belongs to the box.
        rows.append(_row((x0 - 1, y0 - 1, x1, y1), size, 0, ignored, str(path)))
        kinds.append(node.findtext("name") or "")
        if not kinds[-1]:
            raise RayclError(f"{path}: one of its objects has no name")
    image = _existing(source / "JPEGImages" / f"{name}.jpg", str(path))
    return Annotated(image, size, rows, None), kinds


def _row(
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    kind: int,
    ignored: bool,
    where: str,
) -> tuple[float, ...]:
    """An object as `Item` has it, within its image of a width and height."""
    (x0, y0, x1, y1), (width, height) = box, size
    if x1 < x0 or y1 < y0 or max(-x0, -y0, x1 - width, y1 - height) > SLACK:
        raise RayclError(
            f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) ends before it begins, or "
            f"lies outside its image of {width} x {height} pixels"
        )
    empty = x1 == x0 or y1 == y0
    return (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height), kind, ignored or empty)


def _of(entry: Any, key: str, where: str) -> Any:
    try:
        return entry[key]
    except (KeyError, TypeError):
        raise RayclError(f"{where}: has no {key!r}, as the files of COCO have") from None


def _number(value: Any, key: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RayclError(f"{where}: {key} is {value!r}, and a number is needed")
    return number


def _side(value: Any, key: str, where: str) -> int:
    side = int(_number(value, key, where))
    if side < 1:
        raise RayclError(f"{where}: {key} is {side}, and an image has one pixel at least")
    return side


def _existing(path: Path, where: str) -> Path:
    if not path.is_file():
        raise RayclError(f"{where}: there is no file {path} as its image")
    return path


def _coco_tools() -> Any:
    from raycl.evaluate.detection import coco_tools  # it brings torch

    return coco_tools().mask


def _drawn(image: Annotated, outlines: list[Any]) -> bytes:
    """The PNG of an image's segmentations: k where its k-th object is, small ones before large."""
    tools = _coco_tools()
    width, height = image.size
    masks = []
    for outline in outlines:
        try:
            packed = isinstance(outline, dict) and isinstance(outline["counts"], str)
            parts = outline if packed else tools.frPyObjects(outline, height, width)
            mask = tools.decode(tools.merge(parts) if isinstance(parts, list) else parts)
            masks.append(mask.reshape(height, width) > 0)
        except Exception as error:  # whatever it stumbles over
            raise RayclError(f"{image.path}: a segmentation cannot be drawn: {error}") from error
    pixels = np.zeros((height, width), np.uint8)
    for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        pixels[masks[k]] = k + 1
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
