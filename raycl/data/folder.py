"""A directory to write to: on this machine, or wherever pyarrow's file systems reach."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from raycl.data import storage, stores

T = TypeVar("T")

_FLAT = ("s3", "gs", "gcs", "az", "abfs", "abfss")  # a directory is but a prefix of names there


@dataclass(frozen=True)
class Folder:
    """A directory by its path or URI; it need not exist before something is written into it.

    Every method waits for storage that does not answer, `storage.PATIENCE` seconds long.

    Raises:
        OSError: of the local file system, such as a full disk.
        RayclError: storage behind a URI that cannot be reached or may not be used.
    """

    where: str

    def __truediv__(self, name: str) -> Folder:
        base, mark, query = self.where.partition("?")
        return Folder(f"{base.rstrip('/')}/{name}{mark}{query}")

    def __str__(self) -> str:
        return storage.shown(self.where)

    @property
    def name(self) -> str:
        return posixpath.basename(self.where.partition("?")[0])

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError or storage.Unavailable where there is no such file."""

        def whole(file: Any) -> bytes:
            blob = stores.ArrowBlob(file)
            content = blob.read(0, blob.size)
            if len(content) != blob.size:
                raise ConnectionError(f"{len(content)} of {blob.size} bytes came")
            return content

        return self.opened(name, whole)

    def opened(self, name: str, work: Callable[[Any], T]) -> T:
        """What `work` makes of a file, open as pyarrow's; raises as `read` does."""

        def of_open(fs: Any, path: str) -> T:
            with fs.open_input_file(path) as file:
                return work(file)

        return (self / name)._with(of_open)

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes a file whole, over one of that name."""

        def work(fs: Any, path: str) -> None:
            if not (storage.is_uri(self.where) and self.where.startswith(_FLAT)):
                fs.create_dir(posixpath.dirname(path), recursive=True)
            with fs.open_output_stream(path) as file:
                file.write(content)

        (self / name)._with(work)

    def names(self) -> list[str]:
        """Of the files and directories in it, sorted; none where it does not exist."""

        def work(fs: Any, path: str) -> list[str]:
            from pyarrow.fs import FileSelector

            found = fs.get_file_info(FileSelector(path, allow_not_found=True))
            return sorted(info.base_name for info in found)

        return self._with(work)

    def remove(self, name: str) -> None:
        """Removes a file; nothing happens where there is none."""

        def work(fs: Any, path: str) -> None:
            if fs.get_file_info(path).is_file:
                fs.delete_file(path)

        (self / name)._with(work)

    def clear(self) -> None:
        """Removes the directory with everything in it."""
        self._with(lambda fs, path: fs.delete_dir(path))

    def _with(self, work: Callable[[Any, str], T]) -> T:
        """Works with a file system and what it calls this."""
        if storage.is_uri(self.where):
            uri = self.where
            return storage.retried(
                uri, lambda: work(*storage.store(uri).arrow(uri)), storage.PATIENCE
            )
        from pyarrow.fs import LocalFileSystem

        return work(LocalFileSystem(), self.where)
