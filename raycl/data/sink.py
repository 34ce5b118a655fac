"""From foreign images to shards: every image is checked, and either all is written or nothing."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raycl.beton import BetonError, Field, IntField, RGBImageField, Writer, decode_jpeg
from raycl.data.importers import Item, Mode, Split
from raycl.data.shards import SIDECAR
from raycl.errors import RayclError

KINDS = ("digits", "imagefolder", "npz", "cifar10")
SHARD_BYTES = 256 << 20
PAGE = 8 << 20
_AHEAD = 64  # images that are decoded in threads at a time
_UPRIGHT = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Imported:
    """One data set that was written."""

    path: Path
    samples: int
    shards: int
    bytes: int
    classes: list[str] | None


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    Attributes:
        mode: "jpg" or "raw" pixels; None: as the importer finds best. Under "jpg" a JPEG file is
            stored untouched if it is upright and no larger than `resolution`.
        resolution: longer sides above this are scaled down to it, in pixels.
        quality: of the JPEGs that are encoded here.
        shard_samples: samples of a shard; None: as many as make about 256 MiB.
    """

    mode: Mode | None = None
    resolution: int | None = None
    quality: int = 90
    shard_samples: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "jpg", "raw"):
            raise RayclError(f"mode: {self.mode!r} was given, allowed are 'jpg' and 'raw'")
        for name in ("resolution", "shard_samples"):
            _positive(name, getattr(self, name))
        if not 1 <= self.quality <= 100:
            raise RayclError(f"quality: {self.quality} was given, allowed is 1 to 100")

    def full(self, samples: int, size: int) -> bool:
        """Whether a shard of so many samples and bytes is complete."""
        return samples == self.shard_samples if self.shard_samples else size >= SHARD_BYTES


