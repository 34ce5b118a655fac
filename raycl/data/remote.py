"""A remote file as a source of bytes: whole pages through the cache, or just the samples wanted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from raycl.beton.lazy import lazy
from raycl.data import storage
from raycl.data.cache import page_cache
from raycl.errors import RayclError

# A request costs about as long as a few MB of a stream: a gap of this many bytes is read along, and
# a page is read whole, to be kept, when this share of it is wanted.
GAP = 512 << 10
SHARE = 0.25
THREADS = 32


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URI.

    Attributes:
        uri: without credentials.
        size: in bytes, as listed.
        version: as listed, for servers that tell none with the file itself.
        cache: bytes of the page cache on this node; 0 reads everything from the server.
        greedy: always read whole pages, because all of them fit into the cache.
    """

    uri: str
    size: int
    version: str = ""
    cache: int = 0
    greedy: bool = False

    @property
    def name(self) -> str:
        return storage.redacted(self.uri)

    def read(self, start: int, size: int) -> memoryview:
        """Parts that were cut off on their way are asked for again."""

        def work() -> memoryview:
            content = self._blob.read(start, size)
            if len(content) != size:
                raise ConnectionError(f"{len(content)} of {size} bytes came from byte {start} on")
            return memoryview(content)

        return storage.retried(self.uri, work, storage.PATIENCE) if size else memoryview(b"")

    def gather(self, starts: np.ndarray, sizes: np.ndarray, page_size: int) -> list[memoryview]:
        parts = [memoryview(b"")] * len(starts)
        wanted = np.flatnonzero(sizes > 0)
        if not len(wanted):
            return parts
        key = self._key  # made here, or every thread would open the file
        cache = page_cache(self.cache) if self.cache else None
        jobs: list[tuple[Callable[[], memoryview], int, np.ndarray]] = []
        for page, members in grouped(starts[wanted] // page_size):
            members = wanted[members]
            begin = page * page_size
            size = min(page_size, self.size - begin)
            share = sizes[members].sum() / size
            if cache and (self.greedy or share >= SHARE or cache.has(key, page)):
                fetch = partial(self.read, begin, size)
                jobs.append((partial(cache.get, key, page, size, fetch), begin, members))
                continue
            for a, b, chosen in coalesced(starts[members], sizes[members]):
                jobs.append((partial(self.read, a, b - a), a, members[chosen]))
        for (_, begin, members), content in zip(jobs, _run([job[0] for job in jobs]), strict=True):
            for index in members.tolist():
                at = int(starts[index]) - begin
                parts[index] = content[at : at + int(sizes[index])]
        return parts

    @lazy
    def _blob(self) -> storage.Blob:
        blob = storage.retried(
            self.uri, lambda: storage.store(self.uri).open(self.uri), storage.PATIENCE
        )
        if blob.size != self.size:
            raise RayclError(
                f"{self.name}: has changed: {blob.size} bytes, and {self.size} when the data set "
                f"was opened; open it again"
            )
        return blob

    @lazy
    def _key(self) -> str:
        return f"{self.uri}|{self.size}|{self._blob.version or self.version}"

    def __getstate__(self) -> dict[str, object]:
        # Without the connection.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def grouped(keys: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The distinct keys, ascending, and the positions of each, (m,)."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    return [(int(keys[at[0]]), at) for at in np.split(order, edges)]


def coalesced(
    starts: np.ndarray, sizes: np.ndarray, gap: int = GAP
) -> list[tuple[int, int, np.ndarray]]:
    """Ranges that hold all parts, without gaps of more than `gap` bytes: (begin, end, members)."""
    order = np.argsort(starts, kind="stable")
    ends = np.maximum.accumulate((starts + sizes)[order])
    edges = np.flatnonzero(starts[order][1:] - ends[:-1] > gap) + 1
    return [
        (int(starts[at].min()), int((starts + sizes)[at].max()), at)
        for at in np.split(order, edges)
    ]


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="raycl-read")


def _run(jobs: list[Callable[[], memoryview]]) -> list[memoryview]:
    if len(jobs) == 1:
        return [jobs[0]()]
    return list(_threads().map(lambda job: job(), jobs))
