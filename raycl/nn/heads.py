"""Projectors and predictors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from raycl.nn.batchnorm import BatchNorm, Scope


def mlp(
    sizes: Sequence[int],
    *,
    norm: bool = True,
    last_norm: Literal["scale", "plain", "affine"] | None = None,
    last_bias: bool = False,
    scope: Scope = "lane",
) -> nn.Sequential:
    """A multi-layer perceptron (N, sizes[0]) -> (N, sizes[-1]), ReLU after all layers but the last.

    A linear layer that a batch norm follows has no bias, which would be subtracted again.

    - SimCLR's projector: `mlp((h, h, 128), last_norm="scale")`
    - MoCo v2's: `mlp((h, h, 128), norm=False, last_bias=True)`
    - BYOL's projector and predictor: `mlp((h, 4096, 256))`
    - SimSiam's projector: `mlp((h, h, h, h), last_norm="plain")`; predictor:
      `mlp((h, h // 4, h), last_bias=True)`

    Args:
        sizes: widths from input to output; two of them make a linear layer.
        norm: whether the hidden layers have a batch norm.
        last_norm: batch norm on the output: with a learned scale and no shift, with neither, or
            with both.
        last_bias: whether the last linear layer has a bias.
        scope: whose rows the batch norms share their statistics with.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers.append(nn.Linear(before, after, bias=not norm))
        if norm:
            layers.append(BatchNorm(after, scope))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=last_bias))
    if last_norm is not None:
        layers.append(
            BatchNorm(sizes[-1], scope, weight=last_norm != "plain", bias=last_norm == "affine")
        )
    return nn.Sequential(*layers)
