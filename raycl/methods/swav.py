"""SwAV: unsupervised learning of visual features by contrasting cluster assignments.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, NeurIPS 2020, arXiv 2006.09882.

    q = sinkhorn(C z of a large view),  loss = mean over large views s and other views t of
    CE(q_s, softmax(C z_t / t)),  z = g(f(x)) of unit length

Views predict the prototypes C that another view is assigned to; assignments use all prototypes
equally over the batch of all ranks. Small views only predict. Not here: the queue that the released
code adds for small batches.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

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
from raycl.nn.losses import sinkhorn, swapped, unit
from raycl.views.image import Blur, Color, Crop, ImageView
from raycl.views.published import MEAN, STD, multi_crop


class SwAV(Method):
    """SwAV with a ResNet encoder (paper section 3; defaults of appendix A)."""

    paper = "arXiv 2006.09882"

    class Config(Settings):
        temperature: float = Field(0.1, gt=0, le=100)
        epsilon: float = Field(0.05, gt=0, description="of the assignments: small ones are hard")
        prototypes: int = Field(3000, ge=2)
        freeze_steps: int = Field(313, ge=0, description="steps before the prototypes learn")
        small: int = Field(6, ge=0, le=12, description="small views")
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        hidden: int = Field(2048, ge=1)
        dim: int = Field(128, ge=1)

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        settings, scope = self.config, self.config.batch_norm
        encoder = self.encoder = settings.encoder.build(scope)
        sizes = [encoder.dim, settings.hidden, settings.dim]
        self.projector = mlp(sizes, last_bias=True, scope=scope)
        self.prototypes = nn.Linear(settings.dim, settings.prototypes, bias=False)
        self._normalise()

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        view = ImageView(
            crop=Crop(scale=(0.14, 1.0)), color=Color(), gray=0.2, blur=Blur(), mean=MEAN, std=STD
        )
        large = {"view1": view, "view2": view}
        return {"images": Stream(views=multi_crop(large, config.small, scale=(0.05, 0.14)))}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        small = [f"small{i + 1}" for i in range(self.config.small)]
        found: dict[str, Tensor] = {}
        for names in (["view1", "view2"], small):  # views of one size go through together
            if names:
                h = self.encoder(torch.cat([batch[name] for name in names]))
                z = unit(self.projector(h)).chunk(len(names))
                found |= dict(zip(names, z, strict=True))
                found.setdefault("h", h.detach()[: len(z[0])])
        return found

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        settings, rows = self.config, embeddings["h"]
        weight = self.prototypes.weight
        if step.index < settings.freeze_steps:
            weight = weight.detach()
        names = [name for name in embeddings if name != "h"]
        scores = {name: F.linear(embeddings[name], weight) for name in names}
        codes = {n: sinkhorn(scores[n].detach(), settings.epsilon) for n in ("view1", "view2")}
        return Output(swapped(codes, scores, settings.temperature), embedding=rows.detach())

    def after_step(self, step: Step) -> None:
        self._normalise()

    @torch.no_grad()
    def _normalise(self) -> None:
        """Prototypes are of unit length whenever they are used."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
