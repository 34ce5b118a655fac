"""The types of FFCV's fields: how a value becomes a cell of the metadata table and a payload."""

from __future__ import annotations

import json
import math
import operator
import re
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from raycl.beton.layout import CUSTOM_TYPE, MAX_PAGE, BetonError

JPG, RAW = 0, 1

Payload: TypeAlias = bytes | bytearray | memoryview | np.ndarray

_POINTER = np.dtype("<u8")
_SPAN = np.dtype([("pointer", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
_ARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])
# How NumPy itself spells a plain dtype. Its parser takes much more, and some of that is a program.
_DTYPE = re.compile(r"[<>|][a-zA-Z]\d{1,10}(\[\w{1,20}\])?")

# What a JPEG can ask of a decoder is bounded by its length: a block of 8 x 8 pixels takes a bit or
# more, and a scan, which passes over the whole image, a dozen bytes.
_PIXELS_PER_BYTE = 8 * 8 * 8
_SCANS = 500
_WORTH_COUNTING = 1 << 34


class Field(ABC):
    """One column of a data set.

    Attributes:
        type_id: number of the type in a field descriptor.
        member: the cell in a row of the metadata table.
        allocates: values have a payload in a page.
    """

    type_id: ClassVar[int]
    member: ClassVar[np.dtype[Any]]
    allocates: ClassVar[bool] = True

    @classmethod
    def from_arguments(cls, arguments: bytes) -> Field:
        """The field that a descriptor describes."""
        return cls()

    def arguments(self) -> bytes:
        """What a descriptor stores of this field, at most 1024 bytes."""
        return b""

    @abstractmethod
    def encode(self, value: Any) -> tuple[Any, Payload | None]:
        """The cell of a value, its pointer still 0, and its payload.

        Raises:
            BetonError: the value does not fit the field.
        """

    @abstractmethod
    def decode(self, cell: Any, payload: memoryview) -> Any:
        """The value, which owns its memory.

        Raises:
            BetonError: the payload is damaged.
        """


@dataclass(frozen=True)
class FloatField(Field):
    """A number, stored as float64."""

    type_id = 0
    member = np.dtype("<f8")
    allocates = False

    def encode(self, value: Any) -> tuple[float, None]:
        if isinstance(value, str | bytes):
            raise BetonError(f"expected a number, got {value!r}")
        try:
            return float(value), None
        except (TypeError, ValueError) as error:
            raise BetonError(f"expected a number, got {_shown(value)}") from error

    def decode(self, cell: Any, payload: memoryview) -> float:
        return float(cell)


@dataclass(frozen=True)
class IntField(Field):
    """An integer, stored as int64."""

    type_id = 1
    member = np.dtype("<i8")
    allocates = False

    def encode(self, value: Any) -> tuple[int, None]:
        try:
            number = operator.index(value)
        except TypeError as error:
            raise BetonError(f"expected an integer, got {_shown(value)}") from error
        if not -(1 << 63) <= number < 1 << 63:
            raise BetonError(f"{number} does not fit into 64 bits")
        return number, None

    def decode(self, cell: Any, payload: memoryview) -> int:
        return int(cell)


@dataclass(frozen=True)
class RGBImageField(Field):
    """An image, stored as pixels or as JPEG. A file does not store these settings.

    Takes (H, W, 3) uint8 arrays and, in mode "jpg", the bytes of a complete JPEG file, which are
    stored untouched unless the image is larger than `max_resolution`.

    Attributes:
        mode: "raw"; "jpg"; "proportion": JPEG for a share of the images; "smart": JPEG for images
            of more than `smart_threshold` bytes of pixels, raw for all without a threshold.
        max_resolution: longest side in pixels; larger images are scaled down to it.
        quality: of JPEG, 1 to 100.
        compress_probability: share of JPEGs in mode "proportion".
    """

    mode: Literal["raw", "jpg", "proportion", "smart"] = "raw"
    max_resolution: int | None = None
    quality: int = 90
    smart_threshold: int | None = None
    compress_probability: float = 0.5

    type_id = 2
    member = _IMAGE

    def __post_init__(self) -> None:
        if self.mode not in ("raw", "jpg", "proportion", "smart"):
            raise BetonError(f"mode must be raw, jpg, proportion or smart, not {self.mode!r}")
        if not 1 <= self.quality <= 100:
            raise BetonError(f"quality must be from 1 to 100, not {self.quality}")
        if not 0 <= self.compress_probability <= 1:
            raise BetonError(
                f"compress_probability must be from 0 to 1, not {self.compress_probability}"
            )
        if self.max_resolution is not None and self.max_resolution < 1:
            raise BetonError(f"max_resolution must be at least 1, not {self.max_resolution}")

    def encode(self, value: Any) -> tuple[tuple[int, int, int, int], Payload]:
        limit = self.max_resolution
        if isinstance(value, bytes | bytearray | memoryview):
            if self.mode != "jpg":
                raise BetonError(f"a JPEG file can only be stored in mode jpg, not {self.mode}")
            height, width = check_jpeg(value)
            if limit is None or max(height, width) <= limit:
                return (JPG, width, height, 0), value
            value = decode_jpeg(value)
        image = _as_array(value)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise BetonError(f"expected an (H, W, 3) uint8 image, got {_shown(value)}")
        if limit is not None and max(image.shape[:2]) > limit:
            image = _shrink(image, limit)
        height, width = image.shape[:2]
        if max(height, width) > 0xFFFF:
            raise BetonError(
                f"an image side is at most 65535 pixels, got {height} x {width}; set max_resolution"
            )
        image = np.ascontiguousarray(image)
        if self._compresses(image):
            return (JPG, width, height, 0), _encode_jpeg(image, self.quality)
        return (RAW, width, height, 0), image

    def _compresses(self, image: np.ndarray) -> bool:
        if self.mode == "smart":
            return self.smart_threshold is not None and image.nbytes > self.smart_threshold
        if self.mode == "proportion":
            # The image itself is the die, so that the same data set is written the same way twice.
            return zlib.crc32(image.data) < self.compress_probability * 2**32
        return self.mode == "jpg"

    def decode(self, cell: Any, payload: memoryview) -> np.ndarray:
        mode, height, width = int(cell["mode"]), int(cell["height"]), int(cell["width"])
        if mode == RAW:
            if len(payload) != height * width * 3:
                raise BetonError(
                    f"a raw image of {height} x {width} pixels takes {height * width * 3} bytes, "
                    f"and {len(payload)} are stored"
                )
            return np.frombuffer(payload, np.uint8).reshape(height, width, 3).copy()
        if mode != JPG:
            raise BetonError(f"unknown image mode {mode}; 0 is jpg and 1 is raw")
        return decode_jpeg(payload, size=(height, width))


@dataclass(frozen=True)
class BytesField(Field):
    """Any bytes: takes bytes or 1-D uint8 arrays, gives (size,) uint8 arrays."""

    type_id = 3
    member = _SPAN

    def encode(self, value: Any) -> tuple[tuple[int, int], Payload]:
        if isinstance(value, bytes | bytearray | memoryview):
            value = np.frombuffer(value, np.uint8)
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 1:
            raise BetonError(f"expected bytes or a 1-D uint8 array, got {_shown(value)}")
        return (0, value.size), np.ascontiguousarray(value)

    def decode(self, cell: Any, payload: memoryview) -> np.ndarray:
        return np.frombuffer(payload, np.uint8).copy()


@dataclass(frozen=True, init=False)
class NDArrayField(Field):
    """Arrays of one dtype and one shape, which has at least one axis and no empty one."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    type_id = 4
    member = _POINTER

    def __init__(self, dtype: Any, shape: tuple[int, ...]) -> None:
        try:
            resolved = np.dtype(dtype)
        except TypeError as error:
            raise BetonError(f"{dtype!r} is not a NumPy dtype") from error
        if resolved.hasobject or resolved.names or resolved.subdtype or not resolved.itemsize:
            raise BetonError(f"arrays of {resolved} cannot be stored; use plain numbers")
        if not 1 <= len(shape) <= 32 or min(shape) < 1:
            raise BetonError(f"shape {shape} cannot be stored: it needs 1 to 32 axes, none empty")
        if resolved.itemsize * math.prod(map(int, shape)) > MAX_PAGE:
            raise BetonError(
                f"arrays of {resolved} and shape {shape} cannot be stored: a page has at most "
                f"{MAX_PAGE} bytes"
            )
        object.__setattr__(self, "dtype", resolved)
        object.__setattr__(self, "shape", tuple(int(side) for side in shape))

    @classmethod
    def from_arguments(cls, arguments: bytes) -> Field:
        try:
            header = np.frombuffer(arguments, _ARRAY_ARGUMENTS, 1)[0]
            start = _ARRAY_ARGUMENTS.itemsize
            ((name, code),) = json.loads(arguments[start : start + int(header["type_length"])])
            if name or not isinstance(code, str) or not _DTYPE.fullmatch(code):
                raise ValueError(f"{code!r:.60} is not a plain dtype")
            return cls(code, tuple(np.trim_zeros(header["shape"], "b").tolist()))
        except (ValueError, TypeError, RecursionError) as error:
            raise BetonError(f"the description of its arrays is damaged: {error}") from error

    def arguments(self) -> bytes:
        header = np.zeros(1, _ARRAY_ARGUMENTS)
        header["shape"][0, : len(self.shape)] = self.shape
        description = json.dumps([["", self.dtype.str]]).encode("ascii")
        header["type_length"] = len(description)
        return header.tobytes() + description

    def encode(self, value: Any) -> tuple[int, Payload]:
        array = _as_array(value)
        if array.dtype != self.dtype or array.shape != self.shape:
            raise BetonError(
                f"expected an array of {self.dtype} and shape {self.shape}, got {_shown(value)}"
            )
        return 0, np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def decode(self, cell: Any, payload: memoryview) -> np.ndarray:
        size = self.dtype.itemsize * math.prod(self.shape)
        if len(payload) != size:
            raise BetonError(
                f"an array of {self.dtype} and shape {self.shape} takes {size} bytes, and "
                f"{len(payload)} are stored"
            )
        return np.frombuffer(payload, self.dtype).reshape(self.shape).copy()


@dataclass(frozen=True, init=False)
class TorchTensorField(NDArrayField):
    """Tensors of one dtype (named as in NumPy) and one shape; read back as NumPy arrays."""

    type_id = 6


@dataclass(frozen=True)
class JSONField(Field):
    """Anything that JSON can say."""

    type_id = 5
    member = _SPAN

    def encode(self, value: Any) -> tuple[tuple[int, int], Payload]:
        try:
            text = json.dumps(value).encode() + b"\0"
        except (TypeError, ValueError) as error:
            raise BetonError(f"not JSON: {error}") from error
        return (0, len(text)), text

    def decode(self, cell: Any, payload: memoryview) -> Any:
        try:
            return json.loads(bytes(payload).removesuffix(b"\0").decode())
        except (ValueError, RecursionError) as error:
            raise BetonError(f"not JSON: {error}") from error


_TYPES: dict[int, type[Field]] = {
    kind.type_id: kind
    for kind in (
        FloatField,
        IntField,
        RGBImageField,
        BytesField,
        NDArrayField,
        JSONField,
        TorchTensorField,
    )
}


def make_field(type_id: int, arguments: bytes) -> Field:
    """The field of a descriptor.

    Raises:
        BetonError: a custom type of somebody's program, or none of FFCV's.
    """
    if type_id == CUSTOM_TYPE:
        raise BetonError(
            f"has a custom type ({CUSTOM_TYPE}), which only the program that wrote it can read; "
            f"write the data set again with a bytes or array field in its place"
        )
    if type_id not in _TYPES:
        raise BetonError(f"has the unknown type {type_id}")
    return _TYPES[type_id].from_arguments(arguments)


def decode_jpeg(
    data: Payload,
    least: tuple[int, int] = (0, 0),
    memory: np.ndarray | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decodes a JPEG, grey ones too, into an (H, W, 3) uint8 RGB image.

    Args:
        least: height and width that will do: the image comes at a half, a quarter or an eighth of
            its size, rounded up, where it still has them. (0, 0) decodes all of it.
        memory: where to put the pixels, as many bytes as the whole image has or more.
        size: height and width that the JPEG should have; see `check_jpeg`.

    Raises:
        BetonError: not a JPEG, or a damaged one.
    """
    height, width = check_jpeg(data, size)
    scaled = 1
    if any(least):
        fits = [n for n in (2, 4, 8) if -(-height // n) >= least[0] and -(-width // n) >= least[1]]
        scaled = max(fits, default=1)
    try:
        image: np.ndarray = _simplejpeg().decode_jpeg(
            data,
            "RGB",
            min_height=-(-height // scaled),
            min_width=-(-width // scaled),
            min_factor=scaled,
            buffer=memory,
        )
    except ValueError as error:
        raise BetonError(f"not a whole JPEG: {error}") from error
    return image


def check_jpeg(data: Payload, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of a JPEG that is safe to decode, and that FFCV can decode too.

    Looks at the header, in microseconds, so that a decoder takes no more memory or time than the
    file can justify.

    Args:
        size: height and width that it should have.

    Raises:
        BetonError: not a JPEG, not RGB or grey, of another size, or too short for its size.
    """
    try:
        height, width, colours, _ = _simplejpeg().decode_jpeg_header(data)
    except ValueError as error:
        raise BetonError(f"not a whole JPEG: {error}") from error
    if colours in ("CMYK", "YCCK"):
        raise BetonError(f"a JPEG in {colours} colours; convert it to RGB first")
    if size is not None and (height, width) != size:
        raise BetonError(
            f"the JPEG is {height} x {width} pixels, and the metadata say {size[0]} x {size[1]}"
        )
    length = data.nbytes if isinstance(data, memoryview | np.ndarray) else len(data)
    if height * width > _PIXELS_PER_BYTE * length:
        raise BetonError(
            f"not a whole JPEG: {height} x {width} pixels do not fit into {length} bytes"
        )
    # Counting costs more than the rest, and only a large image makes many scans slow.
    if height * width * length > _WORTH_COUNTING and bytes(data).count(b"\xff\xda") > _SCANS:
        raise BetonError(f"a JPEG of more than {_SCANS} scans, which would take hours to decode")
    return height, width


def _encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    # Chroma at half resolution, as FFCV and nearly every camera store it.
    data: bytes = _simplejpeg().encode_jpeg(image, quality, "RGB", "420")
    return data


def _simplejpeg() -> Any:
    # Imported on first use: files without JPEGs need NumPy alone.
    try:
        import simplejpeg
    except ImportError as error:
        raise BetonError("JPEG images need the package simplejpeg: pip install it") from error
    return simplejpeg


def _shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """Scales an image down so that its longest side is `longest`, by averaging areas."""
    sides = image.shape[:2]
    pixels: np.ndarray = image.astype(np.float64)
    for axis, side in enumerate(sides):
        target = max(1, side * longest // max(sides))
        # The mean over an interval is a difference of the integral, which is linear between pixels.
        integral = np.concatenate(
            [np.zeros_like(pixels.take([0], axis)), pixels.cumsum(axis)], axis
        )
        edges = np.linspace(0, side, target + 1)
        lower = np.minimum(edges.astype(np.intp), side - 1)
        share = np.expand_dims(edges - lower, tuple(i for i in range(3) if i != axis))
        at_edges = integral.take(lower, axis) * (1 - share) + integral.take(lower + 1, axis) * share
        pixels = np.diff(at_edges, axis=axis) * (target / side)
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def _as_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BetonError(f"no array can be made of {_shown(value)}: {error}") from error


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of {getattr(value, 'dtype', '?')} and shape {tuple(shape)}"
    return f"{type(value).__name__} {value!r:.60}"
