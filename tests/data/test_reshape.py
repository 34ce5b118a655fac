"""Data sets made of data sets: the same values in other files, or images stored otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycl.beton import (
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
    TorchTensorField,
    Writer,
)
from raycl.data.encode import Storage
from raycl.data.reshape import concat, convert, reshard
from raycl.data.shards import Shards
from raycl.errors import RayclError

FIELDS: dict[str, Field] = {
    "image": RGBImageField("smart", smart_threshold=3000),
    "mask": RGBImageField("raw"),
    "label": IntField(),
    "weight": FloatField(),
    "extra": BytesField(),
    "about": JSONField(),
    "boxes": NDArrayField("<f4", (2, 3)),
    "tensor": TorchTensorField("<i2", (4,)),
}


def picture(height: int, width: int, seed: int) -> np.ndarray:
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def sample(i: int) -> dict[str, Any]:
    return {
        "image": picture(24 + i % 9, 36, i),
        "mask": picture(5, 4, i),
        "label": i,
        "weight": i / 7,
        "extra": bytes(range(i % 5)),
        "about": {"number": i, "none": None},
        "boxes": np.full((2, 3), i, np.float32),
        "tensor": np.arange(i, i + 4, dtype=np.int16),
    }


def write(folder: Path, *counts: int, start: int = 0, page_size: int = 2 << 20) -> Path:
    """Shards of so many samples, numbered through from `start`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        with Writer(folder / f"s{shard}.beton", FIELDS, page_size=page_size) as writer:
            for i in range(start, start + count):
                writer.write(sample(i))
        start += count
    return folder


def encoded(shards: Shards) -> list[dict[str, Any]]:
    """All that is stored, by sample, payloads as they are."""
    ids = np.arange(len(shards))
    names = [name for name, field in shards.fields.items() if field.allocates]
    columns: dict[str, Any] = {
        name: [bytes(payload) for payload in column]
        for name, column in shards.payloads(ids, names).items()
    }
    columns["info"] = list(zip(*(p.tolist() for p in shards.image_info(ids, "image")), strict=True))
    for name in ("label", "weight"):
        columns[name] = shards.column(name).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_resharding_keeps_every_byte_of_every_field(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 300, 7, 93)
    seen: list[int] = []
    written = reshard(
        [source],
        tmp_path / "out",
        shard_samples=150,
        progress=lambda done, total: seen.append(done),
    )
    assert (written.samples, written.shards, seen) == (400, 3, list(range(1, 401)))
    before, after = Shards(source), Shards(tmp_path / "out")
    assert encoded(after) == encoded(before)
    assert [file.samples for file in after.files] == [150, 150, 100]
    assert not list(after.verify())
    for i in (0, 149, 150, 399):
        for name, value in sample(i).items():
            if name != "image":
                assert np.array_equal(after.read(i)[name], np.frombuffer(value, np.uint8)
                                      if name == "extra" else value)  # fmt: skip


def test_resharding_by_size(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 40, 40)
    each = Shards(source).bytes // 80
    written = reshard([source], tmp_path / "out", shard_bytes=20 * each)
    assert written.shards == 4


def test_data_sets_are_put_together_file_by_file(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 5, 3)
    two = write(tmp_path / "two", 4, start=8, page_size=4 << 20)
    written = concat([one, two], tmp_path / "out")
    assert (written.samples, written.shards) == (12, 3)
    files = [*sorted(one.iterdir()), *sorted(two.iterdir())]
    copies = sorted((tmp_path / "out").glob("*.beton"))
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in files]
    assert Shards(tmp_path / "out").column("label").tolist() == list(range(12))


def test_resharding_puts_data_sets_together_too(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 5)
    two = write(tmp_path / "two", 4, start=5, page_size=4 << 20)
    reshard([one, two], tmp_path / "out", shard_samples=100)
    out = Shards(tmp_path / "out")
    assert out.reader(0).page_size == 4 << 20
    assert encoded(out) == encoded(Shards([one, two]))


def test_classes_stay_and_others_are_refused(tmp_path: Path) -> None:
    for name, classes in (("a", '["x", "y"]'), ("b", '["x", "z"]')):
        write(tmp_path / name, 3)
        (tmp_path / name / "dataset.json").write_text(f'{{"classes": {classes}}}')
    assert concat([tmp_path / "a"], tmp_path / "out").classes == ["x", "y"]
    assert Shards(tmp_path / "out").classes == ["x", "y"]
    with pytest.raises(RayclError, match="their labels cannot be mixed"):
        concat([tmp_path / "a", tmp_path / "b"], tmp_path / "mixed")


