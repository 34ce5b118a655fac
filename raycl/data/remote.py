"""A remote file as a source of bytes: whole pages through the cache, or just the samples wanted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from raycl.beton.lazy import lazy
from raycl.data import storage
from raycl.data.cache import PageCache, page_cache
from raycl.errors import RayclError

# A request costs about as long as a few MB of a stream: a gap of this many bytes is read along, and
# a page is read whole, to be kept, when this share of it is wanted.
GAP = 512 << 10
SHARE = 0.25
THREADS = 16


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
        return memoryview(self._read(start, size))

    def gather(self, starts: np.ndarray, sizes: np.ndarray, page_size: int) -> list[memoryview]:
        parts = [memoryview(b"")] * len(starts)
        jobs: list[tuple[Callable[[], memoryview], int, np.ndarray]] = []
        wanted = np.flatnonzero(sizes > 0)
        for page, members in grouped(starts[wanted] // page_size):
            members = wanted[members]
            begin = page * page_size
            end = min(begin + page_size, self.size)
            if self._whole(page, int(sizes[members].sum()), end - begin):
                jobs.append((self._page(page, begin, end), begin, members))
            else:
                jobs += [
                    (self._range(a, b), a, members[chosen])
                    for a, b, chosen in coalesced(starts[members], sizes[members])
                ]
        for (_, begin, members), content in zip(jobs, _run([job[0] for job in jobs]), strict=True):
            for index in members.tolist():
                at = int(starts[index]) - begin
                parts[index] = content[at : at + int(sizes[index])]
        return parts

    def _whole(self, page: int, wanted: int, size: int) -> bool:
        if self._pages is None:
            return wanted >= 0.9 * size
        return self.greedy or wanted >= SHARE * size or self._pages.has(self._key, page)

    def _page(self, page: int, begin: int, end: int) -> Callable[[], memoryview]:
        pages = self._pages
        if pages is None:
            return self._range(begin, end)
        return lambda: pages.get(
            self._key, page, end - begin, lambda: self._read(begin, end - begin)
        )

    def _range(self, begin: int, end: int) -> Callable[[], memoryview]:
        return lambda: memoryview(self._read(begin, end - begin))

    def _read(self, start: int, size: int) -> bytes:
        """A part of the file, whole; parts that were cut off on their way are asked for again."""

        def work() -> bytes:
            content = self._blob.read(start, size)
            if len(content) != size:
                raise ConnectionError(f"{len(content)} of {size} bytes came from byte {start} on")
            return content

        return storage.retried(self.uri, work) if size else b""

    @lazy
    def _blob(self) -> storage.Blob:
        blob = storage.retried(self.uri, lambda: storage.store(self.uri).open(self.uri))
        if blob.size != self.size:
            raise RayclError(
                f"{self.name}: has changed: {blob.size} bytes, and {self.size} when the data set "
                f"was opened; open it again"
            )
        return blob

    @property
    def _pages(self) -> PageCache | None:
        return page_cache(self.cache) if self.cache else None

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
