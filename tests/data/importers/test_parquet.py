"""Rows of Parquet files, with and without what Hugging Face's `datasets` adds."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raycl.data.encode import Storage
from raycl.data.importers import parquet
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError


def jpeg(seed: int) -> bytes:
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(corners).resize((20, 16)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, columns: dict[str, Any], *, names: list[str] | None = None) -> Path:
    """A file with three rows in a row group; `names` as `datasets` notes a ClassLabel."""
    table = pa.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def hf(path: Path, start: int, stop: int) -> Path:
    images = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(start, stop)]
    labels = [i % 2 for i in range(start, stop)]
    return write(path, {"image": images, "label": labels}, names=["cat", "dog"])


def test_hugging_face_files(tmp_path: Path) -> None:
    hf(tmp_path / "in" / "train-00000-of-00002.parquet", 0, 8)
    hf(tmp_path / "in" / "train-00001-of-00002.parquet", 8, 15)
    hf(tmp_path / "in" / "test-00000-of-00001.parquet", 15, 17)
    storage = Storage(shard_samples=6)
    written = import_dataset("parquet", tmp_path / "in", tmp_path / "out", storage=storage)
    assert {(part.path.name, part.samples, part.shards) for part in written} == {
        ("train", 15, 3),
        ("test", 2, 1),
    }
    shards = Shards(tmp_path / "out" / "train")
    assert shards.classes == ["cat", "dog"]
    assert shards.column("label").tolist() == [i % 2 for i in range(15)]
    payloads = shards.payloads(np.arange(15), ["image"])["image"]
    assert [bytes(payload) for payload in payloads] == [jpeg(i) for i in range(15)]


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        ([4, 0, 9], [4, 0, 9], None),
        (["dog", "ant", "dog"], [1, 0, 1], ["ant", "dog"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), [1, 0, 1], ["a", "b"]),
    ],
)
def test_plain_columns(
    tmp_path: Path, labels: Any, expected: list[int], classes: list[str] | None
) -> None:
    path = write(tmp_path / "x.parquet", {"picture": [jpeg(i) for i in range(3)], "kind": labels})
    (split,) = parquet.splits(path, label="kind")
    assert [item.content for item in split.items] == [jpeg(i) for i in range(3)]
    assert ([item.label for item in split.items], split.classes) == (expected, classes)
    assert [item.origin for item in split.items] == [f"{path}, row {i}" for i in range(3)]
    (unlabelled,) = parquet.splits(path)
    assert not unlabelled.labelled and [item.label for item in unlabelled.items] == [None] * 3


def test_every_stretch_reads_its_own_rows(tmp_path: Path) -> None:
    for k in range(3):
        hf(tmp_path / f"{k}.parquet", 10 * k, 10 * k + 10)
    (split,) = parquet.splits(tmp_path)
    for start in range(0, 30, 4):
        part = pickle.loads(pickle.dumps(split.items[start : start + 9]))
        numbers = range(start, min(start + 9, 30))
        assert len(part) == len(numbers)
        assert [item.content for item in part] == [jpeg(i) for i in numbers]
        assert [item.label for item in part] == [i % 2 for i in numbers]
        assert [item.content for item in part[2:4]] == [jpeg(i) for i in numbers[2:4]]
        assert part[0:1].origin(0) == f"{tmp_path}/{start // 10}.parquet, row {start % 10}"


@pytest.mark.parametrize(
    ("columns", "options", "says"),
    [
        (
            {"label": [1]},
            {},
            r"name the column of images with image_column; there are label: int64",
        ),
        ({"a": [b""], "b": [b""]}, {}, "there are a: binary, b: binary"),
        ({"image": [b""]}, {"image": "img"}, "image_column: there is no column 'img'"),
        ({"image": ["1.jpg"]}, {"image": "image"}, "column 'image' is string, where the bytes"),
        ({"image": [b""]}, {"label": "cls"}, "label_column: there is no column 'cls', there are"),
        ({"image": [b""], "label": [0.5]}, {}, "column 'label' is double, where indices or names"),
        ({"image": [b"", b""], "label": [1, None]}, {}, r"x\.parquet, row 1: has no label"),
        ({"image": pa.array([], pa.binary())}, {}, "there are no rows"),
    ],
)
def test_wrong_columns_are_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], says: str
) -> None:
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(RayclError, match=says) as error:
        parquet.splits(path, **options)
    assert str(path) in str(error.value)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    columns = {"image": [b"", b""], "label": [0, -1]}
    path = write(tmp_path / "x.parquet", columns, names=["cat", "dog"])
    with pytest.raises(RayclError, match=r"row 1: its label is -1, but the schema names 2 classes"):
        parquet.splits(path)


def test_files_of_one_data_set_have_the_same_columns(tmp_path: Path) -> None:
    hf(tmp_path / "0.parquet", 0, 2)
    write(tmp_path / "1.parquet", {"picture": [b""], "label": [1]})
    with pytest.raises(RayclError, match=r"1\.parquet: .* no column 'image', there are picture"):
        parquet.splits(tmp_path)


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(0), "path": "0.jpg"}, {"bytes": None, "path": "1.jpg"}]
    path = write(tmp_path / "x.parquet", {"image": images})
    with pytest.raises(RayclError, match=r"row 1: holds no image; its bytes are not embedded, on"):
        import_dataset("parquet", path, tmp_path / "out")
    path = write(tmp_path / "y.parquet", {"image": [jpeg(0), jpeg(1)[:50]]})
    with pytest.raises(RayclError, match=rf"{path}, row 1: not a"):
        import_dataset("parquet", path, tmp_path / "out")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(RayclError, match=r"x\.parquet: not a readable Parquet file"):
        parquet.splits(path)
    whole = hf(tmp_path / "y.parquet", 0, 9).read_bytes()
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(RayclError, match=r"x\.parquet"):
        import_dataset("parquet", path, tmp_path / "out")
