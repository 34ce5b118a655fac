"""What importers share: which files belong to which split, and how labels become indices."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raycl.data.importers import Files, by_split, class_names
from raycl.errors import RayclError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["b.tar", "a.tar", "notes.txt"], {"": ["a.tar", "b.tar"]}),
        (["train-0.tar", "test-0.tar"], {"test": ["test-0.tar"], "train": ["train-0.tar"]}),
        (["train.tar"], {"train": ["train.tar"]}),
        (["in1k-train-0.tar", "in1k-train-1.tar", "in1k-validation-0.tar"],
         {"train": ["in1k-train-0.tar", "in1k-train-1.tar"],
          "validation": ["in1k-validation-0.tar"]}),
        (["training.tar", "latest.tar"], {"": ["latest.tar", "training.tar"]}),
        (["train/0.tar", "test/0.tar", "other/0.tar"],
         {"train": ["0.tar"], "test": ["0.tar"]}),
    ],
)  # fmt: skip
def test_names_tell_splits(tmp_path: Path, names: list[str], splits: dict[str, list[str]]) -> None:
    touch(tmp_path, *names)
    found = by_split(tmp_path, ".tar")
    assert {name: [path.name for path in files] for name, files in found.items()} == splits


def test_a_file_or_a_glob_is_one_data_set(tmp_path: Path) -> None:
    touch(tmp_path, "train-0.tar", "test-0.tar")
    assert by_split(tmp_path / "train-0.tar", ".tar") == {"": [tmp_path / "train-0.tar"]}
    assert by_split(str(tmp_path / "t*.tar"), ".tar") == {
        "": [tmp_path / "test-0.tar", tmp_path / "train-0.tar"]
    }


@pytest.mark.parametrize(
    ("names", "source", "says"),
    [
        ([], ".", r"there is no \.tar file in this directory"),
        ([], "x-*.tar", r"x-\*\.tar: there is no such file or directory, and no match of a glob"),
        (["train-0.tar", "extra.tar"], ".", r"extra\.tar: its name tells no split"),
        (["train/0.tar", "1.tar"], ".", r"holds both 1\.tar and the split train/"),
    ],
)
def test_unclear_directories_are_refused(
    tmp_path: Path, names: list[str], source: str, says: str
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(RayclError, match=says):
        by_split(str(tmp_path / source), ".tar")


def test_labels_are_indices_or_names() -> None:
    def where(split: str, position: int) -> str:
        return f"{split}[{position}]"

    indices, classes = class_names({"a": ["3", "0"], "b": ["7"]}, where)
    assert (indices, classes) == ({"a": [3, 0], "b": [7]}, None)
    indices, classes = class_names({"a": ["dog", "cat"], "b": ["ant"]}, where)
    assert (indices, classes) == ({"a": [2, 1], "b": [0]}, ["ant", "cat", "dog"])
    for wrong in ("cat", "-1", ""):
        with pytest.raises(RayclError, match=rf"b\[1\]: its label is '{wrong}', and others are"):
            class_names({"a": ["3"], "b": ["1", wrong]}, where)


def test_a_stretch_of_files_is_small_when_pickled() -> None:
    files = Files([f"/images/{i}.jpg" for i in range(10_000)], [i % 10 for i in range(10_000)])
    part = files[5000:5010]
    assert len(pickle.dumps(part)) < 1000
    assert [(str(item.content), item.label) for item in part] == [
        (f"/images/{i}.jpg", i % 10) for i in range(5000, 5010)
    ]
