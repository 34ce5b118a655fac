"""Data sets from data sets: cut otherwise, put together, images stored otherwise, masks added.

Fields of any type are carried over. The bytes of a value are copied as they are, unless an image is
to be stored otherwise; what is only copied is not decoded, so `raycl data verify` is what finds
damaged ones.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeAlias, Unpack

import numpy as np

from raycl.beton import (
    BetonError,
    BytesField,
    Field,
    FloatField,
    IntField,
    NDArrayField,
    Reader,
    RGBImageField,
    Writer,
    decode_jpeg,
)
from raycl.beton.fields import JPG
from raycl.beton.reader import LOST
from raycl.data import detector as detectors
from raycl.data import storage as places
from raycl.data.encode import Encoded, Storage, encode_image, size
from raycl.data.importers import PAGE, Mode, digest
from raycl.data.shards import Shards
from raycl.data.staging import (
    SHARD_BYTES,
    Advance,
    Part,
    Task,
    Writing,
    Written,
    checked_target,
    cut,
    in_threads,
    per_shard,
    positive,
    write_parts,
)
from raycl.errors import RayclError

Sources: TypeAlias = Sequence[str | Path]
Sample: TypeAlias = dict[str, Encoded]
Named: TypeAlias = tuple[str, Sample]  # where a sample comes from, for messages, and its values

_BLOCK = 256  # samples that are read at once
_PROBES = 32  # samples that tell how large the others are
_MASK = "mask"


def reshard(
    sources: Sources,
    out: str | Path,
    *,
    shard_samples: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    **writing: Unpack[Writing],
) -> Written:
    """Cuts the samples of data sets, in their order, into shards of another size.

    Goes on where it was stopped, as `raycl.data.sink.import_dataset` does.

    Args:
        sources: data sets with the same fields and classes, each as `Shards` takes it.
        out: directory to make.
        shard_samples: samples of a shard; None: as many as make about `shard_bytes`.
        writing: workers, address and progress, as of an import.

    Raises:
        RayclError: naming the file or option that is wrong.
    """
    positive("shard_samples", shard_samples)
    positive("shard_bytes", shard_bytes)
    target, shards = checked_target(out), Shards(sources)
    each = per_shard(shard_samples, shard_bytes, [shards.bytes // len(shards)])
    tasks = [_stretch(shards, part, _page(shards), None) for part in cut(len(shards), each)]
    options = {"shard_samples": shard_samples, "shard_bytes": shard_bytes}
    return _write("reshard", target, options, shards, tasks, writing)


def concat(
    sources: Sources,
    out: str | Path,
    **writing: Unpack[Writing],
) -> Written:
    """Puts data sets together, shard by shard; local files are copied as they are.

    Goes on where it was stopped. Arguments and errors are those of `reshard`.
    """
    target, shards = checked_target(out), Shards(sources)
    tasks: list[Task] = []
    for file, (start, stop) in zip(shards.files, pairwise(_starts(shards).tolist()), strict=True):
        if places.is_uri(file.path):
            tasks.append(_stretch(shards, slice(start, stop), _page(shards), None))
        else:
            tasks.append(_Copy(file.path, stop - start))
    return _write("concat", target, {}, shards, tasks, writing)


def convert(
    sources: Sources,
    out: str | Path,
    storage: Storage,
    **writing: Unpack[Writing],
) -> Written:
    """Stores the images of data sets otherwise; all other fields, and images that fit, are copied.

    Without a `write_mode` every image keeps its own. A JPEG that may stay one and is no larger than
    `max_resolution` stays byte for byte. Goes on where it was stopped.

    Args:
        storage: how images are stored, and how large the shards are.

    Raises:
        RayclError: naming the file, sample or option that is wrong; nothing would change.
    """
    target, shards = checked_target(out), Shards(sources)
    if storage.write_mode is None and storage.max_resolution is None:
        raise RayclError("convert: nothing would change; give a write_mode or a max_resolution")
    if not any(isinstance(field, RGBImageField) for field in shards.fields.values()):
        raise RayclError(f"{shards.place}: holds no images, only {', '.join(shards.fields)}")
    if storage.max_resolution and "objects" in shards.fields:
        raise RayclError(
            f"{shards.place}: boxes of the field 'objects' are in pixels of the images as they "
            f"are; import the data set again with that max_resolution"
        )
    tasks = _changing(shards, _Stored(storage), storage.shard_samples, storage.shard_bytes)
    return _write("convert", target, asdict(storage), shards, tasks, writing)


def saliency(
    sources: Sources,
    out: str | Path,
    detector: str = detectors.DEFAULT,
    *,
    field: str = "image",
    shard_samples: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    **writing: Unpack[Writing],
) -> Written:
    """Adds a field "mask" that says how salient every pixel of an image is; all else is copied.

    A mask is a PNG of one grey level for each pixel, as the importer of segmentations stores it and
    `raycl.views.image.MaskView` reads it. Goes on where it was stopped.

    Args:
        detector: `package.module:function`; see `raycl.data.detector`.
        field: the images that it looks at.

    Raises:
        RayclError: naming the file, field, sample or option that is wrong.
    """
    target, shards = checked_target(out), Shards(sources)
    positive("shard_samples", shard_samples)
    positive("shard_bytes", shard_bytes)
    images = [name for name, kind in shards.fields.items() if isinstance(kind, RGBImageField)]
    if not images:
        raise RayclError(f"{shards.place}: holds no images, only {', '.join(shards.fields)}")
    if field not in images:
        raise RayclError(
            f"field: {field!r} was given, and the images of {shards.place} are in "
            f"{', '.join(images)}"
        )
    if _MASK in shards.fields:
        raise RayclError(
            f"{shards.place}: has a field {_MASK!r} already; start from a data set without one"
        )
    options = {
        "detector": detector,
        "detector_version": detectors.version(detector),
        "field": field,
        "shard_samples": shard_samples,
        "shard_bytes": shard_bytes,
    }
    tasks = _changing(shards, _Masked(detector, field), shard_samples, shard_bytes)
    return _write("saliency", target, options, shards, tasks, writing)


class _Change(Protocol):
    """What becomes of a data set's samples, one by one. It may be pickled."""

    def fields(self, fields: dict[str, Field]) -> dict[str, Field]:
        """The fields that are written, given those that are read."""
        ...

    def sample(self, fields: dict[str, Field], named: Named) -> Sample:
        """What becomes of a sample.

        Raises:
            RayclError: naming the sample.
        """
        ...


