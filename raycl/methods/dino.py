"""DINO: emerging properties in self-supervised vision transformers.

Caron et al., ICCV 2021, arXiv 2104.14294.

    loss = mean over large views s and other views t of CE(softmax((g'(x_s) - c) / t'), g(x_t) / t)

The student predicts, on all views, what the teacher, its moving average, says of the large ones.
Against collapse the teacher's outputs are centred by c, a moving average over all ranks, and
sharpened by a low temperature. Not here: the published rise of the weight decay from 0.04 to 0.4.
"""

from __future__ import annotations

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
    Settings,
    Step,
    Stream,
    ViTBackbone,
)
from raycl.nn import collectives
from raycl.nn.ema import cosine_momentum, follow, momentum_copy
from raycl.nn.losses import swapped, unit
from raycl.views.image import Crop
from raycl.views.published import byol, multi_crop


class Head(nn.Module):
    """(N, dim) -> (N, outputs): three layers with GELU, unit length, then directions alone."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        self.directions = nn.Parameter(torch.empty(outputs, bottleneck))
        for weight in (layer.weight for layer in self.layers if isinstance(layer, nn.Linear)):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.trunc_normal_(self.directions, std=0.02)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        directions = self.directions.detach() if frozen else self.directions
        return F.linear(unit(self.layers(x)), unit(directions))


class DINO(Method):
    """DINO with a vision transformer (paper section 3; defaults of the released code)."""

    paper = "arXiv 2104.14294"
    centre: Tensor

    class Config(Settings):
        temperature: float = Field(0.1, gt=0, le=100, description="of the student")
        teacher_temperature: float = Field(0.04, gt=0, le=100)
        momentum: float = Field(0.996, ge=0, le=1, description="at the start; it rises to 1")
        centre_momentum: float = Field(0.9, ge=0, lt=1)
        frozen_epochs: int = Field(1, ge=0, description="epochs before the last layer learns")
        small: int = Field(8, ge=0, le=12, description="small views")
        encoder: Backbone = ViTBackbone()
        hidden: int = Field(2048, ge=1)
        bottleneck: int = Field(256, ge=1)
        outputs: int = Field(65536, ge=2)

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        settings = self.config
        encoder = self.encoder = settings.encoder.build("lane")
        head = (settings.hidden, settings.bottleneck, settings.outputs)
        self.head = Head(encoder.dim, *head)
        self.teacher_encoder = momentum_copy(self.encoder)
        self.teacher_head = momentum_copy(self.head)
        self.register_buffer("centre", torch.zeros(settings.outputs))

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        crop = Crop(scale=(0.4, 1.0))
        large = {k: v.model_copy(update={"crop": crop}) for k, v in byol().items()}
        return {"images": Stream(views=multi_crop(large, config.small, scale=(0.05, 0.4)))}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        large, small = ["view1", "view2"], [f"small{i + 1}" for i in range(self.config.small)]
        found: dict[str, Tensor] = {}
        for names in (large, small):  # views of one size go through together
            if names:
                h = self.encoder(torch.cat([batch[name] for name in names]))
                found |= dict(zip(names, h.chunk(len(names)), strict=True))
        with torch.no_grad():
            taught = self.teacher_encoder(torch.cat([batch[name] for name in large]))
            found |= dict(zip(["teacher1", "teacher2"], taught.chunk(2), strict=True))
        return found

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        settings = self.config
        with torch.no_grad():
            taught = {f"view{i}": self.teacher_head(embeddings[f"teacher{i}"]) for i in (1, 2)}
            codes = {
                name: F.softmax((y - self.centre) / settings.teacher_temperature, 1)
                for name, y in taught.items()
            }
            mean = collectives.all_reduce_mean(torch.cat(list(taught.values())).mean(0))
            self.centre.lerp_(mean.to(self.centre.dtype), 1 - settings.centre_momentum)
        frozen = step.epoch < settings.frozen_epochs
        views = [name for name in embeddings if not name.startswith("teacher")]
        scores = {name: self.head(embeddings[name], frozen) for name in views}
        loss = swapped(codes, scores, settings.temperature)
        return Output(loss, embedding=embeddings["view1"].detach())

    def after_step(self, step: Step) -> None:
        momentum = cosine_momentum(self.config.momentum, step.progress)
        follow(self.teacher_encoder, self.encoder, momentum)
        follow(self.teacher_head, self.head, momentum)
