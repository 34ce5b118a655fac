"""Pages of remote files on a local disk, bounded, and shared by all processes of a node."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from raycl.errors import RayclError

_MAPPED = 64  # pages that a process keeps mapped
_CHECKSUM = 4  # bytes after every page
_AFTER_EVICTION = 0.9  # of the bound, so that not every new page looks at all the old ones
_ABANDONED = 3600.0  # seconds after which the unfinished page of a dead process is removed

_log = logging.getLogger(__name__)


@lru_cache(maxsize=8)
def page_cache(limit: int) -> PageCache:
    """The cache of this process, at most `limit` bytes on disk in RAYCL_CACHE.

    Without that variable it lies in the user's cache directory.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return PageCache(Path(os.environ.get("RAYCL_CACHE") or Path(home) / "raycl"), limit)


class PageCache:
    """Pages as files of their own, with a checksum each; the least recently used go first.

    A page is written aside under a lock and renamed, so no process sees half a page, two that
    want the same page fetch it once, and the lock of a process that dies ends with it. A damaged
    page is fetched again.

    Args:
        directory: on a local disk; made when the first page comes.
        limit: bytes that the pages take at most.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit
        self._mapped: OrderedDict[Path, memoryview] = OrderedDict()
        self._checked: dict[Path, int] = {}  # inodes of pages that this process has found whole
        self._mutex = Lock()

    def has(self, file: str, page: int) -> bool:
        return self._path(file, page).exists()

    def get(self, file: str, page: int, size: int, fetch: Callable[[], memoryview]) -> memoryview:
        """A page of a file, from the disk or else from `fetch`.

        Args:
            file: names one version of one file, for instance its URI, size and ETag.
            size: of this page, in bytes.
        """
        path = self._path(file, page)
        if size + _CHECKSUM > self.limit:
            return fetch()
        while (content := self._load(path, size)) is None:
            with self._claimed(path) as partial:
                if partial is None:
                    continue  # another process has just finished this page, or given it up
                if (content := self._load(path, size)) is None:
                    return self._store(path, partial, fetch())
        return content

    def _path(self, file: str, page: int) -> Path:
        key = hashlib.blake2b(file.encode(), digest_size=16).hexdigest()
        return self.directory / key[:2] / f"{key[2:]}-{page}"

    def _load(self, path: Path, size: int) -> memoryview | None:
        """A page of the disk, if it is there and whole; a damaged one is removed."""
        with self._mutex:
            if path in self._mapped:
                self._mapped.move_to_end(path)
                return self._mapped[path]
        try:
            with open(path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError:
            return None
        except ValueError:  # an empty file cannot be mapped
            content = memoryview(b"")
        with suppress(OSError):
            os.utime(path)  # when it was last used
        page, checksum = content[:size], content[size:]
        whole = len(checksum) == _CHECKSUM and (
            self._checked.get(path) == inode or _checksum(page) == checksum
        )
        if not whole:
            path.unlink(missing_ok=True)
            return None
        with self._mutex:
            self._mapped[path] = page
            self._checked[path] = inode
            if len(self._mapped) > _MAPPED:
                self._mapped.popitem(last=False)
        return page

    def _opened(self, partial: Path) -> BinaryIO:
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            return open(partial, "ab")
        except OSError as error:
            raise RayclError(
                f"{self.directory}: the cache of remote pages cannot be written "
                f"({error.strerror}); set RAYCL_CACHE to a directory of a local disk, or "
                f"data.cache_gb=0 to do without"
            ) from error

    @contextmanager
    def _claimed(self, path: Path) -> Iterator[BinaryIO | None]:
        """The unfinished file of a page, for this process alone; None if it is one no more."""
        partial = _partial(path)
        with self._opened(partial) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                mine = os.stat(partial).st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                mine = False
            try:
                yield file if mine else None
            finally:
                # Gone by now if it has become the page.
                if mine:
                    partial.unlink(missing_ok=True)

    def _store(self, path: Path, partial: BinaryIO, content: memoryview) -> memoryview:
        """Puts a page into its place; a full disk costs the cached copy, not the run."""
        try:
            partial.truncate(0)
            partial.write(content)
            partial.write(_checksum(content))
            partial.flush()
            with self._accounts() as accounts:
                used = _number(accounts) + len(content) + _CHECKSUM
                # No count: the first page ever, or a process was killed here.
                if used > self.limit or _number(accounts) == 0:
                    used = self._evict(len(content) + _CHECKSUM) + len(content) + _CHECKSUM
                os.rename(_partial(path), path)
                _write(accounts, used)
        except OSError as error:
            _log.warning("%s: a page was not kept: %s", self.directory, error.strerror or error)
        return content

    @contextmanager
    def _accounts(self) -> Iterator[BinaryIO]:
        """The file that counts the bytes of all pages, locked."""
        with open(self.directory / "bytes", "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _evict(self, room: int) -> int:
        """Makes room for so many bytes; returns how many are left on disk."""
        pages = []
        for entry in self.directory.glob("??/*"):
            with suppress(FileNotFoundError):
                status = entry.stat()
                if entry.suffix != ".partial":
                    pages.append((status.st_mtime_ns, status.st_size, entry))
                elif status.st_mtime < time.time() - _ABANDONED:
                    entry.unlink(missing_ok=True)
        used = sum(size for _, size, _ in pages)
        if used + room <= self.limit:
            return used
        for _, size, page in sorted(pages):
            page.unlink(missing_ok=True)
            used -= size
            if used + room <= self.limit * _AFTER_EVICTION:
                break
        return used


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _checksum(content: memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM, "little")


def _number(file: BinaryIO) -> int:
    file.seek(0)
    text = file.read()
    return int(text) if text.isdigit() else 0


def _write(file: BinaryIO, number: int) -> None:
    file.truncate(0)
    file.write(str(number).encode())
