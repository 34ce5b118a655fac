"""Which files an image folder holds, and what they are called."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycl.data.importers import imagefolder
from raycl.errors import RayclError


def make(root: Path, *names: str) -> None:
    """Images of a few pixels under the given names."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), index, np.uint8)).save(path)


def test_class_folders_become_labels(tmp_path: Path) -> None:
    make(tmp_path, "dog/b.png", "dog/deep/er/c.PNG", "cat/a.jpg", "cat/d.webp")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._a.jpg").write_text("left by another system")
    (tmp_path / ".cache").mkdir()
    (split,) = imagefolder.splits(tmp_path)
    found = {str(item.content.relative_to(tmp_path)): item.label for item in split.items}  # type: ignore[union-attr]
    assert found == {"cat/a.jpg": 0, "cat/d.webp": 0, "dog/b.png": 1, "dog/deep/er/c.PNG": 1}
    assert (split.name, len(split.items), split.labelled) == ("", 4, True)
    assert split.classes == ["cat", "dog"]


def test_splits_share_one_list_of_classes(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/dog/3.png")
    splits = {split.name: split for split in imagefolder.splits(tmp_path)}
    assert set(splits) == {"train", "test"}
    assert [item.label for item in splits["test"].items] == [1]
    assert splits["train"].classes == splits["test"].classes == ["cat", "dog"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, "train/1.png", "boat/2.png")
    (split,) = imagefolder.splits(tmp_path)
    assert split.classes == ["boat", "train"]


def test_images_without_folders_have_no_labels(tmp_path: Path) -> None:
    make(tmp_path, "train/1.png", "train/2.png", "test/cat/3.png")
    train, test = sorted(imagefolder.splits(tmp_path), key=lambda split: split.labelled)
    assert (train.name, train.labelled, train.classes) == ("train", False, None)
    assert {item.label for item in train.items} == {None}
    assert test.classes == ["cat"]


def test_order_is_mixed_and_repeatable(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{i}.png" for name in "abcd" for i in range(20)))
    first, second = (
        [(item.origin, item.label) for item in imagefolder.splits(tmp_path)[0].items]
        for _ in range(2)
    )
    assert first == second
    assert len(Counter(label for _, label in first[:20])) == 4


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], ["there are no images here", ".jpg"]),
        (["1.png", "cat/2.png"], ["both images (1.png) and folders (cat)"]),
        (["train/cat/1.png", "extras/dog/2.png"], ["the split train/ beside extras"]),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, names: list[str], says: list[str]) -> None:
    make(tmp_path, *names)
    with pytest.raises(RayclError) as error:
        imagefolder.splits(tmp_path)
    for text in (str(tmp_path), *says):
        assert text in str(error.value)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(RayclError, match="dog: this class folder holds no images"):
        imagefolder.splits(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    with pytest.raises(RayclError, match=r"1\.png: a folder of images is needed"):
        imagefolder.splits(tmp_path / "1.png")
