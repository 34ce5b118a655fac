"""What all encoders have in common, and the way to the output of any of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.mistakes import nearest
from raycl.nn.batchnorm import BatchNorm


class Encoder(nn.Module):
    """Images (N, 3, H, W) -> features (N, dim).

    Attributes:
        dim: features per image.
    """

    dim: int

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> intermediate maps (N, C, h, w) by name, from first to last."""
        raise TypeError(f"{type(self).__name__} does not define maps()")


def last_map(encoder: nn.Module, x: Tensor) -> Tensor:
    """The last of an encoder's maps of images (N, 3, H, W): (N, C, h, w).

    Raises:
        RayclError: the encoder has no maps.
    """
    maps: Any = getattr(encoder, "maps", None)
    if maps is None or getattr(maps, "__func__", None) is Encoder.maps:
        raise RayclError(
            f"{type(encoder).__name__}: this encoder has no maps, which the protocols dense and "
            f"localization need; give it a method `maps` as raycl's Encoder has, or leave them out "
            f"of evaluation.protocols"
        )
    last: Tensor = list(maps(x).values())[-1]
    return last


def extract(encoder: nn.Module, layers: Sequence[str]) -> nn.Module:
    """A module from images to the outputs of any layers by name: "layer3.5", "layer4.1.conv2".

    It is torchvision's feature extraction: a graph of the encoder up to the last of these layers.
    It shares the encoder's parameters, and keeps all activations for a backward pass, whatever the
    encoder's `recompute` says.

    Raises:
        RayclError: a layer does not exist.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    known = dict(encoder.named_modules())
    for layer in layers:
        if layer not in known:
            raise RayclError(
                f"{type(encoder).__name__} has no layer {layer!r}{nearest(layer, known)}"
            )
    with torch.no_grad():  # with gradients, blocks that recompute cannot be traced
        return create_feature_extractor(
            encoder, list(layers), tracer_kwargs={"leaf_modules": [BatchNorm]}
        )
