"""Supervised contrastive learning.

Khosla et al., NeurIPS 2020, arXiv 2004.11362.

    loss_i = -1 / |P(i)| sum_(p in P(i)) log exp(z_i . z_p / t) / sum_(a != i) exp(z_i . z_a / t)

P(i): all views of the global batch with the label of i, but for i (L_out, equation 2).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, cat

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
    labels_of,
)
from raycl.nn.heads import mlp
from raycl.nn.losses import supervised_contrast
from raycl.views.image import Blur, Color, Crop, ImageView


class SupCon(Method):
    """SupCon with a ResNet encoder (paper section 3); the data need a field `label`."""

    paper = "arXiv 2004.11362"

    class Config(Settings):
        temperature: float = Field(0.1, gt=0, le=100)
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        hidden: int = Field(2048, ge=1)
        dim: int = Field(128, ge=1)

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        settings, scope = self.config, self.config.batch_norm
        encoder = self.encoder = settings.encoder.build(scope)
        sizes = [encoder.dim, settings.hidden, settings.dim]
        self.projector = mlp(sizes, norm=False, last_bias=True, scope=scope)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        view = ImageView(size=224, crop=Crop(), color=Color(), gray=0.2, blur=Blur())
        return {"images": Stream(views={"view1": view, "view2": view})}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        h = self.encoder(cat([batch["view1"], batch["view2"]]))
        z1, z2 = self.projector(h).chunk(2)
        labels = labels_of(batch, self).double()  # parts of a batch are joined as floats
        return {"z1": z1, "z2": z2, "h": h[: len(z1)].detach(), "label": labels}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        z, label = cat([embeddings["z1"], embeddings["z2"]]), embeddings["label"].detach().long()
        loss = supervised_contrast(z, cat([label, label]), self.config.temperature)
        return Output(loss, embedding=embeddings["h"].detach())
