"""The two libraries that reach object stores, behind one face (`storage.Store`)."""

from __future__ import annotations

import posixpath
from typing import Any
from urllib.parse import urlsplit

_LEAST = 4 << 10


class ArrowStore:
    """A file system of pyarrow."""

    def __init__(self, uri: str) -> None:
        from pyarrow import fs

        # This finds out the region of a bucket, too.
        self._fs, _ = fs.FileSystem.from_uri(uri)

    def stat(self, uri: str) -> tuple[int, str]:
        from pyarrow import fs

        info = self._fs.get_file_info(_path(uri))
        if info.type != fs.FileType.File:
            raise FileNotFoundError(uri)
        return info.size, str(info.mtime_ns)

    def list(self, uri: str) -> list[tuple[str, int, str]]:
        from pyarrow import fs

        found = self._fs.get_file_info(fs.FileSelector(_path(uri)))
        return [(i.base_name, i.size, str(i.mtime_ns)) for i in found if i.type == fs.FileType.File]

    def open(self, uri: str) -> ArrowBlob:
        return ArrowBlob(self._fs.open_input_file(_path(uri)))

    def arrow(self, uri: str) -> tuple[Any, str]:
        return self._fs, _path(uri)


class ArrowBlob:
    def __init__(self, file: Any) -> None:
        self._file = file
        self.size: int = file.size()
        self.version: str = (file.metadata() or {}).get("ETag", b"").decode()

    def read(self, start: int, size: int) -> bytes:
        # The AWS library puts the text of an error, too, into a buffer of the size asked for, and
        # what does not fit there becomes an unknown error.
        content: bytes = self._file.read_at(max(size, _LEAST), start)
        return content[:size]


class FsspecStore:
    """A file system of fsspec, for a scheme that pyarrow does not have."""

    def __init__(self, scheme: str) -> None:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False}
        if scheme in ("http", "https"):
            import aiohttp

            options["client_kwargs"] = {
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=20)
            }
        self._fs = fsspec.filesystem(scheme, **options)

    def stat(self, uri: str) -> tuple[int, str]:
        info = self._fs.info(uri)
        if info.get("size") is None:
            raise ValueError("the server does not tell its size")
        return int(info["size"]), _version(info)

    def list(self, uri: str) -> list[tuple[str, int, str]]:
        found = self._fs.ls(uri, detail=True)
        return [
            (posixpath.basename(info["name"]), int(info["size"]), _version(info))
            for info in found
            if info["type"] == "file"
        ]

    def open(self, uri: str) -> FsspecBlob:
        return FsspecBlob(self._fs, uri, *self.stat(uri))

    def arrow(self, uri: str) -> tuple[Any, str]:
        from pyarrow import fs

        return fs.PyFileSystem(fs.FSSpecHandler(self._fs)), self._fs._strip_protocol(uri)


class FsspecBlob:
    def __init__(self, fs: Any, uri: str, size: int, version: str) -> None:
        self._fs, self._uri, self.size, self.version = fs, uri, size, version

    def read(self, start: int, size: int) -> bytes:
        content: bytes = self._fs.cat_file(self._uri, start=start, end=start + size)
        if len(content) > size:
            raise ValueError("the server does not serve parts of files (HTTP ranges)")
        return content


def _path(uri: str) -> str:
    """What pyarrow calls a file: bucket and key."""
    parts = urlsplit(uri)
    if parts.scheme in ("hdfs", "viewfs"):
        return parts.path.rstrip("/")
    container = parts.netloc.partition("@")[0] if parts.scheme.startswith("abfs") else ""
    return f"{container or parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _version(info: dict[str, Any]) -> str:
    known = ("ETag", "etag", "Last-Modified", "last_modified", "mtime")
    return str(next((info[name] for name in known if info.get(name)), ""))
