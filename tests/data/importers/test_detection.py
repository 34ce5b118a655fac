"""Objects of COCO and VOC: boxes, classes and masks as they are stored, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycl.data.encode import Storage
from raycl.data.reshape import convert
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from tests.data.shapes import NAMES, coco, voc

PIXELS = np.zeros((30, 40, 3), np.uint8)
LARGE = [[4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]]
SMALL = [[10.0, 10.0, 14.0, 10.0, 14.0, 14.0, 10.0, 14.0]]
CROWD = {"size": [30, 40], "counts": [0, 60, 1140]}  # the first two columns


def imported(source: Path, split: str = "", storage: Storage | None = None) -> Shards:
    out = source.with_name("out")
    import_dataset("detection", source, out, storage=storage)
    return Shards(out / split)


def objects_of(shards: Shards, index: int = 0) -> list[list[float]]:
    objects = shards.read(index)["objects"]
    return objects[objects[:, 4] >= 0].tolist()


def mask_of(shards: Shards, index: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shards.read(index)["instances"].tobytes())))


def one(**changes: Any) -> dict[str, Any]:
    return {"category_id": 7, "bbox": [4, 4, 20, 20], "segmentation": LARGE} | changes


def test_coco_has_boxes_classes_crowds_and_masks(tmp_path: Path) -> None:
    small = one(category_id=3, bbox=[10, 10, 4, 4], segmentation=SMALL)
    crowd = one(bbox=[0, 0, 2, 30], segmentation=CROWD, iscrowd=1)
    coco(tmp_path / "src", "val2017", [(PIXELS, [small, one(), crowd]), (PIXELS, [])])
    shards = imported(tmp_path / "src", "val2017")
    assert shards.classes == list(NAMES.values())
    assert objects_of(shards) == [
        [10, 10, 14, 14, 0, 0], [4, 4, 24, 24, 1, 0], [0, 0, 2, 30, 1, 1],
    ]  # fmt: skip
    expected = np.zeros((30, 40), np.uint8)
    expected[:, :2], expected[4:24, 4:24], expected[10:14, 10:14] = 3, 2, 1
    assert (mask_of(shards) == expected).all()
    assert not objects_of(shards, 1) and not mask_of(shards, 1).any()
    assert shards.read(1)["objects"].shape == (64, 6)


def test_boxes_of_coco_may_leave_the_image_a_little_or_be_empty(tmp_path: Path) -> None:
    rounded = one(bbox=[30, 20, 10.4, 10.2])
    empty = one(bbox=[5, 5, 3, 0])
    coco(tmp_path / "src", "train", [(PIXELS, [rounded, empty])])
    assert objects_of(imported(tmp_path / "src", "train")) == [
        [30, 20, 40, 30, 1, 0], [5, 5, 8, 5, 1, 1],
    ]  # fmt: skip


def test_boxes_without_masks_need_no_pycocotools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    coco(tmp_path / "boxes", "train", [(PIXELS, [one(), one(segmentation=[])])])
    assert "instances" not in imported(tmp_path / "boxes", "train").fields
    coco(tmp_path / "masks", "train", [(PIXELS, [one()])])
    with pytest.raises(RayclError, match=r"pip install 'raycl\[detection\]'"):
        import_dataset("detection", tmp_path / "masks", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_voc_counts_pixels_from_one_and_knows_difficult_objects(tmp_path: Path) -> None:
    source = tmp_path / "src"
    voc(source, "b", [("dog", 0, (1, 1, 40, 30)), ("cat", 1, (5, 6, 7, 8))])
    voc(source, "a", [])
    voc(source, "c", [("bird", 0, (2, 2, 3, 3))])
    lists = {"trainval": "a -1\nb 1\n", "test": "c\n"}
    for name, text in lists.items():
        (source / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    shards = imported(source, "trainval")
    assert shards.classes == ["bird", "cat", "dog"] and "instances" not in shards.fields
    assert objects_of(shards) == []
    assert objects_of(shards, 1) == [[0, 0, 40, 30, 2, 0], [4, 5, 7, 8, 1, 1]]
    assert objects_of(Shards(tmp_path / "out" / "test")) == [[1, 1, 3, 3, 0, 0]]


def test_voc_masks_stay_as_they_are(tmp_path: Path) -> None:
    voc(tmp_path / "src", "a", [("dog", 0, (1, 1, 10, 10))])
    mask = np.zeros((30, 40), np.uint8)
    mask[:10, :10], mask[10, :10] = 1, 255
    (tmp_path / "src" / "SegmentationObject").mkdir()
    Image.fromarray(mask).save(tmp_path / "src" / "SegmentationObject" / "a.png")
    assert (mask_of(imported(tmp_path / "src")) == mask).all()


def test_boxes_and_masks_shrink_with_their_images(tmp_path: Path) -> None:
    coco(tmp_path / "src", "train", [(PIXELS, [one()])])
    shards = imported(tmp_path / "src", "train", Storage(max_resolution=20))
    assert shards.read(0)["image"].shape == (15, 20, 3)
    assert objects_of(shards) == [[2, 2, 12, 12, 1, 0]]
    expected = np.zeros((15, 20), np.uint8)
    expected[2:12, 2:12] = 1
    assert (mask_of(shards) == expected).all()
    with pytest.raises(RayclError, match="boxes of the field 'objects' are in pixels"):
        convert([tmp_path / "out" / "train"], tmp_path / "less", Storage(max_resolution=10))


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].update(file_name="x.png"), r"image 10: .* no file .*x\.png"),
        (lambda c: c["images"][0].pop("width"), r"image 10: has no 'width'"),
        (lambda c: c["images"][0].update(width=0), r"image 10: width is 0"),
        (lambda c: c["images"][0].update(width=30), r"10\.png: is 40 x 30 .* is of 30 x 30"),
        (lambda c: c.pop("categories"), r"instances_train\.json: has no 'categories'"),
        (lambda c: c["annotations"][0].update(category_id=4), r"annotation 1: .* category_id as 4"),
        (lambda c: c["annotations"][0].update(image_id=4), r"annotation 1: .* image_id as 4"),
        (lambda c: c["annotations"][0].update(bbox=[4, 4, 20]), r"bbox is \[4.*needed are x, y"),
        (lambda c: c["annotations"][0].update(bbox=[4, 4, 20, "a"]), r"bbox is 'a'"),
        (lambda c: c["annotations"][0].update(bbox=[4, 4, -2, 9]), r"annotation 1: the box from"),
        (lambda c: c["annotations"][0].update(bbox=[30, 4, 20, 20]), r"outside its image of 40"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2]]), r"10\.png: a segmentation"),
        (lambda c: c["annotations"].clear(), r"split 'train' has 1 images, and no objects"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_of_coco_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edited(coco(tmp_path / "src", "train", [(PIXELS, [one()])]), change)
    with pytest.raises(RayclError, match=message):
        import_dataset("detection", tmp_path / "src", tmp_path / "out")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = coco(tmp_path / "coco", "train", [(PIXELS, [one()])])
    other = coco(tmp_path / "coco", "val", [(PIXELS, [one()])])
    edited(other, lambda content: content["categories"].pop(0))
    with pytest.raises(RayclError, match=r"val\.json: its categories are not those of"):
        import_dataset("detection", tmp_path / "coco", tmp_path / "out")
    path.write_text("{")
    with pytest.raises(RayclError, match=r"instances_train\.json: not readable JSON"):
        import_dataset("detection", tmp_path / "coco", tmp_path / "out")
    path = voc(tmp_path / "voc", "a", [("dog", 0, (1, 1, 45, 10))])
    with pytest.raises(RayclError, match=r"a\.xml: the box .* outside its image of 40 x 30"):
        import_dataset("detection", tmp_path / "voc", tmp_path / "out")
    path.write_text(path.read_text().replace("<xmin>1</xmin>", "<xmin>one</xmin>"))
    with pytest.raises(RayclError, match=r"a\.xml: bndbox/xmin is 'one'"):
        import_dataset("detection", tmp_path / "voc", tmp_path / "out")
    path.write_text("<annotation>")
    with pytest.raises(RayclError, match=r"a\.xml: not readable XML"):
        import_dataset("detection", tmp_path / "voc", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RayclError, match="as COCO has them"):
        import_dataset("detection", tmp_path / "empty", tmp_path / "out")


def test_more_objects_than_a_mask_can_tell_apart(tmp_path: Path) -> None:
    many = [one(bbox=[1, 1, 2, 2]) for _ in range(255)]
    coco(tmp_path / "src", "train", [(PIXELS, many)])
    with pytest.raises(RayclError, match=r"10\.png: has 255 objects with masks"):
        import_dataset("detection", tmp_path / "src", tmp_path / "out")
    coco(tmp_path / "boxes", "train", [(PIXELS, [{**o, "segmentation": []} for o in many])])
    shards = imported(tmp_path / "boxes", "train")
    assert len(objects_of(shards)) == 255 and shards.read(0)["objects"].shape == (256, 6)
