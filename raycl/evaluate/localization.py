"""Where an encoder looks, without access to a mask: pointing game and IoU of its attention.

The attention is that of cross-view saliency alignment (CVSA, Wu et al. 2021, arXiv 2106.15788) with
the image's own mean feature as the query, as no second view is at hand. The pointing game is Zhang
et al.'s (2016, "Top-down Neural Attention by Excitation Backprop"), without their tolerance of 15
pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.errors import RayclError


def attention(maps: Tensor, temperature: float = 0.1) -> Tensor:
    """How much the cells of maps (N, D, h, w) are like their mean: (N, h, w), of sum 1.

    a(p) = softmax over p of cos(F_p, g) / temperature, g being the mean of F over the cells.
    """
    cells = maps.flatten(2)
    cosine = F.cosine_similarity(cells, cells.mean(dim=2, keepdim=True), dim=1)
    return (cosine / temperature).softmax(dim=1).unflatten(1, maps.shape[2:])


def foreground(masks: Tensor) -> Tensor:
    """Masks (N, H, W) uint8 as booleans: above 127, so of saliency maps and of masks of 0 and 255.

    Masks of 0 and 1, or of numbered objects, hold no foreground; `check_foreground` tells.
    """
    return masks > 127


def check_foreground(shown: int, images: int) -> None:
    """Refuses a data set none of whose images shows any foreground."""
    if not shown:
        raise RayclError(
            f"data.test: none of the masks of {images} images holds a value above 127, which is "
            f"what counts as foreground; make masks of 0 and 255 (of 0 and 1: times 255) and import"
            f" them again"
        )


def pointed(maps: Tensor, inside: Tensor) -> Tensor:
    """Whether the centre of the highest cell lies in the foreground: (N,) bool.

    Of several highest cells the first counts. A centre between two pixels is the later one.

    Args:
        maps: (N, h, w) attention.
        inside: (N, H, W) bool.
    """
    (h, w), (height, width) = maps.shape[1:], inside.shape[1:]
    cell = maps.flatten(1).argmax(dim=1)
    row, column = (2 * (cell // w) + 1) * height // (2 * h), (2 * (cell % w) + 1) * width // (2 * w)
    return inside[torch.arange(len(maps), device=maps.device), row, column]


def overlap(maps: Tensor, inside: Tensor) -> Tensor:
    """IoU of the foreground with the attention, upsampled and above its mean: (N,) float32.

    Where the attention is the same everywhere nothing is above its mean, and the IoU is 0.

    Args:
        maps: (N, h, w) attention; it is upsampled bilinearly (align_corners=False).
        inside: (N, H, W) bool, with at least one pixel of each image.
    """
    up = F.interpolate(maps[:, None], inside.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    above = up > up.mean(dim=(1, 2), keepdim=True)
    return (above & inside).sum(dim=(1, 2)) / (above | inside).sum(dim=(1, 2))