@dataclass(frozen=True)
class _Stored:
    """Images are stored otherwise."""

    storage: Storage

    def fields(self, fields: dict[str, Field]) -> dict[str, Field]:
        return fields

    def sample(self, fields: dict[str, Field], named: Named) -> Sample:
        origin, sample = named
        changed = dict(sample)
        for name, field in fields.items():
            if isinstance(field, RGBImageField):
                try:
                    changed[name] = _converted_image(sample[name], self.storage)
                except (BetonError, ValueError) as error:
                    raise RayclError(f"{origin}, field {name!r}: {error}") from error
        return changed


@dataclass(frozen=True)
class _Masked:
    """Images get a mask."""

    detector: str
    field: str

    def fields(self, fields: dict[str, Field]) -> dict[str, Field]:
        return fields | {_MASK: BytesField()}

    def sample(self, fields: dict[str, Field], named: Named) -> Sample:
        origin, sample = named
        try:
            mask = detectors.mask(self.detector, _pixels(sample[self.field]))
        except (RayclError, ValueError) as error:
            raise RayclError(f"{origin}, field {self.field!r}: {error}") from error
        return sample | {_MASK: BytesField().encode(mask)}


@dataclass(frozen=True)
class _Stretch:
    """The task to write samples `start` to `stop` of some files, counted through them.

    Attributes:
        change: what becomes of them; None: they are copied.
    """

    paths: list[str]
    start: int
    stop: int
    page: int
    change: _Change | None

    @property
    def samples(self) -> int:
        return self.stop - self.start

    def write(self, path: Path, threads: int, advance: Advance) -> None:
        shards = Shards(self.paths, cache_gb=0)
        samples, fields = _read(shards, self.start, self.stop), shards.fields
        if self.change is not None:
            change = partial(_changed, self.change, fields, self.page)
            samples, fields = in_threads(change, samples, threads), self.change.fields(fields)
        with Writer(path, fields, page_size=self.page) as writer:
            for _, sample in samples:
                writer.write_encoded(sample)
                advance()


@dataclass(frozen=True)
class _Copy:
    """The task to copy a file."""

    path: str
    samples: int

    def write(self, path: Path, threads: int, advance: Advance) -> None:
        partial_copy = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        try:
            shutil.copyfile(self.path, partial_copy)
            with partial_copy.open("rb") as file:
                os.fsync(file.fileno())
            partial_copy.replace(path)
        finally:
            partial_copy.unlink(missing_ok=True)
        for _ in range(self.samples):
            advance()


def _changing(
    shards: Shards, change: _Change, shard_samples: int | None, shard_bytes: int
) -> list[Task]:
    """The tasks that change all samples of a data set."""
    page = max(PAGE, _page(shards))
    sizes = [] if shard_samples else _changed_sizes(shards, change, page)
    each = per_shard(shard_samples, shard_bytes, sizes)
    return [_stretch(shards, part, page, change) for part in cut(len(shards), each)]


