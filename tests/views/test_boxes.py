"""Boxes go where the pixels of their objects go, and come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raycl.views.boxes import clipped, into_view, out_of_view
from raycl.views.image import Crop, ImageView

HEIGHT, WIDTH, SIZE = 90, 120, 60


def planned(view: ImageView, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = np.full(count, HEIGHT), np.full(count, WIDTH)
    plan = view.plan(0, 0, np.arange(count), 0, *sizes)
    return torch.from_numpy(plan["box"]), torch.from_numpy(plan["flip"])


@pytest.mark.parametrize("how", [{"crop": Crop(scale=(0.3, 1.0))}, {"whole": True}, {}])
def test_a_box_frames_its_pixels_in_any_view(how: dict) -> None:
    view = ImageView(size=SIZE, interpolation="bilinear", **how)
    generator = np.random.default_rng(0)
    crops, flips = planned(view, 40)
    off = []
    for crop, flip in zip(crops, flips, strict=True):
        x0, y0 = generator.integers(0, (WIDTH - 40, HEIGHT - 40))
        x1, y1 = np.add((x0, y0), generator.integers(20, 40, 2))
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[y0:y1, x0:x1] = 255
        pixels = np.empty((SIZE, SIZE, 3), np.uint8)
        view.cut(image, crop.tolist(), bool(flip), pixels)
        box = torch.tensor([[[x0, y0, x1, y1]]], dtype=torch.float64)
        moved = into_view(box, crop[None], flip[None], SIZE)
        back = out_of_view(moved, crop[None], flip[None], SIZE)
        torch.testing.assert_close(back, box)
        inside, share = clipped(moved, SIZE)
        ys, xs = (pixels[..., 0] > 127).nonzero()
        if not len(ys):
            assert share < 0.05
            continue
        framed = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        off.append((inside[0, 0] - framed).abs().max().item())
    assert max(off) <= 1 and flips.any() and not flips.all() and len(off) > 20


def test_the_share_that_is_left_is_that_of_the_area() -> None:
    boxes = torch.tensor(
        [[0, 0, 10, 10], [-5, 0, 5, 10], [8, 8, 12, 12], [20, 0, 30, 5], [3, 3, 3, 9]]
    )
    inside, share = clipped(boxes.double(), 10)
    assert share.tolist() == [1, 0.5, 0.25, 0, 0]
    assert inside[1].tolist() == [0, 0, 5, 10]
