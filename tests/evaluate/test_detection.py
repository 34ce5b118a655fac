"""COCO's average precision: of perfect detections, of none, and of ones counted by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from raycl.errors import RayclError
from raycl.evaluate.detection import average_precision, found_objects, true_objects

SIZE = (40, 60)
OBJECTS = np.array(
    [[5, 5, 25, 25, 0, 0], [30, 10, 50, 30, 2, 0], [0, 30, 60, 40, 0, 1], [0, 0, 0, 0, -1, 0]],
    np.float32,
)


def instances() -> memoryview:
    mask = np.zeros(SIZE, np.uint8)
    for k, (x0, y0, x1, y1) in enumerate(OBJECTS[:3, :4].astype(int)):
        mask[y0:y1, x0:x1] = k + 1
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return memoryview(file.getvalue())


def detections(rows: np.ndarray, scores: list[float], masks: bool = False) -> dict[str, Tensor]:
    found = {
        "boxes": torch.from_numpy(rows[:, :4]),
        "labels": torch.from_numpy(rows[:, 4]).long(),
        "scores": torch.tensor(scores),
    }
    return found | ({"masks": torch.ones(len(rows), 1, 28, 28)} if masks else {})


def test_perfect_detections_score_one_and_none_zero() -> None:
    truth = true_objects(OBJECTS, instances())
    assert len(truth) == 3
    found = found_objects(detections(OBJECTS[:2], [0.9, 0.8], masks=True), SIZE)
    for kind in ("bbox", "segm"):
        scores = average_precision([SIZE], [truth], [found], kind)
        assert scores == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
        assert average_precision([SIZE], [truth], [[]], kind) == {"AP": 0, "AP50": 0, "AP75": 0}


def test_what_does_not_count_may_be_found_or_missed() -> None:
    truth = true_objects(OBJECTS, None)
    found = found_objects(detections(OBJECTS[[2, 2, 0, 1]], [0.9, 0.8, 0.7, 0.6]), SIZE)
    assert average_precision([SIZE], [truth], [found])["AP"] == pytest.approx(1)
    with pytest.raises(RayclError, match="no object that counts"):
        average_precision([SIZE], [truth[2:]], [found])


def test_boxes_are_right_up_to_their_overlap() -> None:
    """20 x 15.5 pixels of 20 x 20 are an overlap of 0.775: right at 6 of 10 thresholds."""
    truth = true_objects(OBJECTS[:1], None)
    less = OBJECTS[:1] - np.array([0, 0, 0, 4.5, 0, 0], np.float32)
    found = found_objects(detections(less, [0.5]), SIZE)
    scores = average_precision([SIZE], [truth], [found])
    assert scores == pytest.approx({"AP": 0.6, "AP50": 1, "AP75": 1})


def test_false_alarms_cost_precision_and_classes_weigh_the_same() -> None:
    """Class 0: a false alarm first, so precision 1/2 at all recalls. Class 2: not found at all."""
    truth = true_objects(OBJECTS[:2], None)
    elsewhere = OBJECTS[:1] + np.array([30, 10, 30, 10, 0, 0], np.float32)
    rows = np.concatenate([elsewhere, OBJECTS[:1]])
    found = found_objects(detections(rows, [0.9, 0.5]), SIZE)
    assert average_precision([SIZE], [truth], [found])["AP"] == pytest.approx(0.25)
