"""Boxes of objects, carried into a square view by its crop and its flip, and back again.

Boxes are x0, y0, x1, y1 in pixels, from the left and the top edge; the pixel in the corner is from
0 to 1. A crop is top, left, height, width in pixels of the image, as `ImageView.plan` gives it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def into_view(boxes: Tensor, crop: Tensor, flip: Tensor, size: int) -> Tensor:
    """Boxes (N, M, 4) of N images as they lie in their views, also beyond the edges.

    Args:
        crop: (N, 4) of each view.
        flip: (N,) whether it is mirrored.
        size: its side in pixels.
    """
    corner, extent = _frame(crop, boxes)
    return _mirrored((boxes - corner) * (size / extent), flip, size)


def out_of_view(boxes: Tensor, crop: Tensor, flip: Tensor, size: int) -> Tensor:
    """Boxes (N, M, 4) of N views as they lie in their images: the inverse of `into_view`."""
    corner, extent = _frame(crop, boxes)
    return _mirrored(boxes, flip, size) * (extent / size) + corner


def clipped(boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """What a view of `size` pixels shows of boxes (..., 4), and the share (...) of their areas."""
    inside = boxes.clamp(0, size)
    whole, left = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (boxes, inside))
    return inside, torch.where(whole > 0, left / whole, 0)


def _frame(crop: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Corner and extent of crops (N, 4), as (N, 1, 4) in the order of a box."""
    top, left, height, width = crop.to(boxes)[:, None].unbind(2)
    corner, extent = ([left, top], [width, height])
    return torch.stack(corner * 2, 2), torch.stack(extent * 2, 2)


def _mirrored(boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(2)
    turned = torch.stack([size - x1, y0, size - x0, y1], 2)
    return torch.where(flip.bool()[:, None, None], turned, boxes)
