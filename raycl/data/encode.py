"""From a foreign image, mask, clip or array to what a shard stores of it; each is checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raycl.beton import (
    BytesField,
    Field,
    IntField,
    NDArrayField,
    RGBImageField,
    Writer,
    decode_jpeg,
)
from raycl.beton.fields import JPG, Payload
from raycl.data.importers import Item, Items, Mode, Split, video
from raycl.data.staging import SHARD_BYTES, Advance, in_threads, positive
from raycl.errors import RayclError

Encoded = tuple[Any, Payload | None]  # a cell of the metadata table, and a payload
_UPRIGHT = 1
_JPEG = RGBImageField("jpg")


@dataclass(frozen=True)
class Storage:
    """How images are stored, in the words of FFCV's `RGBImageField`.

    Attributes:
        write_mode: "raw" pixels; "jpg"; "smart": JPEG for images of more than `smart_threshold`
            bytes of pixels; "proportion": JPEG for a share of the images; None: as the importer
            finds best. Where a JPEG is to be stored and the source is an upright one no larger than
            `max_resolution`, it is stored untouched.
        max_resolution: longer sides above this are scaled down to it, in pixels.
        jpeg_quality: of the JPEGs that are encoded here, 1 to 100.
        smart_threshold: see `write_mode`.
        compress_probability: share of JPEGs in mode "proportion".
        shard_samples: samples of a shard; None: as many as make about `shard_bytes`, by the mean
            size of some samples.
    """

    write_mode: Mode | None = None
    max_resolution: int | None = None
    jpeg_quality: int = 90
    smart_threshold: int | None = None
    compress_probability: float = 0.5
    shard_samples: int | None = None
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if self.write_mode not in (None, "raw", "jpg", "smart", "proportion"):
            raise RayclError(
                f"write_mode: {self.write_mode!r} was given, allowed are 'raw', 'jpg', 'smart' and "
                f"'proportion'"
            )
        for name in ("max_resolution", "smart_threshold", "shard_samples", "shard_bytes"):
            positive(name, getattr(self, name))
        if not 1 <= self.jpeg_quality <= 100:
            raise RayclError(f"jpeg_quality: {self.jpeg_quality} was given, allowed is 1 to 100")
        if not 0 <= self.compress_probability <= 1:
            raise RayclError(
                f"compress_probability: {self.compress_probability} was given, allowed is 0 to 1"
            )
        if (self.write_mode == "smart") != (self.smart_threshold is not None):
            raise RayclError(
                "write_mode smart and smart_threshold belong together: images of more bytes of "
                "pixels than that are stored as JPEG"
            )

    def field(self, default: Mode) -> RGBImageField:
        """The field of the images."""
        return RGBImageField(
            self.write_mode or default,
            quality=self.jpeg_quality,
            smart_threshold=self.smart_threshold,
            compress_probability=self.compress_probability,
        )


@dataclass(frozen=True)
class Shard:
    """The task to write a stretch of a split.

    Attributes:
        split: holds the items of this stretch alone.
        field: takes their contents.
    """

    split: Split
    field: Field
    storage: Storage

    @property
    def samples(self) -> int:
        return len(self.split.items)

    @property
    def objects(self) -> NDArrayField:
        return NDArrayField(np.float32, (self.split.objects, 6))

    def write(self, path: Path, threads: int, advance: Advance) -> None:
        split = self.split
        fields: dict[str, Field] = {split.field: self.field}
        fields |= {"label": IntField()} if split.labelled else {}
        fields |= {split.mask: BytesField()} if split.mask else {}
        fields |= {"objects": self.objects} if split.objects else {}
        with Writer(path, fields, page_size=split.page) as writer:
            for sample in in_threads(self.encode, read_items(split.items), threads):
                writer.write_encoded(sample)
                advance()

    def encode(self, item: Item) -> dict[str, Encoded]:
        """A sample as it will be stored.

        Raises:
            RayclError: naming the item, if it is damaged, of an unknown kind, or too large.
        """
        try:
            encoded = self._content(item)
        except UnidentifiedImageError as error:
            raise RayclError(f"{item.origin}: not an image, or of an unknown format") from error
        # Pillow's parsers raise whatever a damaged header makes them stumble over.
        except Exception as error:
            what = {"video": "clip"}.get(self.split.field, self.split.field)
            raise RayclError(
                f"{item.origin}: not a readable {what}: {error}; mend or remove it and import again"
            ) from error
        taken = 0 if encoded[1] is None else size(encoded[1])
        if taken > self.split.page:
            raise RayclError(
                f"{item.origin}: takes {taken / 2**20:.1f} MiB and a page of the container holds "
                f"{self.split.page >> 20}; give a max_resolution to scale large images down, or "
                f"write_mode jpg"
            )
        sample: dict[str, Encoded] = {self.split.field: encoded}
        if self.split.objects:
            sample["objects"] = self.objects.encode(_objects(item, encoded[0][1:3], self.objects))
        if self.split.mask:
            sample[self.split.mask] = BytesField().encode(_mask(item, encoded[0][1:3]))
        return sample | {"label": IntField().encode(item.label)} if self.split.labelled else sample

    def _content(self, item: Item) -> Encoded:
        content = item.content
        if isinstance(self.field, NDArrayField):
            return self.field.encode(content)
        if isinstance(content, Path):
            content = content.read_bytes()
        elif isinstance(content, np.ndarray) and content.ndim == 1:
            content = content.tobytes()
        if isinstance(self.field, RGBImageField):
            if isinstance(content, np.ndarray):
                return encode_image(content, None, self.field, self.storage.max_resolution)
            return _encode_file(content, self.field, self.storage.max_resolution)
        assert isinstance(content, bytes)
        if self.split.field == "video":
            video.check(content)
        return self.field.encode(content)


def _mask(item: Item, size: tuple[int, int]) -> bytes:
    """The file of an item's mask, scaled down where its image (width, height) was.

    Raises:
        RayclError: it is no mask of this image.
    """
    assert item.mask is not None
    content = item.mask if isinstance(item.mask, bytes) else item.mask.read_bytes()
    try:
        with Image.open(BytesIO(content)) as mask:
            mask.load()
            if mask.mode not in ("L", "P", "1"):
                raise ValueError(f"its pixels are {mask.mode!r}, not one grey level each")
            if mask.size == size:
                return content
            if not _scaled_down(mask.size, size):
                raise ValueError(f"its size is {mask.size}, and that of its image {size}")
            scaled = BytesIO()
            mask.resize(size, Image.Resampling.NEAREST).save(scaled, "PNG")
            return scaled.getvalue()
    except (OSError, ValueError) as error:
        name = item.origin if isinstance(item.mask, bytes) else item.mask
        raise RayclError(f"{name}: not a mask of {item.origin}: {error}") from error


def _objects(item: Item, size: tuple[int, int], field: NDArrayField) -> np.ndarray:
    """The rows of an item's objects, scaled down where its image (width, height) was.

    Raises:
        RayclError: they are of an image of another size.
    """
    assert item.objects is not None
    if not _scaled_down(item.size, size):
        raise RayclError(
            f"{item.origin}: is {size[0]} x {size[1]} pixels as it would be stored, and its "
            f"annotation is of {item.size[0]} x {item.size[1]}; mend the annotation's size, or "
            f"turn the image upright"
        )
    rows = np.zeros(field.shape, np.float32)
    rows[:, 4] = -1
    rows[: len(item.objects)] = item.objects
    rows[:, :4] *= np.divide(size, item.size)[[0, 1, 0, 1]]
    return rows


def _scaled_down(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether one (width, height) is the other, or that scaled down, to the nearest pixels."""
    width = round(before[0] * after[1] / before[1])
    return before[0] >= after[0] and abs(width - after[0]) <= 1


