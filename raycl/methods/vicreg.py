"""VICReg: variance-invariance-covariance regularization.

Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906.

    loss = lambda |z1 - z2|^2 / (n d) + mu v(z1, z2) + nu c(z1, z2),  z = g(f(x))

v keeps the deviation of every dimension above 1, c decorrelates them, both over the batch of all
ranks. v is the mean over the views, as in the released code; the paper's equation 6 adds them.
"""

from __future__ import annotations

from typing import Literal

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
from raycl.nn.losses import vicreg
from raycl.views.published import byol


class VICReg(Method):
    """VICReg with a ResNet encoder (paper sections 4.1 and 4.2)."""

    paper = "arXiv 2105.04906"

    class Config(Settings):
        invariance: float = Field(25.0, ge=0, description="lambda")
        variance: float = Field(25.0, ge=0, description="mu")
        covariance: float = Field(1.0, ge=0, description="nu")
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        dim: int = Field(8192, ge=2, description="of the expander's three layers")

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        scope, dim = self.config.batch_norm, self.config.dim
        encoder = self.encoder = self.config.encoder.build(scope)
        self.projector = mlp([encoder.dim, dim, dim, dim], scope=scope)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=byol())}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        h1, h2 = (self.encoder(batch[name]) for name in ("view1", "view2"))
        return {"z1": self.projector(h1), "z2": self.projector(h2), "h": h1.detach()}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        settings = self.config
        terms = vicreg(embeddings["z1"], embeddings["z2"])
        weights = (settings.invariance, settings.variance, settings.covariance)
        loss = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        named = zip(("invariance", "variance", "covariance"), terms, strict=True)
        metrics = {name: term.detach() for name, term in named}
        return Output(loss, metrics, embeddings["h"].detach())
