"""SimSiam: exploring simple Siamese representation learning.

Chen and He, CVPR 2021, arXiv 2011.10566.

    z = g(f(x)),  p = q(z),  loss = (D(p1, z2) + D(p2, z1)) / 2,  D(p, z) = -cos(p, stop(z))

No negatives and no momentum encoder: a predictor and a stopped gradient are enough. The predictor's
learning rate does not decay (section 4.1). Each view has batch statistics of its own.
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
from raycl.nn.losses import negative_cosine, unit
from raycl.views.published import moco_v2


class SimSiam(Method):
    """SimSiam with a ResNet encoder (paper section 3; defaults of the baseline settings there)."""

    paper = "arXiv 2011.10566"

    class Config(Settings):
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        dim: int = Field(2048, ge=1, description="of the projector's three layers")
        bottleneck: int = Field(512, ge=1, description="of the predictor")

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        scope, dim = self.config.batch_norm, self.config.dim
        encoder = self.encoder = self.config.encoder.build(scope)
        self.projector = mlp([encoder.dim, dim, dim, dim], last_norm="plain", scope=scope)
        self.predictor = mlp([dim, self.config.bottleneck, dim], last_bias=True, scope=scope)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=moco_v2())}

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        networks = [*self.encoder.parameters(), *self.projector.parameters()]
        # All parameters decay in the released code, batch norms too.
        return {
            "main": [
                {"params": networks},
                {"params": list(self.predictor.parameters()), "schedule": "fixed"},
            ]
        }

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for index in (1, 2):
            h = self.encoder(batch[f"view{index}"])
            z = self.projector(h)
            found |= {
                f"h{index}": h.detach(),
                f"z{index}": z.detach(),
                f"p{index}": self.predictor(z),
            }
        return found

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        one = negative_cosine(embeddings["p1"], embeddings["z2"])
        two = negative_cosine(embeddings["p2"], embeddings["z1"])
        spread = unit(embeddings["z1"]).detach().std(0).mean()  # 1 / sqrt(dim), 0 on collapse
        return Output((one + two) / 2, {"z_std": spread}, embeddings["h1"].detach())
