"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) for images of any size."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from raycl.errors import RayclError
from raycl.nn.backbones.encoder import Encoder
from raycl.nn.recompute import recompute_in_backward

Size = Literal["tiny", "small", "base", "large"]

# Channels, blocks and heads; tiny and small as in DeiT and DINO.
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


class ViT(VisionTransformer, Encoder):
    """torchvision's transformer without classifier; parameters carry its names.

    Args:
        size: channels, blocks and heads: tiny 192, 12, 3; small 384, 12, 6; base 768, 12, 12;
            large 1024, 24, 16.
        patch: side of a patch in pixels.
        image: side of the images that the position embeddings are made for, a multiple of `patch`.
            For others they are interpolated bicubically, as in DINO (arXiv 2104.14294).
        recompute: whether blocks keep only their inputs for the backward pass.
    """

    conv_proj: nn.Conv2d
    class_token: nn.Parameter
    encoder: Any
    patch_size: int

    def __init__(
        self, size: Size = "small", patch: int = 16, image: int = 224, recompute: bool = False
    ) -> None:
        dim, blocks, heads = _SIZES[size]
        super().__init__(image, patch, blocks, heads, dim, 4 * dim)
        self.dim = dim
        del self.heads
        for block in self.encoder.layers if recompute else ():
            recompute_in_backward(block)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> class token after the final norm (N, dim).

        Raises:
            RayclError: H or W is no multiple of the patch.
        """
        return self.encoder.ln(self.encoder.layers(self._tokens(x)))[:, 0]

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """Patch tokens (N, dim, H / patch, W / patch) after each block and the final norm.

        They are called "layer1" .. "layer12" (large: "layer24") and "norm".
        """
        grid = [side // self.patch_size for side in x.shape[2:]]
        maps = {}
        x = self._tokens(x)
        for index, block in enumerate(self.encoder.layers, 1):
            x = block(x)
            maps[f"layer{index}"] = x
        maps["norm"] = self.encoder.ln(x)
        return {name: x[:, 1:].mT.unflatten(2, grid) for name, x in maps.items()}

    def _tokens(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> class and patch tokens with positions (N, 1 + h w, dim)."""
        positions = _positions(self.encoder.pos_embedding, x, self.patch_size)
        patches = self.conv_proj(x).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], 1)
        return tokens + positions


@torch.fx.wrap  # feature extraction shall not trace the choices in here, which depend on the image
def _positions(embedding: Tensor, x: Tensor, patch: int) -> Tensor:
    """Embeddings (1, 1 + side^2, dim) for the patches of images (N, 3, H, W)."""
    height, width = x.shape[2:]
    if height % patch or width % patch:
        raise RayclError(
            f"images of {height}x{width} pixels are no whole number of patches: "
            f"choose a size that {patch} divides"
        )
    side = round((embedding.shape[1] - 1) ** 0.5)
    grid = (height // patch, width // patch)
    if grid == (side, side):
        return embedding
    token, patches = embedding.split([1, side * side], 1)
    patches = patches.mT.unflatten(2, (side, side))
    patches = F.interpolate(patches, grid, mode="bicubic", align_corners=False)
    return torch.cat([token, patches.flatten(2).mT], 1)