def test_other_fields_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 3)
    (tmp_path / "b").mkdir()
    with Writer(tmp_path / "b" / "0.beton", {"label": IntField()}) as writer:
        writer.write({"label": 1})
    for join in (concat, reshard):
        with pytest.raises(RayclError, match="shards of one data set have the same fields"):
            join([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_jpegs_become_pixels(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 30)
    convert([source], tmp_path / "out", Storage(write_mode="raw", shard_samples=20))
    before, after = Shards(source), Shards(tmp_path / "out")
    modes = [stored["info"][0] for stored in encoded(before)]
    assert set(modes) == {0, 1}
    assert [stored["info"][0] for stored in encoded(after)] == [1] * 30
    for i in range(30):
        assert np.array_equal(after.read(i)["image"], before.read(i)["image"])
    kept = ("mask", "extra", "about", "boxes", "tensor", "label", "weight")
    for one, other in zip(encoded(before), encoded(after), strict=True):
        assert all(one[name] == other[name] for name in kept)


def test_what_fits_stays_byte_for_byte(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 30)
    convert([source], tmp_path / "jpg", Storage(write_mode="jpg"))
    convert([source], tmp_path / "small", Storage(max_resolution=40))
    before = encoded(Shards(source))
    jpg, small = encoded(Shards(tmp_path / "jpg")), encoded(Shards(tmp_path / "small"))
    assert small == before
    for one, other in zip(before, jpg, strict=True):
        assert other["info"][0] == 0 and (one["image"] == other["image"]) == (one["info"][0] == 0)


def test_every_image_keeps_its_mode_when_it_is_made_smaller(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 20)
    convert([source], tmp_path / "out", Storage(max_resolution=18))
    before, after = encoded(Shards(source)), encoded(Shards(tmp_path / "out"))
    assert [row["info"][0] for row in after] == [row["info"][0] for row in before]
    assert all(max(row["info"][1:]) == 18 for row in after)
    assert [row["mask"] for row in after] == [row["mask"] for row in before]
    for i in range(20):
        whole = Image.fromarray(Shards(source).read(i)["image"])
        image = Shards(tmp_path / "out").read(i)["image"]
        expected = np.asarray(whole.resize((image.shape[1], 18 if image.shape[1] < 18 else
                                            image.shape[0]), Image.Resampling.BICUBIC))  # fmt: skip
        assert np.abs(image.astype(int) - expected).mean() < 6


def test_conversions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 3)
    with pytest.raises(RayclError, match="nothing would change; give a write_mode or a max_reso"):
        convert([source], tmp_path / "out", Storage(jpeg_quality=70))
    with Writer(tmp_path / "n.beton", {"label": IntField()}) as writer:
        writer.write({"label": 1})
    with pytest.raises(RayclError, match="holds no images, only label"):
        convert([tmp_path / "n.beton"], tmp_path / "out", Storage(write_mode="raw"))
    file = BytesIO()
    Image.fromarray(picture(1700, 1700, 0)).save(file, "JPEG")
    with Writer(tmp_path / "l.beton", {"image": RGBImageField("jpg")}) as writer:
        writer.write({"image": file.getvalue()})
    with pytest.raises(RayclError, match=r"l\.beton: sample 0: takes 8\.3 MiB .* max_resolution"):
        convert([tmp_path / "l.beton"], tmp_path / "out", Storage(write_mode="raw"))
    assert not list(tmp_path.glob("out*"))


def test_a_damaged_sample_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "in", 30)
    shards = Shards(source)
    start = int(shards.reader(0).spans(np.array([8]), "image")[0][0])
    assert shards.reader(0).image_info("image")[0][8] == 0
    with (source / "s0.beton").open("r+b") as file:
        file.seek(start)
        file.write(bytes(100))
    with pytest.raises(RayclError, match=r"s0\.beton: sample 8, field 'image': not a whole JPEG"):
        convert([source], tmp_path / "out", Storage(write_mode="raw"))


SLOW = """
import sys, time
from raycl.data import reshape
from raycl.data.encode import Storage
what, source, out = sys.argv[1:]
slow = lambda done, total: (print(done, flush=True), time.sleep(0.02))
if what == "convert":
    storage = Storage(write_mode="raw", shard_samples=10)
    reshape.convert([source], out, storage, progress=slow)
elif what == "reshard":
    reshape.reshard([source], out, shard_samples=10, progress=slow)
else:
    reshape.concat([source], out, progress=slow)
"""


@pytest.mark.parametrize("what", ["reshard", "concat", "convert"])
def test_a_kill_is_survived(tmp_path: Path, what: str) -> None:
    source = write(tmp_path / "in", *[10] * 6)
    command = [sys.executable, "-c", SLOW, what, str(source)]
    with subprocess.Popen(
        [*command, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 35:
            pass
        os.kill(process.pid, signal.SIGKILL)
    place = tmp_path / "out.partial"
    before = {path.name: path.stat().st_mtime_ns for path in place.glob("*.index")}
    assert len(before) >= 3 and not (tmp_path / "out").exists()
    for name in ("out", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert {name: files[name].stat().st_mtime_ns for name in before} == before
    assert {name: path.read_bytes() for name, path in files.items()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    assert not place.exists()
