from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import VisionTransformer, vit_b_16

from raycl.errors import RayclError
from raycl.nn.backbones.vit import ViT


def tiny(image: int = 32) -> ViT:
    torch.manual_seed(0)
    encoder = ViT("tiny", patch=8, image=image)
    return encoder.eval()


def theirs(encoder: ViT, image: int, positions: Tensor) -> VisionTransformer:
    """torchvision's own, with the same weights and given positions."""
    model = VisionTransformer(image, 8, 12, 3, 192, 768, num_classes=1)
    state = encoder.state_dict() | {"encoder.pos_embedding": positions}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.heads = torch.nn.Identity()
    return model.eval()


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        ours, published = ViT("base").state_dict(), vit_b_16(weights=None).state_dict()
    heads = {"heads.head.weight", "heads.head.bias"}
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in published.items() if k not in heads
    }


def test_equals_torchvision() -> None:
    encoder, x = tiny(), torch.randn(2, 3, 32, 32)
    features = encoder(x)
    assert features.shape == (2, encoder.dim)
    torch.testing.assert_close(features, theirs(encoder, 32, encoder.encoder.pos_embedding)(x))


def test_positions_are_interpolated_to_other_sizes() -> None:
    encoder, x = tiny(), torch.randn(2, 3, 48, 48)
    embedding = encoder.encoder.pos_embedding.detach()
    grid = embedding[:, 1:].transpose(1, 2).reshape(1, 192, 4, 4)
    grid = F.interpolate(grid, scale_factor=1.5, mode="bicubic")  # as DINO's published code does
    positions = torch.cat([embedding[:, :1], grid.reshape(1, 192, 36).transpose(1, 2)], 1)
    torch.testing.assert_close(encoder(x), theirs(encoder, 48, positions)(x))
    encoder(x).square().sum().backward()
    gradient = encoder.encoder.pos_embedding.grad
    assert gradient is not None and (gradient != 0).any(-1).all()


def test_maps_are_the_patches_where_they_lie() -> None:
    encoder, x = tiny(), torch.randn(2, 3, 16, 40)
    maps = encoder.maps(x)
    assert list(maps) == [*(f"layer{index}" for index in range(1, 13)), "norm"]
    assert {tuple(value.shape) for value in maps.values()} == {(2, 192, 2, 5)}
    torch.testing.assert_close(
        encoder.encoder.ln(maps["layer12"].movedim(1, -1)), maps["norm"].movedim(1, -1)
    )
    # Without blocks, position or neighbours, a cell is the projection of its patch.
    encoder.encoder.layers = torch.nn.Sequential(torch.nn.Identity())
    encoder.encoder.pos_embedding.data.zero_()
    torch.testing.assert_close(encoder.maps(x)["layer1"], encoder.conv_proj(x))


def test_a_size_that_the_patch_does_not_divide() -> None:
    with pytest.raises(RayclError, match=r"30x32 pixels .* a size that 8 divides"):
        tiny()(torch.zeros(1, 3, 30, 32))
