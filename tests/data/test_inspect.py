"""What `raycl data info` and `raycl data preview` show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycl.beton import (
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    Reader,
    RGBImageField,
    Writer,
)
from raycl.data import inspect
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.views.image import Color, Crop, ImageView
from raycl.views.sheet import contact_sheet

SIZES = [(20, 30), (24, 24), (40, 16), (20, 30), (32, 48)]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height)))


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Five images in two shards, one of them raw, of the classes cat and dog."""
    folder = tmp_path / "set"
    folder.mkdir()
    for shard, mode, chosen in (("0", "jpg", range(4)), ("1", "raw", range(4, 5))):
        fields = {"image": RGBImageField(mode), "label": IntField()}  # type: ignore[arg-type]
        with Writer(folder / f"{shard}.beton", fields, page_size=2 << 20) as writer:
            for i in chosen:
                writer.write({"image": picture(*SIZES[i], seed=i), "label": int(i > 0)})
    (folder / "dataset.json").write_text('{"classes": ["cat", "dog"]}')
    return Shards(folder)


def test_info_counts_everything(shards: Shards) -> None:
    found = inspect.info(shards)
    assert json.loads(json.dumps(found)) == found
    assert found["samples"] == 5
    assert [(s["name"], s["samples"]) for s in found["shards"]] == [("0.beton", 4), ("1.beton", 1)]
    assert found["bytes"] == sum(Path(path).stat().st_size for path in shards.paths)
    assert found["fields"] == {"image": "RGBImage", "label": "Int"}
    assert found["images"] == {
        "image": {"jpg": 4, "raw": 1, "height": [20, 24, 40], "width": [16, 30, 48]}
    }
    assert found["labels"] == {"cat": 1, "dog": 4}


def test_info_without_images_and_labels(tmp_path: Path) -> None:
    with Writer(tmp_path / "x.beton", {"score": FloatField()}) as writer:
        writer.write({"score": 0.5})
    found = inspect.info(Shards(tmp_path / "x.beton"))
    assert found["fields"] == {"score": "Float"} and found["images"] == {}
    assert "labels" not in found


def test_info_with_nameless_labels(tmp_path: Path) -> None:
    with Writer(tmp_path / "x.beton", {"label": IntField()}) as writer:
        for label in (7, -1, 7):
            writer.write({"label": label})
    assert inspect.info(Shards(tmp_path / "x.beton"))["labels"] == {"-1": 1, "7": 2}


