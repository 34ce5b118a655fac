"""An encoder for tests that are given its features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from raycl.methods.base import Batch
from raycl.nn.backbones import Encoder


class Given(Encoder):
    """Its images are the maps (N, C, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": x}


def batch_of(one: np.ndarray, two: np.ndarray) -> Batch:
    """Two views that show the same part of their images."""
    rows = len(one)
    batch = {"id": torch.arange(rows)}
    for name, values in (("view1", one), ("view2", two)):
        batch[name] = torch.from_numpy(values).double()
        batch[f"{name}.box"] = torch.tensor([[0, 0, 8, 8]] * rows)
        batch[f"{name}.flip"] = torch.zeros(rows, dtype=torch.bool)
    return batch


def fill(module: nn.Module, values: dict[str, np.ndarray]) -> None:
    """Loads parameters by name; all of them must be given."""
    state = {name: torch.from_numpy(value) for name, value in values.items()}
    module.load_state_dict(state)
