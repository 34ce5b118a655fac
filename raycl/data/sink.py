"""From foreign data sets to the tasks that write their shards."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Unpack

import numpy as np

from raycl.beton import (
    BytesField,
    Field,
    NDArrayField,
)
from raycl.data.encode import Shard, Storage, read_items, size
from raycl.data.importers import Split, video
from raycl.data.staging import (
    Part,
    Writing,
    Written,
    checked_target,
    cut,
    per_shard,
    positive,
    write_parts,
)
from raycl.errors import RayclError

KINDS = (
    "digits",
    "imagefolder",
    "npz",
    "cifar10",
    "webdataset",
    "parquet",
    "video",
    "segmentation",
    "detection",
    "features",
    "graph",
)
_STRETCHES, _STRETCH = 8, 4  # samples that tell how large the others are


def import_dataset(
    kind: str,
    source: str | Path | None,
    out: str | Path,
    *,
    limit: int | None = None,
    storage: Storage | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    window: int | None = None,
    classes: str | Path | None = None,
    **writing: Unpack[Writing],
) -> list[Written]:
    """Writes a foreign data set as shards, with a `dataset.json` beside them.

    A data set with splits becomes OUT/train, OUT/test and so on, one without becomes OUT itself.
    Shards are written beside `out`, which appears when all are finished; after a failure, a kill
    or Ctrl-C the same call goes on with the shards that are missing (see `raycl.data.staging`).

    Args:
        kind: one of `KINDS`.
        source: the file or directory to read; None for "digits", which comes with scikit-learn. For
            "webdataset" and "parquet" also a glob.
        out: directory to make; it must not exist, or be empty.
        limit: keep only the first samples of the split "train", or of a data set without splits.
        storage: how images are stored.
        image_column, label_column: of "parquet", where they cannot be guessed; for "webdataset" the
            endings of members, or the key of the label in `.json`.
        window: nodes of the sub-graphs that a "graph" is cut into; None: only large ones are cut.
        classes: of "features" that `raycl embed` wrote, a table of their classes.
        writing: workers, the shards that are written at a time, by Ray if there are several;
            address, of a Ray cluster that writes them; progress, called with the samples done and
            their total.

    Raises:
        RayclError: naming the file or option that is wrong.
    """
    storage = storage or Storage()
    target = checked_target(out)
    splits = _limited(_splits(kind, source, image_column, label_column, window, classes), limit)
    if any(split.field != "image" for split in splits):
        _refuse_image_options(kind, storage)
    origin = kind if source is None else f"{kind}: {source}"
    parts = [_part(split, origin, storage) for split in splits]
    order = {
        "import": kind,
        "source": None if source is None else str(Path(source).absolute()),
        "limit": limit,
        "image_column": image_column,
        "label_column": label_column,
        "window": window,
        "classes": None if classes is None else str(Path(classes).absolute()),
        **asdict(storage),
        "contents": {split.name: split.stamp for split in splits},
    }
    return write_parts(target, order, parts, **writing)


def _splits(
    kind: str,
    source: str | Path | None,
    image: str | None,
    label: str | None,
    window: int | None,
    classes: str | Path | None,
) -> list[Split]:
    from raycl.data.importers import (
        cifar10,
        detection,
        digits,
        features,
        graph_sets,
        imagefolder,
        npz,
        parquet,
        segmentation,
        webdataset,
    )

    if kind not in KINDS:
        raise RayclError(f"import: unknown kind {kind!r}; known are {', '.join(KINDS)}")
    if (image or label) and kind not in ("parquet", "webdataset"):
        raise RayclError(
            f"import {kind}: image_column and label_column are of parquet and webdataset"
        )
    positive("window", window)
    if window and kind != "graph":
        raise RayclError(f"import {kind}: window is of graphs")
    if classes and kind != "features":
        raise RayclError(f"import {kind}: classes is of features")
    if kind == "digits":
        if source is not None:
            raise RayclError("import digits: the images come with scikit-learn; give no SRC")
        return digits.splits()
    if source is None:
        raise RayclError(f"import {kind}: SRC is missing; give the file or directory to import")
    path = Path(source)
    try:
        match kind:
            case "webdataset":
                return webdataset.splits(source, image, label)
            case "parquet":
                return parquet.splits(source, image, label)
        if not path.exists():
            raise RayclError(f"{path}: there is no such file or directory to import")
        match kind:
            case "imagefolder":
                return imagefolder.splits(path)
            case "npz":
                return npz.splits(path)
            case "video":
                return video.splits(path)
            case "segmentation":
                return segmentation.splits(path)
            case "detection":
                return detection.splits(path)
            case "features":
                return features.splits(path, Path(classes) if classes else None)
            case "graph":
                return graph_sets.splits(path, window)
            case _:
                return cifar10.splits(path)
    except OSError as error:
        raise RayclError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _limited(splits: list[Split], limit: int | None) -> list[Split]:
    positive("limit", limit)
    if limit is None:
        return splits
    if not any(split.name in ("", "train") for split in splits):
        names = ", ".join(split.name for split in splits)
        raise RayclError(f"limit: applies to the split 'train', but there are only {names}")
    return [replace(s, items=s.items[:limit]) if s.name in ("", "train") else s for s in splits]


def _refuse_image_options(kind: str, storage: Storage) -> None:
    asked = {name: getattr(storage, name) for name in ("write_mode", "max_resolution")}
    given = [name for name, value in asked.items() if value is not None]
    if given:
        raise RayclError(f"import {kind}: {given[0]} is for images; these are stored as they are")


def _part(split: Split, origin: str, storage: Storage) -> Part:
    field: Field
    match split.field:
        case "image":
            field = storage.field(split.mode)
        case "video" | "graph":
            field = BytesField()
        case "features":
            (first,) = split.items[:1]
            field = NDArrayField(np.float32, np.shape(first.content))  # type: ignore[arg-type]
    whole = Shard(split, field, storage)
    total = len(split.items)
    sizes = [] if storage.shard_samples else _sizes(whole)
    each = per_shard(storage.shard_samples, storage.shard_bytes, sizes)
    tasks = [replace(whole, split=replace(split, items=split.items[p])) for p in cut(total, each)]
    return Part(split.name, tasks, split.classes, origin)


def _sizes(shard: Shard) -> list[int]:
    """Bytes that some samples take, from stretches all over the data set."""
    starts = np.linspace(0, shard.samples, _STRETCHES, endpoint=False).astype(int)
    items, name = shard.split.items, shard.split.field
    stretches = (items[start : start + _STRETCH] for start in np.unique(starts).tolist())
    found = [shard.encode(item)[name][1] for part in stretches for item in read_items(part)]
    return [size(payload) for payload in found if payload is not None]
