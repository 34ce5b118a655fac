"""MoCo v3: an empirical study of training self-supervised vision transformers.

Chen, Xie, He, ICCV 2021, arXiv 2104.02057.

    loss = 2 t (CE(q1 . k2 / t) + CE(q2 . k1 / t)),  q = h(g(f(x))),  k = g'(f'(x))

No queue: negatives are the other keys of the global batch. The momentum encoder's momentum rises to
1. A vision transformer's patch projection stays as it was drawn (section 4.2).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raycl.methods.base import (
    Backbone,
    Batch,
    DataInfo,
    Method,
    Output,
    Settings,
    Step,
    Stream,
    ViTBackbone,
)
from raycl.nn.ema import cosine_momentum, follow, momentum_copy
from raycl.nn.heads import mlp
from raycl.nn.losses import in_batch
from raycl.views.published import byol


class MoCoV3(Method):
    """MoCo v3 (paper sections 3 and 4; defaults of the released code for ViT-S)."""

    paper = "arXiv 2104.02057"

    class Config(Settings):
        temperature: float = Field(0.2, gt=0, le=100)
        momentum: float = Field(0.99, ge=0, le=1, description="at the start; it rises to 1")
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ViTBackbone()
        hidden: int = Field(4096, ge=1)
        dim: int = Field(256, ge=1)

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        settings, scope = self.config, self.config.batch_norm
        encoder = self.encoder = settings.encoder.build(scope)
        if patches := getattr(encoder, "conv_proj", None):
            patches.requires_grad_(False)
        sizes = [encoder.dim, settings.hidden, settings.hidden, settings.dim]
        self.projector = mlp(sizes, last_norm="plain", scope=scope)
        head = [settings.dim, settings.hidden, settings.dim]
        self.predictor = mlp(head, last_norm="plain", scope=scope)
        self.key_encoder = momentum_copy(self.encoder)
        self.key_projector = momentum_copy(self.projector)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=byol())}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for index in (1, 2):
            x = batch[f"view{index}"]
            h = self.encoder(x)
            found |= {f"q{index}": self.predictor(self.projector(h)), f"h{index}": h.detach()}
            with torch.no_grad():
                found[f"k{index}"] = self.key_projector(self.key_encoder(x))
        return found

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        t = self.config.temperature
        one = in_batch(embeddings["q1"], embeddings["k2"].detach(), t)
        two = in_batch(embeddings["q2"], embeddings["k1"].detach(), t)
        return Output(2 * t * (one + two), embedding=embeddings["h1"].detach())

    def after_step(self, step: Step) -> None:
        momentum = cosine_momentum(self.config.momentum, step.progress)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_projector, self.projector, momentum)
