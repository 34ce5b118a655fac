"""A data set of one or many `.beton` files, with one index over all of them."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from raycl.beton import Reader
from raycl.beton.fields import Field
from raycl.beton.reader import open_head
from raycl.beton.source import MappedFile, Source
from raycl.data import index, storage
from raycl.data.find import SIDECAR, Description, File, find, name_of, sibling
from raycl.data.remote import THREADS, RemoteFile, grouped
from raycl.errors import RayclError

T = TypeVar("T")

CACHE_GB = 20.0
_TABLES = 1 << 30  # bytes that the tables of all readers kept open may take
_ROW = 48  # bytes of these per sample, about


class Shards:
    """The samples of several files, numbered through.

    Files of a directory or a glob are sorted by name, and a list keeps its order. Opening reads the
    heads of those files whose `dataset.json` does not tell their samples, which finds truncated
    ones; the rest is read when a sample is asked for. A pickled data set opens nothing again.

    Args:
        spec: a `.beton` file, a directory of them, a glob, a URI of these, or a list.
        cache_gb: bound in GB of the node's cache of remote pages; 0 for none.

    Attributes:
        files: the files with their sizes, in the order of the samples.
        paths: those of the files, absolute, or URIs.
        place: what messages call the data set: its directory.
        bytes: size of all files.
        fields: the fields by name, the same in all files.
        classes: names of the labels, from the `dataset.json` beside the files, if there is one.

    Raises:
        RayclError: there are no files or no samples, a file is damaged or cannot be reached, files
            differ in their fields, or one that `dataset.json` lists is missing.
    """

    def __init__(
        self, spec: str | Path | Sequence[str | Path], *, cache_gb: float = CACHE_GB
    ) -> None:
        found = find(spec)
        if found.missing:
            raise RayclError(found.missing[0])
        self.files = found.files
        self.bytes = sum(file.size for file in self.files)
        self._remote = any(storage.is_uri(file.path) for file in self.files)
        self._cache = int(cache_gb * 1e9)
        self.fields: dict[str, Field] = {}
        unknown = [i for i, file in enumerate(self.files) if file.samples is None or i == 0]
        for shard, (count, fields) in zip(unknown, self._each(self._head, unknown), strict=True):
            self.fields = self.fields or fields
            self._check_fields(shard, fields)
            self.files[shard] = replace(self.files[shard], samples=count)
        samples = [file.samples or 0 for file in self.files]
        self._starts = np.concatenate([[0], np.cumsum(samples, dtype=np.int64)])
        if not len(self):
            first = storage.shown(self.files[0].path)
            raise RayclError(
                f"{self.place if len(self.files) > 1 else first}: the data set has no samples"
            )
        self.classes = _classes(found.descriptions)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_columns")}

    @property
    def paths(self) -> list[str]:
        return [file.path for file in self.files]

    @property
    def place(self) -> str:
        return storage.shown(sibling(self.files[0].path, ""))

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of every sample, and its row there; both int64 in the shape of `ids`."""
        ids = np.asarray(ids, np.int64)
        wrong = (ids < 0) | (ids >= len(self))
        if wrong.any():
            raise RayclError(
                f"{self.place}: there is no sample {ids[wrong].flat[0]}; the data set has "
                f"{len(self)}, counted from 0"
            )
        shard = np.searchsorted(self._starts, ids, side="right") - 1
        return shard, ids - self._starts[shard]

    def reader(self, shard: int) -> Reader:
        """The reader of a file, opened when it is first asked for."""
        reader = self._readers(shard)
        self._check_fields(shard, reader.fields)
        samples = int(self._starts[shard + 1] - self._starts[shard])
        if len(reader) != samples:
            raise RayclError(
                f"{reader.name}: holds {len(reader)} samples, and {samples} when the data set was "
                f"opened or as {SIDECAR} tells; write the data set again"
            )
        return reader

    def payloads(self, ids: np.ndarray, fields: Sequence[str]) -> dict[str, list[memoryview]]:
        """The encoded bytes of these samples by field; empty where a damaged file has lost them.

        Local files are not copied. Of remote ones, samples of a page come together, pages in
        parallel; pages that are wanted for a good part are read whole and kept on this node.
        """
        groups = self._grouped(ids)
        found = self._each(lambda g: self.reader(g[0]).payloads(g[2], fields), groups)
        if len(groups) == 1:
            return found[0]
        result = {field: [_NOTHING] * len(ids) for field in fields}
        for (_, at, _), parts in zip(groups, found, strict=True):
            for field, column in result.items():
                for position, part in zip(at.tolist(), parts[field], strict=True):
                    column[position] = part
        return result

    def image_info(self, ids: np.ndarray, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mode (0 jpg, 1 raw), height and width of the images of these samples, each (n,)."""
        mode, height, width = self._scattered(
            ids, lambda reader, rows: reader.image_info(field, rows)
        )
        return mode, height, width

    def numbers(self, ids: np.ndarray, field: str) -> np.ndarray:
        """Values of a float or int field of these samples, (n,); reads their shards alone."""
        return self._scattered(ids, lambda reader, rows: (reader.numbers(rows, field),))[0]

    def column(self, field: str) -> np.ndarray:
        """All values of a float or int field, (N,); read once, so not to be written to."""
        if field not in self._columns:
            shards = range(len(self.files))
            values = self._each(lambda shard: self.reader(shard).column(field), shards)
            self._columns[field] = np.concatenate(values)
        return self._columns[field]

    def pages(self) -> tuple[np.ndarray, np.ndarray | None]:
        """What lies together in the files.

        Returns:
            Samples of each page that has any, over all shards in order, (P,) int32; and the sample
            ids in page order, (N,) int64, or None where they ascend by page already.
        """
        found = self._each(self._pages, range(len(self.files)))
        counts = np.concatenate([part for part, _ in found])
        if all(rows is None for _, rows in found):
            return counts, None
        ids = [
            start + (np.arange(end - start) if rows is None else rows)
            for start, end, (_, rows) in zip(self._starts, self._starts[1:], found, strict=False)
        ]
        return counts, np.concatenate(ids)

    def describe(self, index: int) -> str:
        """Where a sample lies, for messages: file and sample."""
        shard, row = self.locate(np.array(index))
        return f"{storage.shown(self.files[int(shard)].path)}, sample {int(row)}"

    def read(self, index: int) -> dict[str, Any]:
        """One sample, decoded as by `Reader.read`."""
        shard, row = self.locate(np.array(index))
        return self.reader(int(shard)).read(int(row))

    def verify(self) -> Iterator[str]:
        """Decodes everything and yields a line for each value or file that is damaged."""
        for shard in range(len(self.files)):
            try:
                yield from self.reader(shard).verify()
            except RayclError as error:
                yield str(error)

    @cached_property
    def _readers(self) -> Callable[[int], Reader]:
        """Opens the file of a shard; the last ones used stay open."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        samples = sum(file.samples or 0 for file in self.files) / len(self.files)
        limit = min(descriptors, int(_TABLES / (samples * _ROW + 4096)))
        return lru_cache(max(16, limit))(lambda shard: Reader(self._source(shard)))

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}

    def _source(self, shard: int) -> Source:
        file = self.files[shard]
        if not storage.is_uri(file.path):
            return MappedFile(file.path)
        remote = RemoteFile(
            file.path, file.size, file.version, self._cache, greedy=self.bytes <= self._cache
        )
        sidecar = self._sidecar(file)
        return index.indexed(remote, sidecar) if sidecar else remote

    def _sidecar(self, file: File) -> Source | None:
        """The sidecar of a shard, if it has one."""
        place = sibling(file.path, name_of(file.path) + index.SUFFIX)
        if not storage.is_uri(place):
            return MappedFile(place) if Path(place).exists() else None
        size = file.index
        if size is None:
            try:
                size = storage.stat(place).size
            except storage.Unavailable:
                return None
        return RemoteFile(place, size) if size else None

    def _head(self, shard: int) -> tuple[int, dict[str, Field]]:
        """Samples and fields of a file. The reader of a remote one is kept, a local one is not."""
        path = self.files[shard].path
        if storage.is_uri(path):
            reader = self._readers(shard)
            return len(reader), reader.fields
        head, fields = open_head(MappedFile(path))
        return head.samples, fields

    def _pages(self, shard: int) -> tuple[np.ndarray, np.ndarray | None]:
        sidecar = self._sidecar(self.files[shard])
        counts = index.stored_counts(sidecar, self.files[shard].size) if sidecar else None
        if counts is not None and counts.sum() == self._starts[shard + 1] - self._starts[shard]:
            return counts, None
        return index.page_counts(self.reader(shard))

    def _check_fields(self, shard: int, fields: dict[str, Field]) -> None:
        if fields != self.fields:
            first, path = (storage.shown(self.files[i].path) for i in (0, shard))
            raise RayclError(
                f"{path}: its fields ({_listed(fields)}) are not those of {first} "
                f"({_listed(self.fields)}); shards of one data set have the same fields"
            )

    def _grouped(self, ids: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """By shard: the positions in `ids`, and the rows there."""
        shard, row = self.locate(ids)
        return [(key, at, row[at]) for key, at in grouped(shard)]

    def _scattered(
        self, ids: np.ndarray, read: Callable[[Reader, np.ndarray], tuple[np.ndarray, ...]]
    ) -> list[np.ndarray]:
        """What `read` gives for the rows of each shard, put together in the order of `ids`."""
        nothing = np.zeros(0, np.int64)
        groups = self._grouped(ids) or [(0, nothing, nothing)]
        found = self._each(lambda group: read(self.reader(group[0]), group[2]), groups)
        result = [np.empty(len(ids), part.dtype) for part in found[0]]
        for (_, at, _), parts in zip(groups, found, strict=True):
            for whole, part in zip(result, parts, strict=True):
                whole[at] = part
        return result

    def _each(self, work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        """Calls `work` for shards, in parallel where it waits for a server."""
        if len(items) < 2 or not self._remote:
            return [work(item) for item in items]
        with ThreadPoolExecutor(min(THREADS, len(items))) as pool:
            return list(pool.map(work, items))


_NOTHING = memoryview(b"")


def _classes(descriptions: dict[str, Description]) -> list[str] | None:
    classes: list[str] | None = None
    for place, description in descriptions.items():
        here = description.get("classes")
        if here is None:
            continue
        if classes is not None and here != classes:
            raise RayclError(
                f"{storage.shown(place)}: its classes are not those of the directories before it; "
                f"their labels cannot be mixed"
            )
        classes = [str(name) for name in here]
    return classes


def _listed(fields: dict[str, Field]) -> str:
    return ", ".join(f"{name}: {type(field).__name__}" for name, field in fields.items())
