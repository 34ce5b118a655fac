"""Protocols of masks, from a run's directory to rows: scenes whose classes are colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raycl.beton import BytesField, Field, IntField, RGBImageField, Writer
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.nn.backbones.encoder import Encoder, last_map
from raycl.recipe import load
from raycl.report.page import write_report
from raycl.train import scores
from raycl.train.corpus import ShardCorpus
from raycl.train.evaluation import compare, evaluate
from raycl.train.trainer import pretrain
from raycl.views.image import ImageView
from tests.data.shapes import coco
from tests.data.test_masks import png

SIDE = 64


def scenes(folder: Path, count: int, seed: int, labelled: bool = False) -> Path:
    """Squares of a colour on a ground of another; masks of 0, 1 and a border of 255, or of 0, 255.

    With labels, the colour of the square is the class, and masks tell it from its ground.
    """
    generator = np.random.default_rng(seed)
    fields: dict[str, Field] = {"image": RGBImageField("raw"), "mask": BytesField()}
    fields |= {"label": IntField()} if labelled else {}
    folder.mkdir(parents=True)
    with Writer(folder / "a.beton", fields) as writer:
        for index in range(count):
            top, left = generator.integers(8, SIDE - 32, 2)
            square = (slice(top, top + 24), slice(left, left + 24))
            pixels = generator.integers(0, 40, (SIDE, SIDE, 3))
            pixels[square] += 180 * np.eye(3, dtype=np.int64)[index % 3 if labelled else 1]
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[square] = 255 if labelled else 1
            if not labelled:
                mask[:4] = 255
            sample = {"image": pixels.astype(np.uint8), "mask": png(mask)}
            writer.write(sample | ({"label": index % 3} if labelled else {}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for name, labelled in (("masks", False), ("objects", True)):
        for split, count in (("train", 24), ("test", 12)):
            scenes(folder / name / split, count, count, labelled)
    return folder


def places(data: Path, name: str) -> list[str]:
    return [f"data.{split}={data / name / split}" for split in ("train", "test")]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = [
        "data.limit=24",
        f"views.size={SIDE}",
        "method.encoder={depth: 18, width: 8, stem: imagenet}",
        "trainer={workers: 1, lanes: 1, batch: 12, stop: {epochs: 1}}",
        "evaluation={every_epochs: 0, batch: 12}",
    ]
    folder = tmp_path_factory.mktemp("scores") / "run"
    return pretrain(load("simclr/digits", [*places(data, "masks"), *changes]), folder)


def rows_of(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["representation"], row["metric"]): row for row in result["rows"]}


def test_a_run_is_segmented_without_labels_at_another_stride(run: Path) -> None:
    assert load(run).method["encoder"]["output_stride"] == 32
    how = ["evaluation.protocols=[dense]", "method.encoder.output_stride=8"]
    rows = rows_of(evaluate(run, how, baselines=True))
    assert {name for name, _ in rows} == {"raw pixels", "untrained encoder", "trained encoder"}
    for (_, metric), row in rows.items():
        assert metric == "mIoU" and row["protocol"] == "dense" and len(row["ious"]) == 2
        assert (row["train"], row["test"]) == (24, 12)
    assert rows["raw pixels", "mIoU"]["score"] > 0.7  # the classes are colours
    coarse = rows_of(evaluate(run, ["evaluation.protocols=[dense]"]))
    finer = rows["trained encoder", "mIoU"]["score"]
    assert coarse["trained encoder", "mIoU"]["score"] < finer - 0.05
    page = write_report(run).read_text()
    assert "dense: mIoU" in page and "Shares in percent" in page


def test_cells_are_drawn_where_there_are_too_many(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ["evaluation.protocols=[dense]", "method.encoder.output_stride=8"]
    monkeypatch.setattr("raycl.train.scores.CELLS", 24 * 8)
    first, second = (rows_of(evaluate(run, how)) for _ in range(2))
    assert first == second
    assert first["trained encoder", "mIoU"]["score"] > 0.4


def test_data_without_masks_are_refused_by_name(run: Path, tiny: list[str]) -> None:
    with pytest.raises(RayclError, match=r"data\.train: .* has no field 'mask'.*dense needs"):
        evaluate(run, [*tiny[:2], "evaluation.protocols=[dense]"])


def test_data_without_labels_are_refused_by_name(run: Path) -> None:
    with pytest.raises(RayclError, match=r"data\.train: .* has no field 'label'.*knn needs"):
        evaluate(run, ["evaluation.protocols=[dense, knn]"])


def test_masks_of_an_object_are_not_taken_for_one_class(run: Path, data: Path) -> None:
    with pytest.raises(RayclError, match=r"classes \[0\] on 24 .*dense\.ignore=null"):
        evaluate(run, [*places(data, "objects"), "evaluation.protocols=[dense]"])


def test_an_encoder_without_maps_is_refused() -> None:
    for encoder in (nn.Flatten(), Encoder()):
        with pytest.raises(RayclError, match="this encoder has no maps"):
            last_map(encoder, torch.zeros(1, 3, 8, 8))


def test_an_object_is_localized_and_put_on_other_backgrounds(run: Path, data: Path) -> None:
    how = [
        *places(data, "objects"),
        "method.encoder.output_stride=8",
        "evaluation.size=32",
        "evaluation.protocols=[localization, backgrounds]",
    ]
    rows = rows_of(evaluate(run, how, baselines=True))
    assert len(rows) == 2 + 3 * 4
    assert all(row["test"] == 12 for row in rows.values())
    whole = rows["centre, whole image", "IoU"]
    assert whole["score"] == pytest.approx(24**2 / SIDE**2) and "train" not in whole
    for (_, metric), row in rows.items():
        if metric in ("pointing", "IoU"):
            assert row["protocol"] == "localization" and 0 <= row["score"] <= 1
        else:
            assert row["score"] == row["untouched"] - row["replaced"] and row["train"] == 24
    assert rows["raw pixels", "linear drop"]["untouched"] > 0.9  # classes are colours
    page = write_report(run).read_text()
    assert "localization: IoU" in page and "backgrounds: kNN drop" in page


def test_masks_of_numbers_are_no_foreground(run: Path, data: Path) -> None:
    ones = data / "ones.beton"
    with Writer(ones, {"image": RGBImageField("raw"), "mask": BytesField()}) as writer:
        for _ in range(3):
            mask = np.eye(SIDE, dtype=np.uint8)
            writer.write({"image": np.zeros((SIDE, SIDE, 3), np.uint8), "mask": png(mask)})
    with pytest.raises(RayclError, match="none of the masks of 3 images holds a value above 127"):
        evaluate(run, [f"data.test={ones}", "evaluation.protocols=[localization]"])


def test_geometry_needs_neither_labels_nor_masks(run: Path) -> None:
    rows = rows_of(evaluate(run, ["evaluation.protocols=[geometry]"]))
    assert 0 <= rows["trained encoder", "alignment"]["score"] <= 4
    assert -4 <= rows["trained encoder", "uniformity"]["score"] <= 0
    assert 1 <= rows["trained encoder", "RankMe"]["score"] <= 12  # as many test images there are


def test_chosen_test_samples_are_scored(run: Path, data: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", np.array([3, 1, 7]))
    how = [
        *places(data, "objects"),
        f"data.test_indices={tmp_path / 'some.npy'}",
        "evaluation.protocols=[knn]",
    ]
    (row,) = evaluate(run, how)["rows"]
    assert row["test"] == 3
    np.save(tmp_path / "some.npy", np.array([3, 12]))
    with pytest.raises(RayclError, match="sample ids from 3 to 12 .* has 0 to 11"):
        evaluate(run, how)


def test_a_run_is_like_itself(run: Path, data: Path) -> None:
    assert compare(run, run) == pytest.approx(1, abs=1e-6)
    finer = compare(run, run, ["method.encoder.output_stride=8", *places(data, "objects")])
    assert 0 < finer < 0.999


def test_a_classifier_of_pixels_is_fine_tuned_and_scored(data: Path, tmp_path: Path) -> None:
    changes = [
        *places(data, "masks"), "views.size=64", "optimizer.lr=0.1",
        "evaluation={size: 64, protocols: [classifier]}",
        "method.classes=2", "method.ignore=255", "method.hidden=16", "method.encoder.width=8",
        "trainer={batch: 8, stop: {epochs: 12}, device: cpu}",
    ]  # fmt: skip
    run = pretrain(load("fcn/camvid-small", changes), tmp_path / "run")
    (row,) = evaluate(run)["rows"]
    assert (row["protocol"], row["metric"]) == ("classifier", "mIoU")
    assert row["score"] > 0.8


def test_a_classifier_of_images_is_fine_tuned_and_scored(data: Path, tmp_path: Path) -> None:
    changes = [
        *places(data, "objects"), "views.size=32", "evaluation={size: 32, protocols: [classifier]}",
        "method.classes=3", "method.encoder.width=8", "data.limit=null",
        "optimizer.lr=0.01", "optimizer.warmup_epochs=0",
        "trainer={batch: 12, lanes: 1, workers: 1, stop: {epochs: 10}, device: cpu}",
    ]  # fmt: skip
    run = pretrain(load("supervised/cifar10-small", changes), tmp_path / "run")
    (row,) = evaluate(run)["rows"]
    assert (row["metric"], row["test"]) == ("accuracy", 12)
    assert row["score"] > 0.9


def test_a_method_without_a_classifier_is_not_asked_for_one(run: Path) -> None:
    with pytest.raises(RayclError, match=r"'classifier' scores .* SimCLR has none"):
        evaluate(run, ["evaluation.protocols=[classifier]"])


class Brightest:
    """Finds what is bright in a view: one box that its mask fills."""

    def detections(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        found = []
        for image in images:
            rows, columns = (image.mean(0) > 0.5).nonzero().unbind(1)
            ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            found.append(
                {
                    "boxes": torch.stack(ends)[None].float(),
                    "labels": torch.ones(1, dtype=torch.long),
                    "scores": torch.ones(1),
                    "masks": torch.ones(1, 1, 28, 28),
                }
            )
        return found


def test_boxes_and_masks_are_scored_in_the_pixels_of_the_stored_image(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = []
    for size in [(90, 160), (160, 90), (100, 100)] * 4:
        x, y = generator.integers(0, 40, 2).tolist()
        pixels = np.zeros((*size, 3), np.uint8)
        pixels[y : y + 40, x : x + 30] = 255
        outline = [[x, y, x + 30, y, x + 30, y + 40, x, y + 40]]
        one = {"category_id": 7, "bbox": [x, y, 30, 40], "segmentation": outline}
        images.append((pixels, [one]))
    coco(tmp_path / "src", "val", images)
    import_dataset("detection", tmp_path / "src", tmp_path / "out")
    shards = Shards(tmp_path / "out" / "val")
    corpus = ShardCorpus(shards, np.arange(12), ImageView(size=128), 5, torch.device("cpu"))
    scored = scores.detection(Brightest(), corpus, corpus)  # type: ignore[arg-type]
    found = {row["metric"]: row["score"] for row in scored}
    assert found.keys() == {f"{kind}AP{at}" for kind in ("", "mask ") for at in ("", 50, 75)}
    assert all(score > 0.8 for score in found.values())  # masks are pasted to whole pixels
    assert all(found[name] > 0.999 for name in ("AP50", "AP75", "mask AP50", "mask AP75"))


def test_a_method_that_finds_no_objects_is_not_asked_for_them(run: Path) -> None:
    with pytest.raises(RayclError, match=r"'detection' scores .* SimCLR is none"):
        evaluate(run, ["evaluation.protocols=[detection]"])
