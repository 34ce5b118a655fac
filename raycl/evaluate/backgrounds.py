"""Images on the backgrounds of others: what an encoder owes to context shows when that is wrong.

It is the "mixed-rand" test of Xiao et al. (2020, "Noise or Signal", arXiv 2006.09994), with the
mean colour in the place of their tiled background where the donor's own object was.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raycl.errors import RayclError


def partners(labels: np.ndarray, seed: int) -> np.ndarray:
    """For each of N samples another one of another class, drawn evenly: (N,) int64 positions.

    Args:
        labels: (N,) integers.
        seed: the draw depends on this and on `labels` only.

    Raises:
        RayclError: there is one class only.
    """
    order = np.argsort(labels, kind="stable")
    classes, start, count = np.unique(labels[order], return_index=True, return_counts=True)
    if len(classes) < 2:
        raise RayclError(
            f"data.test: holds one class only (label {', '.join(map(str, classes))}), and a "
            f"background is taken from an image of another class; add images of a second one"
        )
    own = np.searchsorted(classes, labels)
    drawn = np.random.default_rng(seed).integers(0, len(labels) - count[own])
    # Positions in class order, those of the own class skipped.
    return order[np.where(drawn < start[own], drawn, drawn + count[own])]


def replace_backgrounds(
    images: Tensor, inside: Tensor, others: Tensor, others_inside: Tensor
) -> Tensor:
    """Foregrounds of images on the backgrounds of others, whose own objects are painted over.

    The paint is the mean colour of the donor's background; of a donor that is all foreground, its
    mean colour. Colours may be normalised: means and copies do not mind.

    Args:
        images, others: (N, 3, H, W) floats.
        inside, others_inside: (N, H, W) bool, the foreground of each.

    Returns:
        (N, 3, H, W).
    """
    outside = ~others_inside[:, None]
    counted = (outside | ~outside.any(dim=(2, 3), keepdim=True)).to(others)
    total = (others * counted).sum(dim=(2, 3), keepdim=True)
    mean = total / counted.sum(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None], images, torch.where(outside, others, mean))