def read_items(items: Items) -> Iterator[Item]:
    """The items; trouble with their file is told apart from trouble with the shard."""
    try:
        yield from items
    except OSError as error:
        raise RayclError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


def encode_image(
    pixels: np.ndarray, jpeg: Payload | None, field: RGBImageField, max_resolution: int | None
) -> Encoded:
    """An image as it will be stored.

    Args:
        pixels: (H, W, 3) uint8.
        jpeg: the file these pixels come from, if it may be stored in their place.
        max_resolution: longer sides are scaled down to this, in pixels.
    """
    longest = max(pixels.shape[:2])
    if max_resolution and longest > max_resolution:
        height, width = (max(1, round(n * max_resolution / longest)) for n in pixels.shape[:2])
        image = Image.fromarray(np.ascontiguousarray(pixels))
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        jpeg = None
    if jpeg is not None and field.mode == "jpg":
        return _JPEG.encode(jpeg)
    encoded = field.encode(pixels)
    return _JPEG.encode(jpeg) if jpeg is not None and encoded[0][0] == JPG else encoded


def _encode_file(source: bytes, field: RGBImageField, max_resolution: int | None) -> Encoded:
    """The image of a whole file as it will be stored; one that is damaged raises something."""
    with Image.open(BytesIO(source)) as image:
        upright = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) == _UPRIGHT
        if upright and image.format == "JPEG" and image.mode in ("RGB", "L"):
            if field.mode == "jpg" and max(image.size) <= (max_resolution or math.inf):
                # At an eighth of its size: all of the file is read, and few pixels are made of it.
                decode_jpeg(source, (1, 1))
                return _JPEG.encode(source)
            return encode_image(decode_jpeg(source), source, field, max_resolution)
        if image.mode.startswith(("I", "F")):  # converting would clip 16 bits, not scale them
            raise ValueError(f"its pixels are {image.mode!r}, not 8 bits per channel")
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    return encode_image(pixels, None, field, max_resolution)


def size(payload: Payload) -> int:
    """Bytes of a payload."""
    return len(payload) if isinstance(payload, bytes | bytearray) else payload.nbytes