def test_info_tells_classes_of_one_name_apart(shards: Shards) -> None:
    shards.classes = ["crane", "crane"]
    assert inspect.info(shards)["labels"] == {"crane": 1, "crane (1)": 4}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Three shards, of which one is empty; the first has several blocks."""
    folder = tmp_path / "large"
    folder.mkdir()
    fields = {"image": RGBImageField("jpg"), "label": IntField(), "note": JSONField()}
    for name, count in (("0", 2 * inspect.BLOCK + 9), ("1", 0), ("2", 5)):
        with Writer(folder / f"{name}.beton", fields, page_size=2 << 20) as writer:
            for i in range(count):
                writer.write({"image": picture(8, 9, i), "label": i % 2, "note": [i]})
    (folder / "dataset.json").write_text('{"classes": ["cat", "dog"]}')
    return folder


def overwrite(path: Path, at: int, part: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(part)] = part
    path.write_bytes(content)


def verified(spec: Path, **options: int) -> tuple[int, list[str], list[float]]:
    lines: list[str] = []
    shares: list[float] = []
    samples, problems = inspect.verify(spec, lines.append, shares.append, **options)
    assert problems == len(lines)
    return samples, lines, shares


def test_verify_passes_whole_data(large: Path) -> None:
    samples, lines, shares = verified(large)
    assert (samples, lines) == (2 * inspect.BLOCK + 14, [])
    assert shares == sorted(shares) and 0.99 < shares[-1] <= 1


def test_verify_reports_all_that_is_wrong(large: Path) -> None:
    count, first = 2 * inspect.BLOCK + 14, large / "0.beton"
    reader = Reader(first)
    starts = {
        name: reader.spans(np.arange(len(reader)), name)[0].tolist() for name in ("image", "note")
    }
    metadata, row = 24 + 3 * 1041, 40  # image 13 bytes, label at 16, note at 24
    overwrite(first, starts["image"][0], b"damage")
    overwrite(first, starts["note"][0], b"{")
    overwrite(first, starts["note"][200], b"{")
    overwrite(first, metadata + 7 * row + 16, (2).to_bytes(8, "little"))
    overwrite(first, metadata + 8 * row + 16, (-1).to_bytes(8, "little", signed=True))
    overwrite(first, metadata + 9 * row + 5, b"x")
    (large / "3.beton").write_bytes((large / "2.beton").read_bytes()[:-1])
    table = (large / "2.beton").stat().st_size - 24 * 10
    (large / "4.beton").write_bytes((large / "2.beton").read_bytes())
    overwrite(large / "4.beton", table + 16, bytes([255] * 8))
    with Writer(large / "5.beton", {"label": IntField()}, page_size=2 << 20) as writer:
        writer.write({"label": 5})
    description = {
        "classes": ["cat", "dog"],
        "shards": ["0.beton", "2.beton", "7.beton"],
        "shard_samples": [count - 5, 6, 9],
        "shard_bytes": [first.stat().st_size, (large / "2.beton").stat().st_size, 9],
    }
    (large / "dataset.json").write_text(json.dumps(description))

    samples, lines, _ = verified(large)

    expected = [
        "large: 7.beton missing, which dataset.json lists",
        "0.beton: sample 0, field 'image': not a whole JPEG",
        "0.beton: sample 0, field 'note': not JSON",
        "0.beton: sample 9, field 'image': damaged: no payload",
        "0.beton: sample 7, field 'label': 2 is none of the 2 classes",
        "0.beton: sample 8, field 'label': -1 is none of the 2 classes",
        "0.beton: sample 200, field 'note': not JSON",
        "2.beton: holds 5 samples, and dataset.json says 6",
        "3.beton: truncated in the allocation table",
        "4.beton: damaged: record 0 of the allocation table",
        "5.beton: its fields are not those of the shards before it",
        "5.beton: sample 0, field 'label': 5 is none of the 2 classes",
    ]
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    assert samples == count + 1
    assert verified(large, threads=1)[:2] == (samples, lines)


def test_verify_needs_something_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match="there is no .beton file"):
        verified(tmp_path)


def test_preview_shows_what_training_would_draw(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[tuple[list[list[np.ndarray]], list[str]]] = []

    def record(rows: list[list[np.ndarray]], labels: list[str]) -> Image.Image:
        sheets.append((rows, labels))
        return contact_sheet(rows, labels)

    monkeypatch.setattr("raycl.views.sheet.contact_sheet", record)
    view = ImageView(size=16, crop=Crop(), color=Color(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    views = {"view1": view, "view2": view}
    path = inspect.preview(shards, views, tmp_path / "new" / "sheet.png", seed=3, count=4)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > 5 * 16 and sheet.height > 4 * 16
    rows, labels = sheets[0]
    ids = np.sort(np.random.default_rng(3).permutation(5)[:4])
    assert labels == [["cat", "dog"][int(i > 0)] for i in ids]
    for index, row in zip(ids, rows, strict=True):
        assert len(row) == 5
        original = np.asarray(shards.read(int(index))["image"])
        assert np.array_equal(row[0], original)
        sides = [np.array([side]) for side in original.shape[:2]]
        plan = view.plan(3, 1, np.array([index]), 1, *sides)
        cut = np.empty((16, 16, 3), np.uint8)
        view.cut(original, plan["box"][0], bool(plan["flip"][0]), cut)
        plain = view.model_copy(update={"mean": None, "std": None})
        drawn = {name: torch.from_numpy(values) for name, values in plan.items()}
        expected = plain.render(torch.from_numpy(cut).permute(2, 0, 1)[None], drawn)[0]
        assert np.abs(row[4] / 255 - expected.permute(1, 2, 0).numpy()).max() < 0.51 / 255
        assert not np.array_equal(row[3], row[4])


def test_nothing_to_preview(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.beton", {"features": NDArrayField(np.float32, (3,))}) as writer:
        writer.write({"features": np.zeros(3, np.float32)})
    with pytest.raises(RayclError, match="has no images to show in a field 'image'"):
        inspect.preview(Shards(tmp_path), {}, tmp_path / "sheet.png")


def test_preview_is_repeatable_and_follows_the_seed(shards: Shards, tmp_path: Path) -> None:
    views = {"view": ImageView(size=16, crop=Crop(), color=Color())}
    drawn = [
        inspect.preview(shards, views, tmp_path / f"{i}.png", seed=seed).read_bytes()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_preview_without_labels_or_views(tmp_path: Path) -> None:
    with Writer(tmp_path / "x.beton", {"image": RGBImageField()}) as writer:
        writer.write({"image": picture(8, 8, 0)})
    path = inspect.preview(Shards(tmp_path / "x.beton"), {}, tmp_path / "sheet.png", count=50)
    assert Image.open(path).width > 8


def test_preview_refuses_what_it_cannot_show(shards: Shards, tmp_path: Path) -> None:
    view = ImageView(size=16)
    out = tmp_path / "sheet.png"
    with pytest.raises(RayclError, match=r"views\.left: .* no images in a field 'photo'"):
        inspect.preview(shards, {"left": view.model_copy(update={"field": "photo"})}, out)
    with pytest.raises(RayclError, match="count: 0"):
        inspect.preview(shards, {"left": view}, out, count=0)
    with pytest.raises(RayclError, match=r"set: cannot be written"):
        inspect.preview(shards, {"left": view}, tmp_path / "set")
    assert not out.exists()


def test_preview_names_a_damaged_sample(shards: Shards, tmp_path: Path) -> None:
    start = bytes(shards.reader(0).encoded(2, "image"))
    first = Path(shards.paths[0])
    content = first.read_bytes()
    first.write_bytes(content.replace(start[:200], bytes(200)))
    with pytest.raises(RayclError, match=r"0\.beton: sample 2, field 'image'"):
        inspect.preview(Shards(tmp_path / "set"), {"v": ImageView(size=16)}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
