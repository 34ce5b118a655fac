"""Data sets from data sets: cut into other shards, put together, or with images stored otherwise.

Fields of any type are carried over. The bytes of a value are copied as they are, unless an image is
to be stored otherwise; they are not decoded, so `raycl data verify` is what finds damaged ones.
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
from typing import Any, TypeAlias, Unpack

import numpy as np

from raycl.beton import (
    BetonError,
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
from raycl.data import storage as places
from raycl.data.importers import PAGE, Mode, digest
from raycl.data.shards import Shards
from raycl.data.sink import Encoded, Storage, encode_image, size
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
    page = max(PAGE, _page(shards))
    sizes = [] if storage.shard_samples else _converted_sizes(shards, storage, page)
    each = per_shard(storage.shard_samples, storage.shard_bytes, sizes)
    tasks = [_stretch(shards, part, page, storage) for part in cut(len(shards), each)]
    return _write("convert", target, asdict(storage), shards, tasks, writing)


@dataclass(frozen=True)
class _Stretch:
    """The task to write samples `start` to `stop` of some files, counted through them.

    Attributes:
        storage: how images are stored; None: as they are.
    """

    paths: list[str]
    start: int
    stop: int
    page: int
    storage: Storage | None

    @property
    def samples(self) -> int:
        return self.stop - self.start

    def write(self, path: Path, threads: int, advance: Advance) -> None:
        shards = Shards(self.paths, cache_gb=0)
        samples = _read(shards, self.start, self.stop)
        if self.storage is not None:
            change = partial(_converted, shards.fields, self.storage, self.page)
            samples = in_threads(change, samples, threads)
        with Writer(path, shards.fields, page_size=self.page) as writer:
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


def _stretch(shards: Shards, part: slice, page: int, storage: Storage | None) -> _Stretch:
    """The task for a stretch of a data set; it names only the files that it needs."""
    (first, last), _ = shards.locate(np.array([part.start, part.stop - 1]))
    before = int(_starts(shards)[first])
    paths = [file.path for file in shards.files[first : last + 1]]
    return _Stretch(paths, part.start - before, part.stop - before, page, storage)


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


def _converted(fields: dict[str, Field], storage: Storage, page: int, named: Named) -> Named:
    """A sample with its images stored as they are to be."""
    origin, sample = named
    changed = dict(sample)
    for name, field in fields.items():
        if isinstance(field, RGBImageField):
            try:
                changed[name] = _converted_image(sample[name], storage)
            except (BetonError, ValueError) as error:
                raise RayclError(f"{origin}, field {name!r}: {error}") from error
    if _bytes(changed) > page:
        raise RayclError(
            f"{origin}: takes {_bytes(changed) / 2**20:.1f} MiB and a page of the container holds "
            f"{page >> 20}; give a max_resolution, or write_mode jpg"
        )
    return origin, changed


def _converted_image(image: Encoded, storage: Storage) -> Encoded:
    (stored, width, height, _), payload = image
    own: Mode = "jpg" if stored == JPG else "raw"
    fits = max(width, height) <= (storage.max_resolution or math.inf)
    if fits and (storage.write_mode or own) == own:
        return image
    assert payload is not None
    if stored == JPG:
        return encode_image(
            decode_jpeg(payload), payload, storage.field(own), storage.max_resolution
        )
    pixels = np.frombuffer(payload, np.uint8).reshape(height, width, 3)
    return encode_image(pixels, None, storage.field(own), storage.max_resolution)


def _converted_sizes(shards: Shards, storage: Storage, page: int) -> list[int]:
    """Bytes that some samples take when they are converted."""
    ids = np.unique(np.linspace(0, len(shards), _PROBES, endpoint=False).astype(int))
    probes = (named for i in ids.tolist() for named in _read(shards, i, i + 1))
    return [_bytes(_converted(shards.fields, storage, page, probe)[1]) for probe in probes]


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