def _stretch(shards: Shards, part: slice, page: int, change: _Change | None) -> _Stretch:
    """The task for a stretch of a data set; it names only the files that it needs."""
    (first, last), _ = shards.locate(np.array([part.start, part.stop - 1]))
    before = int(_starts(shards)[first])
    paths = [file.path for file in shards.files[first : last + 1]]
    return _Stretch(paths, part.start - before, part.stop - before, page, change)


def _starts(shards: Shards) -> np.ndarray:
    """The first sample of every file, and their total, (files + 1,)."""
    return np.cumsum([0, *(file.samples or 0 for file in shards.files)], dtype=np.int64)


def _page(shards: Shards) -> int:
    return max(shards.reader(shard).page_size for shard in range(len(shards.files)))


def _read(shards: Shards, start: int, stop: int) -> Iterator[Named]:
    """Samples as they are stored."""
    for first in range(start, stop, _BLOCK):
        shard, row = shards.locate(np.arange(first, min(first + _BLOCK, stop)))
        for number in np.unique(shard).tolist():
            yield from _rows(shards.reader(number), row[shard == number])


def _rows(reader: Reader, rows: np.ndarray) -> Iterator[Named]:
    allocating = [name for name, field in reader.fields.items() if field.allocates]
    for name in allocating:
        lost = rows[reader.spans(rows, name)[1] == LOST]
        if len(lost):
            reader.encoded(int(lost[0]), name)  # which says what is damaged
    payloads = reader.payloads(rows, allocating)
    cells = {name: _cells(reader, name, rows, payloads.get(name, [])) for name in reader.fields}
    for at, row in enumerate(rows.tolist()):
        sample: Sample = {
            name: (cells[name][at], payloads[name][at] if name in payloads else None)
            for name in reader.fields
        }
        yield f"{reader.name}: sample {row}", sample


def _cells(
    reader: Reader, name: str, rows: np.ndarray, payloads: list[memoryview]
) -> Sequence[Any]:
    """What the metadata table says of these samples, their pointers 0."""
    match reader.fields[name]:
        case IntField() | FloatField():
            numbers: list[Any] = reader.numbers(rows, name).tolist()
            return numbers
        case RGBImageField():
            mode, height, width = (part.tolist() for part in reader.image_info(name, rows))
            return [(m, w, h, 0) for m, h, w in zip(mode, height, width, strict=True)]
        case NDArrayField():
            return [0] * len(rows)
        case _:
            return [(0, len(payload)) for payload in payloads]


def _changed(change: _Change, fields: dict[str, Field], page: int, named: Named) -> Named:
    """A sample as it is to be written."""
    origin, changed = named[0], change.sample(fields, named)
    if _bytes(changed) > page:
        raise RayclError(
            f"{origin}: takes {_bytes(changed) / 2**20:.1f} MiB and a page of the container holds "
            f"{page >> 20}; make its images smaller (`raycl data convert`): give a max_resolution, "
            f"or write_mode jpg"
        )
    return origin, changed


def _converted_image(image: Encoded, storage: Storage) -> Encoded:
    (stored, width, height, _), payload = image
    own: Mode = "jpg" if stored == JPG else "raw"
    fits = max(width, height) <= (storage.max_resolution or math.inf)
    if fits and (storage.write_mode or own) == own:
        return image
    jpeg = payload if stored == JPG else None
    return encode_image(_pixels(image), jpeg, storage.field(own), storage.max_resolution)


def _pixels(image: Encoded) -> np.ndarray:
    """The pixels (H, W, 3) uint8 of an image."""
    (stored, width, height, _), payload = image
    assert payload is not None
    if stored == JPG:
        return decode_jpeg(payload)
    return np.frombuffer(payload, np.uint8).reshape(height, width, 3)


def _changed_sizes(shards: Shards, change: _Change, page: int) -> list[int]:
    """Bytes that some samples take when they are changed."""
    ids = np.unique(np.linspace(0, len(shards), _PROBES, endpoint=False).astype(int))
    probes = (named for i in ids.tolist() for named in _read(shards, i, i + 1))
    return [_bytes(_changed(change, shards.fields, page, probe)[1]) for probe in probes]


def _bytes(sample: Sample) -> int:
    return sum(size(payload) for _, payload in sample.values() if payload is not None)


def _write(
    what: str,
    target: Path,
    options: dict[str, Any],
    shards: Shards,
    tasks: Sequence[Task],
    writing: Writing,
) -> Written:
    files = [(places.shown(file.path), file.size, file.version) for file in shards.files]
    order = {what: digest(map(str, files)), "place": shards.place, **options}
    part = Part("", tasks, shards.classes, f"{what}: {shards.place}")
    return write_parts(target, order, [part], **writing)[0]
