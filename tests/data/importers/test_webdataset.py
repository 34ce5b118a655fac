"""Samples and labels of WebDataset's tar files."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycl.data.encode import Storage
from raycl.data.importers import webdataset
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError

Members = Sequence[tuple[str, bytes]]


def jpeg(seed: int) -> bytes:
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(corners).resize((20, 16)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, members: Members, form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def labelled(start: int, stop: int, label: str = "{}") -> list[tuple[str, bytes]]:
    return [
        member
        for i in range(start, stop)
        for member in [
            (f"{i:05d}.jpg", jpeg(i)),
            (f"{i:05d}.cls", label.format(i % 3).encode()),
        ]
    ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_and_labels_arrive_untouched(tmp_path: Path, form: int) -> None:
    for k in range(3):
        write(tmp_path / "in" / f"shard-{k}.tar", labelled(7 * k, 7 * k + 7), form)
    storage = Storage(shard_samples=10)
    import_dataset("webdataset", tmp_path / "in", tmp_path / "out", storage=storage)
    shards = Shards(tmp_path / "out")
    assert shards.column("label").tolist() == [i % 3 for i in range(21)]
    assert shards.classes is None
    payloads = shards.payloads(np.arange(21), ["image"])["image"]
    assert [bytes(payload) for payload in payloads] == [jpeg(i) for i in range(21)]
    assert [file.samples for file in shards.files] == [10, 10, 1]


def test_names_of_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    write(tmp_path / "x-train-0.tar", labelled(0, 2, "cat{}"))
    write(tmp_path / "x-test-0.tar", labelled(5, 6, "cat{}"))
    test, train = webdataset.splits(tmp_path)
    assert (test.name, train.name) == ("test", "train")
    assert train.classes == test.classes == ["cat0", "cat1", "cat2"]
    assert [[item.label for item in split.items] for split in (train, test)] == [[0, 1], [2]]


def test_labels_may_be_keys_of_json(tmp_path: Path) -> None:
    members = [
        member
        for i in range(4)
        for member in [
            (f"deep/er/{i}.json", json.dumps({"label": i, "kind": f"k{i % 2}"}).encode()),
            (f"deep/er/{i}.png", jpeg(i)),
        ]
    ]
    path = write(tmp_path / "x.tar", members)
    (split,) = webdataset.splits(path)
    assert [item.label for item in split.items] == [0, 1, 2, 3]
    assert [item.origin for item in split.items][1] == f"{path}: deep/er/1.png"
    (split,) = webdataset.splits(path, label="kind")
    assert ([item.label for item in split.items], split.classes) == ([0, 1, 0, 1], ["k0", "k1"])
    (split,) = webdataset.splits(path, label="other")
    assert not split.labelled


def test_one_of_several_images_is_chosen(tmp_path: Path) -> None:
    members = [("a.left.png", jpeg(0)), ("a.right.png", jpeg(1)), ("a.target", b"5")]
    path = write(tmp_path / "x.tar", members)
    with pytest.raises(RayclError, match=r"x\.tar: a: one member must be an image, it has \.left"):
        webdataset.splits(path)
    (split,) = webdataset.splits(path, image="right.png", label="target")
    (item,) = split.items
    assert (item.content, item.label) == (jpeg(1), 5)


def test_a_stretch_knows_its_own_files_alone(tmp_path: Path) -> None:
    for k in range(20):
        write(tmp_path / f"{k:02d}.tar", labelled(5 * k, 5 * k + 5))
    (split,) = webdataset.splits(tmp_path)
    part = pickle.loads(pickle.dumps(split.items[12:18]))
    assert [item.content for item in part] == [jpeg(i) for i in range(12, 18)]
    assert [item.label for item in part] == [i % 3 for i in range(12, 18)]
    assert len(pickle.dumps(part)) < 3000
    assert [item.content for item in part[3:5]] == [jpeg(15), jpeg(16)]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([], "holds no samples"),
        ([("1.cls", b"0")], r"x\.tar: 1: one member must be an image, it has \.cls"),
        ([("1.jpg", b""), ("1.jpg", b"")], r"x\.tar: 1\.jpg: this member is there twice"),
        ([("1.jpg", b""), ("2.jpg", b""), ("2.cls", b"0")], r"x\.tar: 1\.jpg: has no label"),
        ([("1.jpg", b""), ("1.json", b"{")], r"x\.tar: 1\.json: not JSON"),
        ([("1.jpg", b""), ("1.json", b'{"label": [1]}')], r"1\.json: 'label' is \[1\], where"),
        ([("1.jpg", b""), ("1.cls", b"0"), ("2.jpg", b""), ("2.cls", b"cat")],
         r"x\.tar: 2\.jpg: its label is 'cat', and others are numbers"),
    ],
)  # fmt: skip
def test_wrong_samples_are_named(tmp_path: Path, members: Members, says: str) -> None:
    with pytest.raises(RayclError, match=says):
        webdataset.splits(write(tmp_path / "x.tar", members))


def test_a_damaged_image_is_named_by_file_and_member(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.tar", [*labelled(0, 3), ("bad.jpg", jpeg(4)[:90]), ("bad.cls", b"1")]
    )
    with pytest.raises(RayclError, match=rf"{path}: bad\.jpg: not a"):
        import_dataset("webdataset", path, tmp_path / "out")


def test_cut_or_compressed_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.tar", labelled(0, 9))
    os.truncate(path, path.stat().st_size // 2)
    compressed = tmp_path / "z.tar"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.jpg"))
    for wrong in (path, compressed):
        with pytest.raises(RayclError, match=f"{wrong}: not a readable tar file"):
            webdataset.splits(wrong)
