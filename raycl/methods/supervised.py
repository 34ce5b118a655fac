"""Supervised classification: the baseline that self-supervised encoders are compared with.

loss = cross-entropy of W f(x) + b with the label
"""

from __future__ import annotations

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
    classes_of,
    labels_of,
)
from raycl.views.image import Crop, ImageView
from raycl.views.published import MEAN, STD


class Supervised(Method):
    """A classifier on an encoder (He et al. 2016, arXiv 1512.03385, section 3.4)."""

    paper = "arXiv 1512.03385"

    class Config(Settings):
        encoder: Backbone = ResNetBackbone()
        classes: int | None = Field(None, ge=2, description="null: as many as the data name")

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        encoder = self.encoder = self.config.encoder.build("lane")
        self.classifier = nn.Linear(encoder.dim, classes_of(self))

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        view = ImageView(size=224, crop=Crop(), mean=MEAN, std=STD)
        return {"images": Stream(views={"view1": view})}

    def logits(self, images: Tensor) -> Tensor:
        """Scores of the classes (N, K) of images (N, 3, H, W)."""
        return self.classifier(self.encoder(images))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        h = self.encoder(batch["view1"])
        return {"h": h, "label": labels_of(batch, self).double()}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        logits, label = self.classifier(embeddings["h"]), embeddings["label"].detach().long()
        right = (logits.argmax(1) == label).float().mean()
        loss = F.cross_entropy(logits, label)
        return Output(loss, {"accuracy": right}, embeddings["h"].detach())
