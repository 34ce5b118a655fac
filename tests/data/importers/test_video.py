"""Folders of video clips, stored as the files that they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycl.beton import BytesField
from raycl.data.encode import Storage
from raycl.data.importers import video
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError

MP4 = b"\0\0\0\x20ftypisom"


def clips(root: Path, **sizes: int) -> Path:
    """Files that begin like mp4; names are CLASS__FILE."""
    for name, size in sizes.items():
        path = root / f"{name.replace('__', '/')}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MP4 + np.random.default_rng(size).bytes(size))
    return root


def test_clips_are_stored_byte_for_byte(tmp_path: Path) -> None:
    source = clips(tmp_path / "in", run__a=1000, run__b=70_000, walk__c=0)
    import_dataset("video", source, tmp_path / "out")
    shards = Shards(tmp_path / "out")
    assert shards.classes == ["run", "walk"]
    assert {name: type(field) for name, field in shards.fields.items()}["video"] is BytesField
    stored = {shards.read(i)["video"].tobytes(): shards.read(i)["label"] for i in range(3)}
    files = {path.read_bytes(): path.parent.name for path in source.rglob("*.mp4")}
    assert {content: ["run", "walk"][label] for content, label in stored.items()} == files


def test_a_page_holds_the_longest_clip(tmp_path: Path) -> None:
    source = clips(tmp_path / "in", a=100, b=9 << 20)
    import_dataset("video", source, tmp_path / "out")
    shards = Shards(tmp_path / "out")
    assert shards.reader(0).page_size == 16 << 20
    assert sorted(len(shards.read(i)["video"]) for i in range(2)) == [112, (9 << 20) + 12]


def test_real_clips(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("grid_av") / "mpg"
    written = import_dataset("video", source, tmp_path / "out")[0]
    files = sorted(path.read_bytes() for path in source.glob("*.mpg"))
    shards = Shards(tmp_path / "out")
    assert written.samples == len(files) and list(shards.fields) == ["video"]
    assert sorted(shards.read(i)["video"].tobytes() for i in range(len(files))) == files


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "it is empty"), (b"<html>", "no video container begins like this")]
)
def test_other_files_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    source = clips(tmp_path / "in", a=10)
    (source / "b.mp4").write_bytes(content)
    with pytest.raises(RayclError, match=rf"b\.mp4: not a readable clip: {says}"):
        import_dataset("video", source, tmp_path / "out")


def test_clips_beyond_the_largest_page_are_refused(tmp_path: Path) -> None:
    source = clips(tmp_path / "in", a=10)
    with (source / "b.mp4").open("wb") as file:
        file.truncate(video.MAX_CLIP + 1)
    with pytest.raises(RayclError, match=r"b\.mp4: takes 1024 MiB, .* shorter clips"):
        video.splits(source)


def test_options_of_images_are_refused(tmp_path: Path) -> None:
    source = clips(tmp_path / "in", a=10)
    with pytest.raises(RayclError, match="max_resolution is for images"):
        import_dataset("video", source, tmp_path / "out", storage=Storage(max_resolution=9))
