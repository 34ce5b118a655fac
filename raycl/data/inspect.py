"""Looking at a data set: what is in it, and what the views of a recipe make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raycl.beton import IntField, RGBImageField
from raycl.data.shards import Shards
from raycl.errors import RayclError

if TYPE_CHECKING:
    from raycl.views.image import ImageView

MODES = ("jpg", "raw")
RENDERINGS = 2  # of each view of a sample in a preview


def info(shards: Shards) -> dict[str, Any]:
    """What a data set holds, as plain data.

    Returns:
        `samples`; `bytes`; `shards`: name, samples and bytes of each; `fields`: type by name;
        `images`: by field, how many images are stored in each mode, and the smallest, median and
        largest height and width in pixels; `labels`: samples per class, where there are labels.
    """
    files = [
        {"name": path.name, "samples": len(shards.reader(i)), "bytes": path.stat().st_size}
        for i, path in enumerate(shards.paths)
    ]
    found: dict[str, Any] = {
        "samples": len(shards),
        "bytes": sum(file["bytes"] for file in files),
        "shards": files,
        "fields": {n: type(f).__name__.removesuffix("Field") for n, f in shards.fields.items()},
        "images": {
            name: _images(shards, name)
            for name, field in shards.fields.items()
            if isinstance(field, RGBImageField)
        },
    }
    if isinstance(shards.fields.get("label"), IntField):
        labels, counts = np.unique(shards.column("label"), return_counts=True)
        found["labels"] = {}
        for label, n in zip(labels.tolist(), counts.tolist(), strict=True):
            name = _name(label, shards.classes)
            # Class names need not be unique: ImageNet has two cranes.
            found["labels"][f"{name} ({label})" if name in found["labels"] else name] = n
    return found


def _images(shards: Shards, field: str) -> dict[str, Any]:
    parts = [shards.reader(i).image_info(field) for i in range(len(shards.paths))]
    mode, height, width = (np.concatenate(part) for part in zip(*parts, strict=True))
    found: dict[str, Any] = {
        name: int(n) for name, n in zip(MODES, np.bincount(mode, minlength=2), strict=True) if n
    }
    for name, sides in (("height", height), ("width", width)):
        found[name] = [int(value) for value in (sides.min(), np.median(sides), sides.max())]
    return found


def preview(
    shards: Shards,
    views: Mapping[str, ImageView],
    out: str | Path,
    *,
    seed: int = 0,
    count: int = 8,
) -> Path:
    """Draws a contact sheet: a row per sample with the original and two renderings of each view.

    The renderings are those that a run with this seed draws in its first two epochs, as they are
    before normalisation.

    Args:
        views: by name, in the order in which a method lists them; may be empty.
        out: PNG file to write.
        count: samples, chosen by the seed.

    Raises:
        RayclError: the data set lacks a field that a view reads, a sample is damaged, or `out`
            cannot be written.
    """
    from raycl.views.sheet import contact_sheet

    if count < 1:
        raise RayclError(f"count: {count} was given, allowed is 1 or more")
    for name, view in views.items():
        if not isinstance(shards.fields.get(view.field), RGBImageField):
            raise RayclError(
                f"views.{name}: {shards.paths[0].parent} has no images in a field {view.field!r}; "
                f"its fields are {', '.join(shards.fields)}"
            )
    field = next((view.field for view in views.values()), "image")
    chosen = np.random.default_rng(seed).permutation(len(shards))[:count]
    ids = np.sort(chosen).astype(np.int64)
    samples = [shards.read(int(i)) for i in ids]
    columns = [[np.asarray(sample[field]) for sample in samples]]
    for index, view in enumerate(views.values()):
        images = [np.asarray(sample[view.field]) for sample in samples]
        columns += [_render(view, images, ids, index, seed, e) for e in range(RENDERINGS)]
    labels = [
        _label(int(i), sample, shards.classes) for i, sample in zip(ids, samples, strict=True)
    ]
    sheet = contact_sheet([list(row) for row in zip(*columns, strict=True)], labels)
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        raise RayclError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def _render(
    view: ImageView, images: list[np.ndarray], ids: np.ndarray, index: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """One view of every image, (size, size, 3) uint8, through the code that training runs."""
    import torch

    view = view.model_copy(update={"mean": None, "std": None})
    heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    plan = view.plan(seed, epoch, ids, index, heights, widths)
    pixels = np.empty((len(images), view.size, view.size, 3), np.uint8)
    for image, box, flip, out in zip(images, plan["box"], plan["flip"], pixels, strict=True):
        view.cut(image, box, bool(flip), out)
    drawn = {name: torch.from_numpy(values) for name, values in plan.items()}
    rendered = view.render(torch.from_numpy(pixels).permute(0, 3, 1, 2), drawn)
    levels = (rendered.clamp(0, 1) * 255).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).numpy())


def _name(label: int, classes: list[str] | None) -> str:
    return classes[label] if classes and 0 <= label < len(classes) else str(label)


def _label(index: int, sample: Mapping[str, Any], classes: list[str] | None) -> str:
    return _name(sample["label"], classes) if "label" in sample else f"#{index}"
