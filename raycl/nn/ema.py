"""Momentum encoders: networks that follow others (MoCo, He et al. 2020, equation 2)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(network: Network) -> Network:
    """A network with the same weights now, which no gradient reaches."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Moves the parameters of `slow` to momentum * slow + (1 - momentum) * fast.

    Buffers stay: a momentum encoder keeps running statistics of its own.
    """
    weights: list[Tensor] = list(slow.parameters())
    towards: list[Tensor] = list(fast.parameters())
    if weights:
        torch._foreach_lerp_(weights, towards, 1 - momentum)


def cosine_momentum(base: float, progress: float) -> float:
    """BYOL's momentum (Grill et al. 2020, section 3.2): from `base` to 1 along half a cosine.

    Args:
        progress: share of the run that is done, in [0, 1].
    """
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
