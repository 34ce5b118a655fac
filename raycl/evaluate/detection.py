"""Average precision of detected objects as COCO defines it, computed by COCO's own pycocotools.

Lin et al. 2014, arXiv 1405.0312; https://cocodataset.org/#detection-eval. The figures that are
published for VOC in COCO's style come from Detectron2, which takes the area below the curve of
precision over recall where pycocotools takes its mean at 101 recalls: they may differ by tenths.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from raycl.errors import RayclError

Marked = dict[str, Any]  # an object as pycocotools wants it


def coco_tools() -> Any:
    """The package pycocotools, with its modules `coco`, `cocoeval` and `mask`.

    Raises:
        RayclError: it is not installed.
    """
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise RayclError(
            f"objects are scored, and their masks drawn, by pycocotools, which cannot be imported "
            f"({error}): pip install 'raycl[detection]'"
        ) from error
    return pycocotools


def true_objects(objects: np.ndarray, instances: memoryview | None) -> list[Marked]:
    """The objects of an image.

    Args:
        objects: (M, 6) x0, y0, x1, y1 in pixels, class, 1 for what does not count; unused rows have
            class -1. Like COCO's crowds, what does not count may be found any number of times.
        instances: an image file with k + 1 where the object of row k is; None: without masks.
    """
    mask = None if instances is None else np.asarray(Image.open(io.BytesIO(instances)))
    return [
        _marked(row[:4], row[4], None if mask is None else mask == k + 1, iscrowd=int(row[5]))
        for k, row in enumerate(objects)
        if row[4] >= 0
    ]


def found_objects(detections: Mapping[str, Tensor], size: tuple[int, int]) -> list[Marked]:
    """What a method has found on an image.

    Args:
        detections: as of `Method.detections`, its boxes in pixels of the image.
        size: height and width of the image.
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    boxes, masks = detections["boxes"], detections.get("masks")
    if masks is not None:
        masks = paste_masks_in_image(masks, boxes, size)[:, 0] > 0.5
    columns = (detections[name].tolist() for name in ("labels", "scores"))
    return [
        _marked(box, label, None if masks is None else masks[i].cpu().numpy(), score=score)
        for i, (box, label, score) in enumerate(zip(boxes.tolist(), *columns, strict=True))
    ]


def _marked(box: Sequence[float], label: float, mask: np.ndarray | None, **more: Any) -> Marked:
    x0, y0, x1, y1 = map(float, box)
    bbox = [x0, y0, x1 - x0, y1 - y0]
    marked = {"category_id": int(label), "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}
    if mask is not None:
        marked["segmentation"] = coco_tools().mask.encode(np.asfortranarray(mask, np.uint8))
    return marked | more


def average_precision(
    sizes: Sequence[tuple[int, int]],
    truth: Sequence[Sequence[Marked]],
    found: Sequence[Sequence[Marked]],
    kind: str = "bbox",
) -> dict[str, float]:
    """AP (the mean over IoUs from 0.5 to 0.95), AP50 and AP75: means over the classes there are.

    Args:
        sizes: height and width of each image.
        truth, found: the objects of each image.
        kind: "bbox", or "segm" for that of masks.

    Raises:
        RayclError: the images have no object that counts.
    """
    tools = coco_tools()
    with contextlib.redirect_stdout(io.StringIO()):
        judge = tools.cocoeval.COCOeval(_listed(sizes, truth), _listed(sizes, found), kind)
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., 0, -1]  # (IoUs, recalls, classes); -1 without objects
    shown = precision[:, :, (precision > -1).all((0, 1))]
    if not shown.size:
        raise RayclError("data.test: its images have no object that counts")
    figures = {"AP": shown, "AP50": shown[0], "AP75": shown[5]}
    return {name: float(values.mean()) for name, values in figures.items()}


def _listed(sizes: Sequence[tuple[int, int]], marked: Sequence[Sequence[Marked]]) -> Any:
    """Objects as a data set of pycocotools."""
    data = coco_tools().coco.COCO()
    every = [{**one, "image_id": image} for image, part in enumerate(marked) for one in part]
    data.dataset = {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)],
        "categories": [{"id": kind} for kind in {one["category_id"] for one in every}],
        # Counted from 1: to pycocotools, what was matched with object 0 was matched with none.
        "annotations": [{**one, "id": number} for number, one in enumerate(every, 1)],
    }
    data.createIndex()
    return data
