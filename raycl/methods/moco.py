"""MoCo v2: momentum contrast for unsupervised visual representation learning.

He, Fan, Wu, Xie, Girshick, CVPR 2020, arXiv 1911.05722, with the head, augmentations and schedule
of Chen, Fan, Girshick, He 2020, arXiv 2003.04297.

    q = g(f(x1)),  k = g'(f'(x2)),  loss = InfoNCE(q, k, queue; temperature)

f' and g' follow f and g slowly: before the keys are made, by weights from before this step's
update, parameters alone. The queue holds the keys of earlier batches; this batch's are added when
the loss has been taken. Keys are shuffled among the lanes before their batch norms; a run of one
lane normalises them in groups instead (`raycl.nn.shuffle`).
"""

from __future__ import annotations

from collections.abc import Iterator

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
from raycl.nn.ema import follow, momentum_copy
from raycl.nn.heads import mlp
from raycl.nn.losses import info_nce, unit
from raycl.nn.queue import Queue
from raycl.nn.shuffle import shuffled
from raycl.views.published import moco_v2


class Projector(Settings):
    """g: Linear-ReLU-Linear without batch norm."""

    hidden: int = Field(2048, ge=1)
    dim: int = Field(128, ge=1)


class MoCo(Method):
    """MoCo v2 with a ResNet encoder (defaults of 1911.05722 section 3 and 2003.04297 section 3)."""

    paper = "arXiv 2003.04297"

    class Config(Settings):
        temperature: float = Field(0.2, gt=0, le=100)
        momentum: float = Field(0.999, ge=0, lt=1)
        queue: int = Field(65536, ge=1, description="keys, a multiple of the global batch")
        key_groups: int = Field(8, ge=1, description="of a run of one lane, for its batch norms")
        encoder: Backbone = ResNetBackbone()
        projector: Projector = Projector()

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        head = self.config.projector
        encoder = self.encoder = self.config.encoder.build("lane")
        self.projector = mlp([encoder.dim, head.hidden, head.dim], norm=False, last_bias=True)
        self.key_encoder = momentum_copy(self.encoder)
        self.key_projector = momentum_copy(self.projector)
        self.queue = Queue(self.config.queue, head.dim)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=moco_v2())}

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        settings = self.config
        h = self.encoder(batch["view1"])
        follow(self.key_encoder, self.encoder, settings.momentum)
        follow(self.key_projector, self.projector, settings.momentum)
        keys = shuffled(
            self._keys, batch["view2"], step.lanes, step.generator(-1), settings.key_groups
        )["k"]
        loss = info_nce(self.projector(h), keys, self.queue.rows, settings.temperature)
        yield Output(loss, embedding=h.detach())
        self.queue.enqueue(keys, len(step.lanes))

    def _keys(self, x: Tensor) -> dict[str, Tensor]:
        return {"k": unit(self.key_projector(self.key_encoder(x)))}
