"""Barlow Twins: self-supervised learning via redundancy reduction.

Zbontar, Jing, Misra, LeCun, Deny, ICML 2021, arXiv 2103.03230.

    C = correlation of g(f(x1)) and g(f(x2)) over the batch
    loss = sum_i (1 - C_ii)^2 + lambda sum_(i != j) C_ij^2

The batch is that of all ranks. Biases and batch norms learn at another rate than weights
(released code: 0.0048 against 0.2).
"""

from __future__ import annotations

from typing import Any, Literal

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
from raycl.nn.heads import mlp
from raycl.nn.losses import barlow_twins
from raycl.views.published import byol


class BarlowTwins(Method):
    """Barlow Twins with a ResNet encoder (paper sections 2.1 and 2.2)."""

    paper = "arXiv 2103.03230"

    class Config(Settings):
        off_diagonal: float = Field(0.0051, gt=0, description="lambda")
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        dim: int = Field(8192, ge=1, description="of the projector's three layers")

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        scope, dim = self.config.batch_norm, self.config.dim
        encoder = self.encoder = self.config.encoder.build(scope)
        self.projector = mlp([encoder.dim, dim, dim, dim], scope=scope)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=byol())}

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        (weights, biases) = super().parameter_groups()["main"]
        return {"main": [weights, biases | {"lr_scale": 0.0048 / 0.2}]}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        h1, h2 = (self.encoder(batch[name]) for name in ("view1", "view2"))
        return {"z1": self.projector(h1), "z2": self.projector(h2), "h": h1.detach()}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        loss = barlow_twins(embeddings["z1"], embeddings["z2"], self.config.off_diagonal)
        return Output(loss, embedding=embeddings["h"].detach())
