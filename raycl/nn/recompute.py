"""Activation checkpointing: memory bought with a second forward pass (Chen et al. 2016)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from raycl.nn import lanes


def recompute_in_backward(module: nn.Module) -> None:
    """Makes a module forget its inner activations and compute them again in the backward pass.

    In place: names of parameters, hooks and copies of the module are what they were. Gradients and
    running statistics are those of a module that remembers.
    """
    # A bound method, because a deep copy binds it to the copy.
    module.forward = MethodType(_forward, module)


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # In the backward pass another layout is in force, and running statistics have moved already.
    first = lanes.current()
    passes = chain([first], repeat(replace(first, update_statistics=False)))

    def run(*args: Any, **kwargs: Any) -> Any:
        with lanes.use(next(passes)):
            return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)
