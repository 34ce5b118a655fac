"""WebDataset shards: tar files in which the members of a sample share a name, one after the other.

    0001.jpg  0001.cls  0002.jpg  0002.cls        labels as text: an index, or the name of a class
    0001.png  0001.json  ...                      labels under a key of an object
    0001.jpg  0002.jpg                            no labels

SRC is a tar file, a directory of them or a glob; see `raycl.data.importers.by_split` for splits.
Samples keep their order, since such shards are mixed when they are made.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from raycl.data.importers import Item, Split, by_split, class_names, stamp
from raycl.data.importers.imagefolder import SUFFIXES
from raycl.errors import RayclError

DEFAULT_KEY = "label"


def splits(source: str | Path, image: str | None = None, label: str | None = None) -> list[Split]:
    """Lists the samples of every split from the headers of the tar files.

    Args:
        image: ending of the members that hold the image ("jpg", "left.png"); None: those that end
            like an image.
        label: ending of the members that hold the label as text, or a key in `.json` members;
            None: `.cls`, and "label" in `.json` if there are no `.cls`.

    Raises:
        RayclError: naming the file and member: no tar file, damaged or compressed, samples without
            an image or with several, or labels that are missing or contradict each other.
    """
    files = by_split(source, ".tar")
    read = {name: [_listed(path, image, label) for path in paths] for name, paths in files.items()}
    members = {name: _Members.joined(paths, read[name]) for name, paths in files.items()}
    texts = {name: _labels(members[name], read[name]) for name in files}
    labelled = {name: part for name, part in texts.items() if part is not None}
    indices, classes = class_names(labelled, lambda name, i: members[name].origin(i))
    return [
        Split(
            name,
            members[name].labelled(indices[name]) if name in indices else members[name],
            name in indices,
            classes if name in indices else None,
            stamp=stamp(paths),
        )
        for name, paths in files.items()
    ]


@dataclass(frozen=True)
class _Members:
    """Members of tar files, by position.

    Attributes:
        tars: the files.
        tar, start, size: of every member, (N,): number of its file, first byte, bytes.
        names: of the members.
        labels: indices of the classes, (N,); None where there are none.
    """

    tars: list[Path]
    tar: np.ndarray
    start: np.ndarray
    size: np.ndarray
    names: Sequence[str]
    labels: np.ndarray | None = None

    @classmethod
    def joined(cls, paths: list[Path], listed: list[_Listed]) -> Self:
        spans = np.array([span for part in listed for span in part.spans], np.int64).reshape(-1, 2)
        tar = np.repeat(np.arange(len(paths)), [len(part.spans) for part in listed])
        names = [name for part in listed for name in part.names]
        return cls([path.absolute() for path in paths], tar, spans[:, 0], spans[:, 1], names)

    def labelled(self, labels: list[int]) -> _Members:
        return _Members(
            self.tars, self.tar, self.start, self.size, self.names, np.array(labels, np.int64)
        )

    def origin(self, i: int) -> str:
        return f"{self.tars[self.tar[i]]}: {self.names[i]}"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, part: slice) -> _Members:
        tar = self.tar[part]
        first, last = (int(tar[0]), int(tar[-1])) if len(tar) else (0, -1)
        return _Members(
            self.tars[first : last + 1],
            tar - first,
            self.start[part],
            self.size[part],
            self.names[part],
            None if self.labels is None else self.labels[part],
        )

    def __iter__(self) -> Iterator[Item]:
        for number, path in enumerate(self.tars):
            with path.open("rb") as file:
                for i in np.flatnonzero(self.tar == number):
                    file.seek(int(self.start[i]))
                    content = file.read(int(self.size[i]))
                    label = None if self.labels is None else int(self.labels[i])
                    yield Item(content, label, self.origin(int(i)))


@dataclass
class _Listed:
    """What the headers of one tar file say: its images, and the texts of their labels."""

    spans: list[tuple[int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)


def _listed(path: Path, image: str | None, label: str | None) -> _Listed:
    found = _Listed()
    key: str | None = None
    sample: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if key != folder + slash + stem:
                    _add(found, path, tar, key, sample, image, label)
                    key, sample = folder + slash + stem, {}
                if ending.lower() in sample:
                    raise RayclError(f"{path}: {member.name}: this member is there twice")
                sample[ending.lower()] = member
                tar.members = []  # type: ignore[attr-defined]  # it would keep millions
            _add(found, path, tar, key, sample, image, label)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RayclError(
            f"{path}: not a readable tar file: {error}; it must be whole, and not compressed"
        ) from error
    if not found.names:
        raise RayclError(f"{path}: this tar file holds no samples")
    return found


def _add(
    found: _Listed,
    path: Path,
    tar: tarfile.TarFile,
    key: str | None,
    sample: dict[str, tarfile.TarInfo],
    image: str | None,
    label: str | None,
) -> None:
    """Adds the sample whose members have just ended."""
    if key is None:
        return
    images = [end for end in sample if (end == image if image else f".{end}".endswith(SUFFIXES))]
    if len(images) != 1:
        wanted = f".{image}" if image else "an image"
        raise RayclError(
            f"{path}: {key}: one member must be {wanted}, it has "
            f"{', '.join(f'.{end}' for end in sample)}; name its ending with image_column"
        )
    member = sample[images[0]]
    found.spans.append((member.offset_data, member.size))
    found.names.append(member.name)
    found.texts.append(_text(path, tar, sample, label))


def _text(
    path: Path, tar: tarfile.TarFile, sample: dict[str, tarfile.TarInfo], label: str | None
) -> str | None:
    """The label of a sample as text; None if it has none."""
    plain = sample.get((label or "cls").lower())
    if plain is not None:
        return _read(tar, plain).decode("utf-8", "replace").strip()
    described = sample.get("json")
    if described is None:
        return None
    try:
        content: Any = json.loads(_read(tar, described))
    except ValueError as error:
        raise RayclError(f"{path}: {described.name}: not JSON: {error}") from error
    value = content.get(label or DEFAULT_KEY) if isinstance(content, dict) else None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise RayclError(
            f"{path}: {described.name}: {label or DEFAULT_KEY!r} is {value!r}, where an index or "
            f"the name of a class is needed; name another key with label_column"
        )
    return None if value is None else str(value)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a plain file
    return file.read()


def _labels(members: _Members, listed: list[_Listed]) -> list[str] | None:
    """The texts of all labels; None if no sample has one."""
    texts = [text for part in listed for text in part.texts]
    missing = next((i for i, text in enumerate(texts) if text is None), None)
    if missing is None:
        return [text for text in texts if text is not None]
    if any(text is not None for text in texts):
        raise RayclError(
            f"{members.origin(missing)}: has no label, and other samples have; complete it, or "
            f"remove it"
        )
    return None
