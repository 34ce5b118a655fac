from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raycl.nn.batchnorm import BatchNorm
from raycl.nn.heads import mlp


def _kinds(head: nn.Sequential) -> list[str]:
    """Layers in short: a linear layer or norm with its parameters' initials."""
    return [
        type(layer).__name__ + "".join(f" {name[0]}" for name, _ in layer.named_parameters())
        for layer in head
    ]


def test_simclr_projector() -> None:
    head = mlp((6, 5, 4), last_norm="scale", scope="global")
    assert _kinds(head) == ["Linear w", "BatchNorm w b", "ReLU", "Linear w", "BatchNorm w"]
    assert [layer.scope for layer in head if isinstance(layer, BatchNorm)] == ["global"] * 2
    x = torch.randn(8, 6)
    hidden = F.relu(F.batch_norm(x @ head[0].weight.T, None, None, training=True))
    expected = F.batch_norm(hidden @ head[3].weight.T, None, None, training=True)
    torch.testing.assert_close(head(x), expected)


@pytest.mark.parametrize(
    ("head", "kinds"),
    [
        (mlp((6, 4), last_bias=True), ["Linear w b"]),
        (mlp((6, 5, 4), norm=False, last_bias=True), ["Linear w b", "ReLU", "Linear w b"]),
        (mlp((6, 5, 4)), ["Linear w", "BatchNorm w b", "ReLU", "Linear w"]),
        (
            mlp((6, 6, 6, 4), last_norm="plain"),
            ["Linear w", "BatchNorm w b", "ReLU"] * 2 + ["Linear w", "BatchNorm"],
        ),
        (mlp((6, 4), last_norm="affine"), ["Linear w", "BatchNorm w b"]),
    ],
    ids=["linear", "moco", "byol", "simsiam", "affine"],
)
def test_other_heads(head: nn.Sequential, kinds: list[str]) -> None:
    assert _kinds(head) == kinds
    assert head(torch.randn(3, 6)).shape == (3, 4)
