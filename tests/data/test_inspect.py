"""What `raycl data info` and `raycl data preview` show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycl.beton import FloatField, IntField, RGBImageField, Writer
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
    assert found["bytes"] == sum(path.stat().st_size for path in shards.paths)
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
    content = shards.paths[0].read_bytes()
    shards.paths[0].write_bytes(content.replace(start[:200], bytes(200)))
    with pytest.raises(RayclError, match=r"0\.beton: sample 2, field 'image'"):
        inspect.preview(Shards(tmp_path / "set"), {"v": ImageView(size=16)}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
