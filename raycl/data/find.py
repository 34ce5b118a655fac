"""Finds the files of a data set: paths, directories and globs, on disk or behind a URI."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from raycl.data import index, storage
from raycl.data.remote import THREADS, RemoteFile
from raycl.errors import RayclError

SIDECAR = "dataset.json"
UNFINISHED = ".partial"  # of the directory in which a data set is being written
SHARD = ".beton"

Description = dict[str, Any]

_LISTS = ("shards", "shard_samples", "shard_bytes")  # names, samples and sizes of all files


@dataclass(frozen=True)
class File:
    """A shard as its directory shows it.

    Attributes:
        path: absolute, or a URI.
        size: in bytes.
        version: of a remote file, as listed.
        index: bytes of a remote file's sidecar, 0 if it has none, None if nobody has looked.
        samples: if `dataset.json` tells, for a file of this size.
    """

    path: str
    size: int
    version: str = ""
    index: int | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Found:
    """Files, and what the `dataset.json` of their directories says, by its path or URI.

    `missing` has a message for each directory that lacks files which its description lists.
    """

    files: list[File]
    descriptions: dict[str, Description]
    missing: tuple[str, ...] = ()


def find(spec: str | Path | Sequence[str | Path]) -> Found:
    """The files that paths, directories, globs and URIs name, each once.

    Raises:
        RayclError: there is no such file, or a `dataset.json` is damaged.
    """
    parts = [spec] if isinstance(spec, str | Path) else list(spec)
    if not parts:
        raise RayclError("an empty list of data sets; name a .beton file or a directory")
    if any(storage.is_uri(part) for part in parts):
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(_find, parts))
    else:
        found = [_find(part) for part in parts]
    files = {file.path: file for part in found for file in part.files}
    known = {place: text for part in found for place, text in part.descriptions.items()}
    places = dict.fromkeys(sibling(path, SIDECAR) for path in files)
    described = {place: known[place] if place in known else _described(place) for place in places}
    missing = tuple(dict.fromkeys(message for part in found for message in part.missing))
    return Found(list(files.values()), described, missing)


def sibling(path: str, name: str) -> str:
    """The path or URI of another file of the same directory; of the directory, without a name."""
    base, mark, query = path.partition("?") if storage.is_uri(path) else (path, "", "")
    return f"{base.rpartition('/')[0]}/{name}".rstrip("/") + mark + query


def below(folder: str, name: str) -> str:
    """The URI of a file of a directory."""
    base, mark, query = folder.partition("?")
    return f"{base}/{name}{mark}{query}"


def name_of(path: str) -> str:
    """The name of a file in its directory."""
    return (path.partition("?")[0] if storage.is_uri(path) else path).rpartition("/")[2]


def _find(part: str | Path) -> Found:
    if not storage.is_uri(part):
        return _local(Path(part).absolute())
    uri = storage.checked(str(part))
    if uri.startswith("file://"):
        return _local(Path(unquote(urlsplit(uri).path)))
    return _remote(uri)


def _local(path: Path) -> Found:
    """Absolute: workers have other working directories."""
    if path.is_dir():
        for folder in (path, path.parent):
            if folder.suffix == UNFINISHED:
                raise RayclError(
                    f"{folder}: a data set that is not finished; run the command that writes it "
                    f"again, and it goes on"
                )
        with os.scandir(path) as entries:
            sizes = {e.name: e.stat().st_size for e in entries if e.name.endswith(SHARD)}
        files = [File(str(path / name), sizes[name]) for name in sorted(sizes)]
        if not files:
            folders = [folder.name for folder in path.iterdir() if any(folder.glob(f"*{SHARD}"))]
            hint = f"; did you mean {path / sorted(folders)[0]}?" if folders else ""
            raise RayclError(f"{path}: there is no {SHARD} file in this directory{hint}")
        return _numbered(str(path), files, str(path / SIDECAR), _described(str(path / SIDECAR)))
    if path.exists():
        return Found([File(str(path), path.stat().st_size)], {})
    matches = [Path(match) for match in sorted(glob.glob(str(path)))]
    matches = [match for match in matches if match.is_dir() or match.suffix == SHARD]
    if not matches:
        raise RayclError(f"{path}: there is no such {SHARD} file, directory or glob")
    found = [_local(match) for match in matches]
    missing = tuple(message for part in found for message in part.missing)
    return Found([file for part in found for file in part.files], {}, missing)


def _remote(uri: str) -> Found:
    base, mark, query = uri.partition("?")
    last = base.rpartition("/")[2]
    if last.endswith(SHARD) and not any(sign in last for sign in "*["):
        entry = storage.stat(uri)
        return Found([File(uri, entry.size, entry.version)], {})
    if "*" in last or "[" in last:
        folder, wanted = sibling(uri, ""), last
    else:
        folder, wanted = base.rstrip("/") + mark + query, f"*{SHARD}"
    web = uri.startswith(("http://", "https://"))
    found = _web_folder(folder) if web else _folder(folder)
    files = [file for file in found.files if fnmatch(name_of(file.path), wanted)]
    if not files:
        raise RayclError(f"{storage.redacted(uri)}: there is no {SHARD} file under this URI")
    return Found(files, found.descriptions, found.missing)


def _folder(uri: str) -> Found:
    entries = {name_of(entry.uri): entry for entry in storage.listed(uri)}
    files = [
        File(entry.uri, entry.size, entry.version, _size(entries.get(name + index.SUFFIX)))
        for name, entry in entries.items()
        if name.endswith(SHARD)
    ]
    entry = entries.get(SIDECAR)
    description = _remote_description(entry) if entry else {}
    return _numbered(uri, files, below(uri, SIDECAR), description)


def _web_folder(uri: str) -> Found:
    """Names come from `dataset.json`, and sizes where it tells them."""
    place = below(uri, SIDECAR)
    try:
        description = _remote_description(storage.stat(place))
    except storage.Unavailable as error:
        raise RayclError(
            f"{error}; a web server has no listing, so name the files, or put {SIDECAR} there"
        ) from None
    numbers = _numbers(description)

    def file(name: str) -> File:
        path = below(uri, name)
        return File(path, numbers[name][1] if name in numbers else storage.stat(path).size)

    with ThreadPoolExecutor(THREADS) as pool:
        files = list(pool.map(file, description.get("shards", [])))
    return _numbered(uri, files, place, description)


def _size(entry: storage.Entry | None) -> int:
    return entry.size if entry else 0


def _numbered(folder: str, files: list[File], place: str, description: Description) -> Found:
    """The files with the samples that the description tells, and what it lists beyond them."""
    absent = set(description.get("shards", [])) - {name_of(file.path) for file in files}
    missing = (
        f"{storage.shown(folder)}: {', '.join(sorted(absent))} missing, which {SIDECAR} lists; "
        f"import the data set again, or copy all of it"
    )
    numbers = _numbers(description)
    counted = [
        replace(file, samples=samples) if size == file.size else file
        for file in files
        for samples, size in [numbers.get(name_of(file.path), (None, -1))]
    ]
    return Found(counted, {place: description}, (missing,) if absent else ())


def _numbers(description: Description) -> dict[str, tuple[int, int]]:
    """Samples and bytes of each shard by name, where the description tells them."""
    names, samples, sizes = (description.get(key, []) for key in _LISTS)
    told = zip(names, samples, sizes, strict=False)
    return {name: (n, size) for name, n, size in told if isinstance(n, int) and n >= 0}


def _described(place: str) -> Description:
    if storage.is_uri(place):
        try:
            return _remote_description(storage.stat(place))
        except storage.Unavailable:
            return {}
    path = Path(place)
    if not path.exists():
        return {}
    try:
        return _parsed(path.read_bytes(), place)
    except OSError as error:
        raise RayclError(f"{path}: cannot be read: {error.strerror or error}") from error


def _remote_description(entry: storage.Entry) -> Description:
    file = RemoteFile(entry.uri, entry.size, entry.version)
    return _parsed(bytes(file.read(0, file.size)), file.name)


def _parsed(content: bytes, name: str) -> Description:
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RayclError(f"{name}: cannot be read as JSON: {error}") from error
    if not isinstance(description, dict) or not all(
        isinstance(part, list)
        for part in (description.get("classes") or [], *(description.get(k, []) for k in _LISTS))
    ):
        raise RayclError(f"{name}: expected an object with classes and shards")
    names, *counts = (description.get(key, []) for key in _LISTS)
    if not all(isinstance(shard, str) and "/" not in shard for shard in names):
        raise RayclError(f"{name}: its shards must be names of files beside it")
    if not all(type(n) is int and 0 <= n < 1 << 63 for part in counts for n in part):
        raise RayclError(f"{name}: its shard_samples and shard_bytes must be counts")
    return description
