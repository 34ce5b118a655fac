from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycl.beton import Field, FloatField, IntField, JSONField, Writer
from raycl.data.shards import Shards
from raycl.errors import RayclError

SIZES = (3, 0, 5, 1)


def write(path: Path, values: list[int], **fields: Field) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Writer(path, fields or {"label": IntField(), "note": JSONField()}) as writer:
        for value in values:
            sample = {"label": value, "note": [value], "weight": value}
            writer.write({name: sample[name] for name in writer.fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Samples 0 to 8 in shards of unequal size, one of them empty."""
    folder, start = tmp_path / "train", 0
    # Written in another order than their names have.
    for number, size in sorted(enumerate(SIZES), reverse=True):
        start = sum(SIZES[:number])
        write(folder / f"{number:05d}.beton", list(range(start, start + size)))
    return folder


def describe(folder: Path, **content: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "spec",
    [
        lambda folder: folder,
        lambda folder: str(folder),
        lambda folder: f"{folder}/*.beton",
        lambda folder: f"{folder.parent}/tr*",
        lambda folder: sorted(folder.iterdir()),
        lambda folder: [folder / "00000.beton", f"{folder}/0000[1-3].beton"],
        lambda folder: [folder, folder],
    ],
    ids=["path", "text", "glob", "glob of folders", "list", "list with a glob", "twice"],
)
def test_one_index_over_all_files(folder: Path, spec: Callable[[Path], Any]) -> None:
    shards = Shards(spec(folder))

    assert len(shards) == 9
    assert [path.name for path in shards.paths] == [f"{number:05d}.beton" for number in range(4)]
    assert list(shards.fields) == ["label", "note"]
    np.testing.assert_array_equal(shards.column("label"), np.arange(9))
    assert [shards.read(index)["note"] for index in range(9)] == [[n] for n in range(9)]
    assert list(shards.verify()) == []


def test_one_file(folder: Path) -> None:
    shards = Shards(folder / "00002.beton")
    assert shards.column("label").tolist() == [3, 4, 5, 6, 7]


def test_a_list_keeps_its_order(folder: Path) -> None:
    shards = Shards([folder / "00002.beton", folder / "00000.beton"])
    assert shards.column("label").tolist() == [3, 4, 5, 6, 7, 0, 1, 2]


def test_locate(folder: Path) -> None:
    shard, row = Shards(folder).locate(np.array([[8, 0, 2], [3, 7, 3]]))

    assert shard.tolist() == [[3, 0, 0], [2, 2, 2]]
    assert row.tolist() == [[0, 0, 2], [0, 4, 0]]


@pytest.mark.parametrize("index", [-1, 9])
def test_ids_are_checked(folder: Path, index: int) -> None:
    with pytest.raises(RayclError, match=f"there is no sample {index}; the data set has 9"):
        Shards(folder).locate(np.array([0, index]))


def test_files_are_opened_when_asked_for(folder: Path) -> None:
    shards = Shards(folder)
    assert not shards._readers

    assert shards.read(8)["label"] == 8
    assert list(shards._readers) == [3]
    assert shards.reader(3) is shards.reader(3)


def test_pickles_by_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(folder, classes=["a", "b"])
    monkeypatch.chdir(folder.parent)
    shards = Shards("train")
    shards.read(0)
    data = pickle.dumps(shards)
    monkeypatch.chdir("/")
    restored = pickle.loads(data)

    assert len(data) < 1000
    assert (len(restored), restored.classes, restored.paths) == (9, ["a", "b"], shards.paths)


def test_classes(folder: Path, tmp_path: Path) -> None:
    assert Shards(folder).classes is None
    describe(folder, classes=["cat", "dog"], source="a test", samples=9)
    assert Shards(folder).classes == ["cat", "dog"]
    assert Shards(folder / "00000.beton").classes == ["cat", "dog"]

    write(tmp_path / "more" / "x.beton", [1])
    assert Shards([tmp_path / "more", folder]).classes == ["cat", "dog"]
    describe(tmp_path / "more", classes=["dog", "cat"])
    with pytest.raises(RayclError, match=r"dataset\.json: its classes are not those"):
        Shards([folder, tmp_path / "more"])


def test_listed_shards_must_be_there(folder: Path) -> None:
    describe(folder, shards=["00000.beton", "00007.beton", "00008.beton"])
    with pytest.raises(RayclError, match=r"train: 00007\.beton, 00008\.beton missing"):
        Shards(folder)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_description_is_named(folder: Path, text: str) -> None:
    (folder / "dataset.json").write_text(text)
    with pytest.raises(RayclError, match=r"train/dataset\.json: "):
        Shards(folder)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda root: [], "an empty list of data sets"),
        (lambda root: root / "nowhere", "nowhere: there is no such .beton file, directory or glob"),
        (lambda root: f"{root}/*.beton", "there is no such .beton file, directory or glob"),
        (lambda root: root / "empty", "empty: there is no .beton file in this directory$"),
        (lambda root: root, "in this directory; did you mean .*/train"),
        (lambda root: root / "train" / "00001.beton", r"00001\.beton: the data set has no samples"),
        (lambda root: root / "notes.txt", r"notes\.txt: not a .beton file"),
    ],
)
def test_nothing_to_read_is_refused(
    folder: Path, tmp_path: Path, spec: Callable[[Path], Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not a data set, but long enough to have a header")

    with pytest.raises(RayclError, match=message):
        Shards(spec(tmp_path))


def test_a_truncated_shard_is_found_at_once(folder: Path) -> None:
    path = folder / "00002.beton"
    path.write_bytes(path.read_bytes()[:-30])

    with pytest.raises(RayclError, match=r"00002\.beton: truncated in the allocation table"):
        Shards(folder)


@pytest.mark.parametrize(
    "fields",
    [{"label": FloatField(), "note": JSONField()}, {"label": IntField(), "weight": FloatField()}],
)
def test_shards_of_different_fields_are_refused(folder: Path, fields: dict[str, Field]) -> None:
    write(folder / "00004.beton", [9], **fields)
    with pytest.raises(RayclError, match=r"00004\.beton: its fields .* are not those of .*00000"):
        Shards(folder)


def test_verify_goes_on_after_a_damaged_file(folder: Path) -> None:
    first, third = folder / "00000.beton", folder / "00002.beton"
    content = bytearray(first.read_bytes())
    # The size in the last record of the allocation table.
    content[-8:] = (1 << 40).to_bytes(8, "little")
    first.write_bytes(content)
    content = bytearray(third.read_bytes())
    content[8 << 20] = ord("?")
    third.write_bytes(content)

    lines = list(Shards(folder).verify())

    assert len(lines) == 2
    assert lines[0].startswith(f"{first}: damaged: record 2")
    assert lines[1].startswith(f"{third}: sample 0, field 'note': not JSON")
