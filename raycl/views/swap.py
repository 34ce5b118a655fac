"""Foreground crop-and-swap: the object of one image in the surroundings of another, on any device.

A reconstruction of CVSA's view generation (arXiv 2106.15788), of which only the outline is public:
what is cut, how it is filled and pasted is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.views import ops

LEAST, MOST = 0.02, 0.9  # of the image's area: what a foreground has to cover to be swapped
MARGIN = 0.1  # by which an object's box is enlarged
EDGE = 0.01  # sigma of the soft edge, as a fraction of the side
HOLE = 8  # cells a side of the coarse surroundings that fill what is taken out


def usable(mask: Tensor) -> Tensor:
    """(N,) whether the foreground of each mask (N, H, W), in [0, 1], can be swapped."""
    share = (mask > 0.5).float().mean((1, 2))
    return (share >= LEAST) & (share <= MOST)


def boxes(mask: Tensor) -> Tensor:
    """Tight boxes of foregrounds, a tenth larger and within the image.

    Args:
        mask: (N, H, W) in [0, 1], foreground above 0.5; an empty one gets the whole image.

    Returns:
        (N, 4) top, left, height, width in pixels, float32.
    """
    inside = mask > 0.5
    ends = []
    for axis in (2, 1):
        line = inside.any(axis)
        line |= ~line.any(1, keepdim=True)
        size = line.shape[1]
        first = line.float().argmax(1)
        last = size - line.flip(1).float().argmax(1)
        room = MARGIN / 2 * (last - first)
        ends.append(((first - room).clamp(min=0), (last + room).clamp(max=size)))
    (top, bottom), (left, right) = ends
    return torch.stack([top, left, bottom - top, right - left], 1)


def without_foreground(images: Tensor, mask: Tensor) -> Tensor:
    """Images (N, 3, H, W) whose foreground is filled with a blurred mean of what surrounds it."""
    # A little more is taken out, or a seam of the object's own pixels would show where it was.
    hard = (mask > 0.5).to(images.dtype)[:, None]
    around = round(2 * EDGE * max(images.shape[2:]))
    kept = 1 - F.max_pool2d(hard, 2 * around + 1, 1, around)
    # The tiny weight of the mean of all that is kept fills cells that hold nothing else.
    total = kept.mean((2, 3), keepdim=True).clamp(min=1e-6)
    mean = (images * kept).mean((2, 3), keepdim=True) / total
    colour = F.adaptive_avg_pool2d(images * kept, HOLE) + 1e-3 * mean
    weight = F.adaptive_avg_pool2d(kept, HOLE) + 1e-3
    size = images.shape[2:]
    filled = F.interpolate(colour / weight, size, mode="bilinear", align_corners=False)
    soft = _softened(kept)
    return images * soft + filled * (1 - soft)


def swap(images: Tensor, mask: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Puts each image's foreground where its partner has its own.

    The foreground, as large as fits into the partner's box with its aspect ratio kept, lies over
    the partner's image, whose own foreground is taken out; its edge is soft.

    Args:
        images: (N, 3, H, W) in [0, 1].
        mask: (N, H, W) in [0, 1], foreground above 0.5.
        partner: (N,) row whose surroundings each image gets.

    Returns:
        Images (N, 3, H, W) and masks (N, H, W) of what was pasted.
    """
    height, width = images.shape[2:]
    own = boxes(mask)
    target = own[partner]
    scale = (target[:, 2:] / own[:, 2:]).amin(1)  # of the object
    unit = own.new_tensor([height, width])
    middle, goal = (2 * (b[:, :2] + b[:, 2:] / 2) / unit - 1 for b in (own, target))
    # A pixel at u of the result shows the object's pixel at middle + (u - goal) / scale.
    shift = middle - goal / scale[:, None]
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, 0, 2], theta[:, 1, 2] = shift[:, 1], shift[:, 0]
    grid = F.affine_grid(theta, [len(images), 1, height, width], align_corners=False)
    hard = (mask > 0.5).to(images.dtype)[:, None]
    moved = F.grid_sample(torch.cat([images, hard], 1), grid, align_corners=False)
    pasted = (moved[:, 3:] > 0.5).to(images.dtype)
    soft = _softened(pasted)
    ground = without_foreground(images[partner], mask[partner])
    return moved[:, :3] * soft + ground * (1 - soft), pasted[:, 0]


def _softened(mask: Tensor) -> Tensor:
    """Masks (N, 1, H, W) with a Gaussian edge."""
    sigma = EDGE * max(mask.shape[2:])
    kernel = 2 * round(2 * sigma) + 1
    return ops.gaussian_blur(mask, mask.new_full((len(mask),), sigma), kernel)
