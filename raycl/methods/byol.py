"""BYOL: bootstrap your own latent.

Grill et al., NeurIPS 2020, arXiv 2006.07733.

    p = q(g(f(x))),  t = g'(f'(x)),  loss = |p1 - t2|^2 + |p2 - t1|^2, all of unit length

The online network predicts what the target network, its moving average, makes of the other view;
there are no negatives. The target moves after each update, by a momentum that rises to 1. Each view
has batch statistics of its own.
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
    ResNetBackbone,
    Settings,
    Step,
    Stream,
)
from raycl.nn.ema import cosine_momentum, follow, momentum_copy
from raycl.nn.heads import mlp
from raycl.nn.losses import negative_cosine
from raycl.views.published import byol


class Head(Settings):
    """Linear-BN-ReLU-Linear: g, and q."""

    hidden: int = Field(4096, ge=1)
    dim: int = Field(256, ge=1)


class BYOL(Method):
    """BYOL with a ResNet encoder (paper section 3; defaults of section 3.2 and appendix C)."""

    paper = "arXiv 2006.07733"

    class Config(Settings):
        momentum: float = Field(0.996, ge=0, le=1, description="at the start; it rises to 1")
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        head: Head = Head()

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        scope, head = self.config.batch_norm, self.config.head
        encoder = self.encoder = self.config.encoder.build(scope)
        self.projector = mlp([encoder.dim, head.hidden, head.dim], scope=scope)
        self.predictor = mlp([head.dim, head.hidden, head.dim], scope=scope)
        self.target_encoder = momentum_copy(self.encoder)
        self.target_projector = momentum_copy(self.projector)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=byol())}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for index in (1, 2):
            x = batch[f"view{index}"]
            h = self.encoder(x)
            found[f"p{index}"] = self.predictor(self.projector(h))
            found[f"h{index}"] = h.detach()
            with torch.no_grad():
                found[f"t{index}"] = self.target_projector(self.target_encoder(x))
        return found

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        one = negative_cosine(embeddings["p1"], embeddings["t2"])
        two = negative_cosine(embeddings["p2"], embeddings["t1"])
        return Output(4 + 2 * (one + two), embedding=embeddings["h1"].detach())

    def after_step(self, step: Step) -> None:
        momentum = cosine_momentum(self.config.momentum, step.progress)
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)
