"""Parquet files with the bytes of images in a column, Hugging Face's among them.

    image: binary, label: int64 or string
    image: struct<bytes: binary, path: string>, label: int64         as `datasets` writes them

SRC is a file, a directory or a glob; see `raycl.data.importers.by_split` for splits. The names of
classes come from the metadata that `datasets` leaves in the schema, or are the labels themselves
where those are text. Rows keep their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycl.data.importers import Item, Split, by_split, class_names, stamp
from raycl.errors import RayclError

_IMAGE_NAMES = ("image", "img", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "cls", "fine_label")
_READ_ROWS = 64  # rows of images in memory at a time


def splits(source: str | Path, image: str | None = None, label: str | None = None) -> list[Split]:
    """Lists the rows of every split, and reads their labels.

    Args:
        image: name of the column of images; None: the only one that can be one, or that is called
            image, img, jpg or png.
        label: name of the column of labels; None: label, labels, cls or fine_label, if there is
            one.

    Raises:
        RayclError: naming the file: no Parquet, no such column, other types than those of the first
            file, or labels that are missing or beyond the classes.
    """
    files = by_split(source, ".parquet")
    first = next(iter(files.values()))[0]
    schema = _opened(first).schema_arrow
    columns = _Columns(_image_column(first, schema, image), _label_column(first, schema, label))
    rows = {name: _rows(paths, columns) for name, paths in files.items()}
    classes: list[str] | None = None
    if columns.label is not None:
        labels = {name: _labels(paths, columns.label) for name, paths in files.items()}
        classes = _class_names(schema, columns.label)
        indices, classes = _indices(labels, classes, rows)
        rows = {
            name: _Rows(part.groups, columns, np.array(indices[name], np.int64))
            for name, part in rows.items()
        }
    return [
        Split(name, rows[name], columns.label is not None, classes, stamp=stamp(paths))
        for name, paths in files.items()
    ]


class _Columns(NamedTuple):
    image: str
    label: str | None


class _Group(NamedTuple):
    """Rows `start` to `stop` of a row group; its first row is row `before` of the file."""

    path: Path
    number: int
    before: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Rows:
    """Rows of Parquet files, in stretches of their row groups."""

    groups: list[_Group]
    columns: _Columns
    labels: np.ndarray | None

    def __len__(self) -> int:
        return sum(group.stop - group.start for group in self.groups)

    def __getitem__(self, part: slice) -> _Rows:
        start, stop, _ = part.indices(len(self))
        groups, position = [], 0
        for group in self.groups:
            low = max(start - position, 0) + group.start
            high = min(stop - position + group.start, group.stop)
            if low < high:
                groups.append(group._replace(start=low, stop=high))
            position += group.stop - group.start
        return _Rows(groups, self.columns, None if self.labels is None else self.labels[part])

    def __iter__(self) -> Iterator[Item]:
        position = 0
        for group in self.groups:
            for number, value in _values(group, self.columns.image):
                origin = f"{group.path}, row {group.before + number}"
                label = None if self.labels is None else int(self.labels[position])
                yield Item(_content(value, origin), label, origin)
                position += 1

    def origin(self, position: int) -> str:
        for group in self.groups:
            if position < group.stop - group.start:
                return f"{group.path}, row {group.before + group.start + position}"
            position -= group.stop - group.start
        raise IndexError(position)


def _values(group: _Group, column: str) -> Iterator[tuple[int, Any]]:
    """Rows of a group that belong to the stretch: their numbers in the group, and their values."""
    number = 0
    try:
        with pq.ParquetFile(group.path) as file:
            batches = file.iter_batches(_READ_ROWS, row_groups=[group.number], columns=[column])
            for batch in batches:
                for value in batch.column(0):
                    if number >= group.stop:
                        return
                    if number >= group.start:
                        yield number, value.as_py()
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise RayclError(
            f"{group.path}, row {group.before + number}: cannot be read: {error}"
        ) from error


def _content(value: Any, origin: str) -> bytes:
    content = value["bytes"] if isinstance(value, dict) else value
    if content is None:
        path = value.get("path") if isinstance(value, dict) else None
        hint = f"; its bytes are not embedded, only the path {path!r} is" if path else ""
        raise RayclError(f"{origin}: holds no image{hint}")
    found: bytes = content
    return found


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise RayclError(f"{path}: not a readable Parquet file: {error}") from error


def _image_column(path: Path, schema: pa.Schema, name: str | None) -> str:
    fit = [field.name for field in schema if _can_be_image(field.type)]
    if name is not None:
        _known(path, schema, name, "image_column")
        if name not in fit:
            raise RayclError(
                f"{path}: column {name!r} is {schema.field(name).type}, where the bytes of image "
                f"files are needed (binary, or a struct of bytes and path)"
            )
        return name
    named = [name for name in _IMAGE_NAMES if name in fit]
    if named:
        return named[0]
    if len(fit) == 1:
        return fit[0]
    listed = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise RayclError(f"{path}: name the column of images with image_column; there are {listed}")


def _can_be_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _can_be_image(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(path: Path, schema: pa.Schema, name: str | None) -> str | None:
    if name is not None:
        _known(path, schema, name, "label_column")
    found = name or next((n for n in _LABEL_NAMES if n in schema.names), None)
    if found is not None:
        kind = schema.field(found).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_integer(values) or _is_text(values)):
            raise RayclError(
                f"{path}: column {found!r} is {kind}, where indices or names of classes are "
                f"needed; name another one with label_column"
            )
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _known(path: Path, schema: pa.Schema, name: str, option: str) -> None:
    if name not in schema.names:
        raise RayclError(
            f"{path}: {option}: there is no column {name!r}, there are {', '.join(schema.names)}"
        )


def _rows(paths: list[Path], columns: _Columns) -> _Rows:
    groups = []
    for path in paths:
        with _opened(path) as file:
            for name in filter(None, columns):
                _known(path, file.schema_arrow, name, "column")
            if not _can_be_image(file.schema_arrow.field(columns.image).type):
                kind = file.schema_arrow.field(columns.image).type
                raise RayclError(
                    f"{path}: column {columns.image!r} is {kind}, not images as before"
                )
            before = 0
            for number in range(file.num_row_groups):
                rows = file.metadata.row_group(number).num_rows
                groups.append(_Group(path.absolute(), number, before, 0, rows))
                before += rows
    found = _Rows(groups, columns, None)
    if not len(found):
        raise RayclError(f"{paths[0]}: there are no rows")
    return found


def _labels(paths: list[Path], column: str) -> list[Any]:
    """The values of a column, as integers or texts."""
    found: list[Any] = []
    for path in paths:
        try:
            found += pq.read_table(path, columns=[column], partitioning=None)[column].to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise RayclError(f"{path}: column {column!r} cannot be read: {error}") from error
    return found


def _indices(
    labels: dict[str, list[Any]], classes: list[str] | None, rows: dict[str, _Rows]
) -> tuple[dict[str, list[int]], list[str] | None]:
    for name, part in labels.items():
        for position, value in enumerate(part):
            if value is None:
                raise RayclError(f"{rows[name].origin(position)}: has no label")
            if classes and isinstance(value, int) and not 0 <= value < len(classes):
                raise RayclError(
                    f"{rows[name].origin(position)}: its label is {value}, but the schema names "
                    f"{len(classes)} classes; -1 stands for a hidden label: import without that "
                    f"split, or name another label_column"
                )
    if all(isinstance(value, int) for part in labels.values() for value in part):
        return labels, classes
    texts = {name: [str(value) for value in part] for name, part in labels.items()}
    return class_names(texts, lambda name, i: rows[name].origin(i))


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """What `datasets` wrote about a ClassLabel column."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text)["info"]["features"][label]["names"] if text else None
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
