"""Pictures of squares and triangles as data sets of COCO's and VOC's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

NAMES = {3: "square", 7: "triangle"}  # COCO's category ids have gaps


def coco(source: Path, split: str, images: list[tuple[np.ndarray, list[dict[str, Any]]]]) -> Path:
    """Writes images (H, W, 3) and their annotations, which get ids; returns the JSON file."""
    (source / split).mkdir(parents=True)
    (source / "annotations").mkdir(exist_ok=True)
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    for number, (pixels, objects) in enumerate(images, 10):
        name = f"{number}.png"
        Image.fromarray(pixels).save(source / split / name)
        size = {"height": pixels.shape[0], "width": pixels.shape[1]}
        content["images"].append({"id": number, "file_name": name, **size})
        for one in objects:
            of = {"id": len(content["annotations"]) + 1, "image_id": number, "iscrowd": 0}
            content["annotations"].append(of | one)
    content["categories"] = [{"id": id_, "name": name} for id_, name in NAMES.items()]
    path = source / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def scene(generator: np.random.Generator, side: int = 64) -> tuple[np.ndarray, list[Any]]:
    """One or two shapes on noise, in different halves of the picture."""
    picture = Image.fromarray(generator.integers(0, 60, (side, side, 3), dtype=np.uint8))
    pen, objects = ImageDraw.Draw(picture), []
    halves = [0, 1] if generator.random() < 0.5 else [int(generator.integers(2))]
    for half in halves:
        size = int(generator.integers(side // 4, side * 3 // 8))
        x = half * side // 2 + int(generator.integers(side // 2 - size))
        y = int(generator.integers(side - size))
        kind = (3, 7)[int(generator.integers(2))]
        corners = [(x, y + size), (x + size, y + size)]
        corners += [(x + size, y), (x, y)] if kind == 3 else [(x + size // 2, y)]
        pen.polygon([(a - 0.5, b - 0.5) for a, b in corners], fill=(230, 230, 120))
        outline = [[float(number) for corner in corners for number in corner]]
        box = [x, y, size, size]
        objects.append({"category_id": kind, "bbox": box, "segmentation": outline})
    return np.asarray(picture), objects


def scenes(source: Path, counts: dict[str, int], side: int = 64) -> Path:
    for seed, (split, count) in enumerate(counts.items()):
        generator = np.random.default_rng(seed)
        coco(source, split, [scene(generator, side) for _ in range(count)])
    return source


XML = """<annotation><size><width>{width}</width><height>{height}</height></size>{objects}
</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"""


def voc(source: Path, name: str, objects: list[tuple[str, int, tuple[int, ...]]]) -> Path:
    """Writes an image of 40 x 30 pixels and its annotation: name, difficult, box of each object."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (source / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(source / "JPEGImages" / f"{name}.jpg")
    rows = "".join(OBJECT.format(name=n, difficult=d, box=box) for n, d, box in objects)
    path = source / "Annotations" / f"{name}.xml"
    path.write_text(XML.format(width=40, height=30, objects=rows))
    return path
