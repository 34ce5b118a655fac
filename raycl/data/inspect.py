"""Looking at a data set: what is in it, what is wrong, and what a recipe's views make of it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raycl.beton import BytesField, Field, IntField, Reader, RGBImageField
from raycl.data import storage
from raycl.data.find import SIDECAR, File, Found, find, name_of, sibling
from raycl.data.remote import RemoteFile
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.views.packing import Graph

if TYPE_CHECKING:
    from raycl.views.image import ImageView

MODES = ("jpg", "raw")
BLOCK = 128  # samples that a thread checks at a time
RENDERINGS = 2  # of each view of a sample in a preview


def info(shards: Shards) -> dict[str, Any]:
    """What a data set holds, as plain data.

    Returns:
        `samples`; `bytes`; `shards`: name, samples and bytes of each; `fields`: type by name;
        `images`: by field, how many images are stored in each mode, and the smallest, median and
        largest height and width in pixels; `labels`: samples per class, where there are labels.
    """
    files = [
        {"name": name_of(file.path), "samples": file.samples, "bytes": file.size}
        for file in shards.files
    ]
    found: dict[str, Any] = {
        "samples": len(shards),
        "bytes": shards.bytes,
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
    parts = [shards.reader(i).image_info(field) for i in range(len(shards.files))]
    mode, height, width = (np.concatenate(part) for part in zip(*parts, strict=True))
    found: dict[str, Any] = {
        name: int(n) for name, n in zip(MODES, np.bincount(mode, minlength=2), strict=True) if n
    }
    for name, sides in (("height", height), ("width", width)):
        found[name] = [int(value) for value in (sides.min(), np.median(sides), sides.max())]
    return found


def verify(
    spec: str | Path | Sequence[str | Path],
    report: Callable[[str], None],
    progress: Callable[[float], None] = lambda share: None,
    *,
    threads: int | None = None,
) -> tuple[int, int]:
    """Reads and decodes every sample of every shard, whatever is wrong with others.

    Finds shards that are missing, cannot be read, or have other fields than the first; samples
    whose values are damaged, graphs among them; and labels that no class has.

    Args:
        spec: as for `Shards`.
        report: called with a line for each thing that is wrong, in the order of the samples.
        progress: called with the share of the bytes that is done, in [0, 1].
        threads: decoding threads; by default as many as this process has cores.

    Returns:
        Samples that were looked at, and lines that were reported.

    Raises:
        RayclError: there is nothing to look at, or a `dataset.json` is damaged.
    """
    found = find(spec)
    samples = problems = done = 0
    for line in found.missing:
        problems += 1
        report(line)
    total = sum(file.size for file in found.files)
    threads = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        for count, size, lines in _ahead(pool, _blocks(found), 2 * threads):
            samples, done = samples + count, done + size
            for line in lines:
                problems += 1
                report(line)
            progress(done / max(total, 1))
    return samples, problems


Checked = tuple[int, int, list[str]]  # samples, bytes, and what is wrong with them


def _ahead(
    pool: ThreadPoolExecutor, blocks: Iterable[Callable[[], Checked]], depth: int
) -> Iterator[Checked]:
    """Results in order, with a bounded number of blocks in work."""
    waiting: deque[Future[Checked]] = deque()
    for block in blocks:
        waiting.append(pool.submit(block))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _blocks(found: Found) -> Iterator[Callable[[], Checked]]:
    """What there is to check: each shard as a whole, then its samples."""
    fields: dict[str, Field] = {}
    for file in found.files:
        try:
            reader = _opened(file)
        except RayclError as error:
            yield partial(_line, file.size, str(error))
            continue
        fields = fields or reader.fields
        if reader.fields != fields:
            yield partial(
                _line, 0, f"{reader.name}: its fields are not those of the shards before it"
            )
        if file.samples not in (None, len(reader)):
            told = f"{reader.name}: holds {len(reader)} samples, and {SIDECAR} says {file.samples}"
            yield partial(_line, 0, told)
        classes = found.descriptions[sibling(file.path, SIDECAR)].get("classes")
        for first in range(0, len(reader), BLOCK):
            share = file.size * min(BLOCK, len(reader) - first) // len(reader)
            yield partial(_check, reader, first, share, classes)


def _opened(file: File) -> Reader:
    """A shard without sidecar and cache, because the question is what it holds itself."""
    remote = storage.is_uri(file.path)
    reader = Reader(RemoteFile(file.path, file.size, file.version) if remote else file.path)
    reader.check()
    return reader


def _line(size: int, line: str) -> Checked:
    return 0, size, [line]


def _check(reader: Reader, first: int, size: int, classes: list[str] | None) -> Checked:
    end = min(first + BLOCK, len(reader))
    try:
        lines = list(reader.verify(first, end))
        if classes and isinstance(reader.fields.get("label"), IntField):
            labels = reader.numbers(np.arange(first, end), "label")
            lines += [
                f"{reader.name}: sample {first + row}, field 'label': {labels[row]} is none of "
                f"the {len(classes)} classes"
                for row in np.flatnonzero((labels < 0) | (labels >= len(classes))).tolist()
            ]
        if isinstance(reader.fields.get("graph"), BytesField):
            lines += _graphs(reader, first, end)
    except RayclError as error:  # a server that does not answer
        lines = [f"{reader.name}: samples {first} to {end - 1}: {error}"]
    return end - first, size, lines


def _graphs(reader: Reader, first: int, end: int) -> Iterator[str]:
    contents = reader.payloads(np.arange(first, end), ["graph"])["graph"]
    for row, content in enumerate(contents, first):
        try:
            if content:  # a lost one has been told of
                Graph.of(content)
        except RayclError as error:
            yield f"{reader.name}: sample {row}, field 'graph': {error}"


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
    field = next((view.field for view in views.values()), "image")
    if not views and not isinstance(shards.fields.get(field), RGBImageField):
        raise RayclError(f"{shards.place}: has no images to show in a field {field!r}")
    for name, view in views.items():
        if not isinstance(shards.fields.get(view.field), RGBImageField):
            raise RayclError(
                f"views.{name}: {shards.place} has no images in a field {view.field!r}; "
                f"its fields are {', '.join(shards.fields)}"
            )
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