def import_dataset(
    kind: str,
    source: str | Path | None,
    out: str | Path,
    *,
    limit: int | None = None,
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> list[Imported]:
    """Writes a foreign data set as shards, with a `dataset.json` beside them.

    Everything is written into a directory beside `out` that is renamed to `out` at the end; on any
    failure, Ctrl-C included, it is removed. A data set with splits becomes OUT/train, OUT/test and
    so on, one without becomes OUT itself.

    Args:
        kind: one of `KINDS`.
        source: the file or directory to read; None for "digits", which comes with scikit-learn.
        out: directory to make; it must not exist, or be empty.
        limit: keep only the first samples of the split "train", or of a data set without splits.
        storage: how images are stored.
        progress: called with the samples done and their total.

    Raises:
        RayclError: naming the file or option that is wrong; nothing is left behind.
    """
    storage = storage or Storage()
    target = _checked_target(Path(out).resolve())
    splits = _limited(_splits(kind, source), limit)
    total, done = sum(split.total for split in splits), 0
    origin = kind if source is None else f"{kind}: {source}"

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    with _staged(target) as staging:
        written = [_write(s, staging / s.name, origin, storage, advance) for s in splits]
    return [replace(w, path=target / s.name) for s, w in zip(splits, written, strict=True)]


def _splits(kind: str, source: str | Path | None) -> list[Split]:
    from raycl.data.importers import cifar10, digits, imagefolder, npz

    if kind not in KINDS:
        raise RayclError(f"import: unknown kind {kind!r}; known are {', '.join(KINDS)}")
    if kind == "digits":
        if source is not None:
            raise RayclError("import digits: the images come with scikit-learn; give no SRC")
        return digits.splits()
    if source is None:
        raise RayclError(f"import {kind}: SRC is missing; give the file or directory to import")
    path = Path(source)
    if not path.exists():
        raise RayclError(f"{path}: there is no such file or directory to import")
    try:
        match kind:
            case "imagefolder":
                return imagefolder.splits(path)
            case "npz":
                return npz.splits(path)
            case _:
                return cifar10.splits(path)
    except OSError as error:
        raise RayclError(f"{error.filename or path}: cannot be read: {error.strerror}") from error


def _limited(splits: list[Split], limit: int | None) -> list[Split]:
    _positive("limit", limit)
    if limit is None:
        return splits
    if not any(split.name in ("", "train") for split in splits):
        names = ", ".join(split.name for split in splits)
        raise RayclError(f"limit: applies to the split 'train', but there are only {names}")
    return [
        replace(s, items=islice(s.items, limit), total=min(s.total, limit))
        if s.name in ("", "train")
        else s
        for s in splits
    ]


def _positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise RayclError(f"{name}: {value} was given, allowed is 1 or more")


def _checked_target(target: Path) -> Path:
    if target.exists():
        if not target.is_dir():
            raise RayclError(f"{target}: exists and is a file; choose another directory")
        if any(target.iterdir()):
            raise RayclError(
                f"{target}: exists and is not empty; choose another directory, or remove it first"
            )
        if target.is_mount():
            raise RayclError(f"{target}: is a mount point; choose a directory inside it")
    return target


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A directory that becomes `target` at the end, or vanishes on any failure."""
    made = [path for path in target.parents if not path.exists()]
    staging = target.with_name(f"{target.name}.partial-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        yield staging
        staging.rename(target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            try:
                path.rmdir()
            except OSError:
                break
        cause = error.__cause__ if isinstance(error, BetonError) else error
        if isinstance(cause, OSError):
            raise RayclError(_explained(cause, target)) from error
        raise


def _explained(error: OSError, target: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{target}: the disk is full ({error.strerror}); nothing was left behind. Make room, "
            f"or choose a directory on another disk, a smaller resolution, or a limit"
        )
    return f"{target}: cannot be written: {error.strerror or error}; nothing was left behind"


def _write(
    split: Split, folder: Path, origin: str, storage: Storage, advance: Callable[[], None]
) -> Imported:
    mode = storage.mode or split.mode
    fields: dict[str, Field] = {"image": RGBImageField(mode)}
    if split.labelled:
        fields["label"] = IntField()
    folder.mkdir(exist_ok=True)
    prepared = _prepared(split, RGBImageField(mode, quality=storage.quality), storage.resolution)
    shards: list[Path] = []
    left = split.total
    while left:
        shards.append(folder / f"{len(shards):05d}.beton")
        samples = size = 0
        with Writer(shards[-1], fields, page_size=PAGE) as writer:
            while samples < left and not storage.full(samples, size):
                label, image = next(prepared)
                writer.write({"image": image} | ({"label": label} if split.labelled else {}))
                samples += 1
                size += _size(image)
                advance()
        left -= samples
    description = {
        "classes": split.classes,
        "source": origin,
        "samples": split.total,
        "shards": [path.name for path in shards],
    }
    text = json.dumps(description, indent=1)
    (folder / SIDECAR).write_text(text + "\n", encoding="utf-8")
    written = sum(path.stat().st_size for path in shards)
    return Imported(folder, split.total, len(shards), written, split.classes)


def _prepared(
    split: Split, field: RGBImageField, resolution: int | None
) -> Iterator[tuple[int | None, bytes | np.ndarray]]:
    """Labels and images as they will be stored, in order, decoded and encoded in threads."""
    items = iter(split.items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(items, _AHEAD)):
            yield from pool.map(lambda item: (item.label, _stored(item, field, resolution)), chunk)


def _stored(item: Item, field: RGBImageField, resolution: int | None) -> bytes | np.ndarray:
    """An image as it will be stored: pixels, or a JPEG file.

    Raises:
        RayclError: naming the image, if it is damaged, of an unknown kind, or too large.
    """
    try:
        source = item.image.read_bytes() if isinstance(item.image, Path) else item.image
        stored = _encoded(source, field, resolution)
    except UnidentifiedImageError as error:
        raise RayclError(f"{item.origin}: not an image, or of an unknown format") from error
    # Pillow's parsers raise whatever a damaged header makes them stumble over.
    except Exception as error:
        raise RayclError(
            f"{item.origin}: not a readable image: {error}; mend or remove it and import again"
        ) from error
    if _size(stored) > PAGE:
        raise RayclError(
            f"{item.origin}: takes {_size(stored) / 2**20:.1f} MiB and a page of the container "
            f"holds {PAGE >> 20}; give a resolution to scale large images down, or mode jpg"
        )
    return stored


def _encoded(
    source: bytes | np.ndarray, field: RGBImageField, resolution: int | None
) -> bytes | np.ndarray:
    if isinstance(source, bytes):
        pixels, untouched = _decoded(source)
        if untouched and field.mode == "jpg" and max(pixels.shape[:2]) <= (resolution or np.inf):
            return source
    else:
        pixels = source
    longest = max(pixels.shape[:2])
    if resolution and longest > resolution:
        height, width = (max(1, round(n * resolution / longest)) for n in pixels.shape[:2])
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    _, payload = field.encode(pixels)
    return payload if isinstance(payload, np.ndarray) else bytes(payload)


def _decoded(source: bytes) -> tuple[np.ndarray, bool]:
    """Pixels (H, W, 3) uint8 of a whole image file, and whether it is a JPEG fit to be kept."""
    with Image.open(BytesIO(source)) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) == _UPRIGHT
        if upright and image.format == "JPEG" and image.mode in ("RGB", "L"):
            return decode_jpeg(source), True
        if image.mode.startswith(("I", "F")):  # converting would clip 16 bits, not scale them
            raise ValueError(f"its pixels are {image.mode!r}, not 8 bits per channel")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")), False


def _size(image: bytes | np.ndarray) -> int:
    return image.nbytes if isinstance(image, np.ndarray) else len(image)
