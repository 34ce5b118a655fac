"""NNCLR: with a little help from my friends.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman, ICCV 2021, arXiv 2104.14548.

    loss = -log exp(NN(z1_i) . p2_i / t) / sum_k exp(NN(z1_i) . p2_k / t), and with views exchanged

The positive of a prediction is not its own other view but that one's nearest neighbour among the
projections of earlier batches. Negatives are the other predictions of the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from raycl.nn.losses import in_batch, unit
from raycl.nn.queue import Queue
from raycl.views.published import byol


class NNCLR(Method):
    """NNCLR with a ResNet encoder (paper section 3; defaults of section 4.1)."""

    paper = "arXiv 2104.14548"

    class Config(Settings):
        temperature: float = Field(0.1, gt=0, le=100)
        queue: int = Field(98304, ge=1, description="projections, a multiple of the global batch")
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        hidden: int = Field(2048, ge=1, description="of the projector's two hidden layers")
        dim: int = Field(256, ge=1)
        predictor: int = Field(4096, ge=1, description="its hidden layer")

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        settings, scope = self.config, self.config.batch_norm
        encoder = self.encoder = settings.encoder.build(scope)
        sizes = [encoder.dim, settings.hidden, settings.hidden, settings.dim]
        self.projector = mlp(sizes, last_norm="affine", scope=scope)
        head = [settings.dim, settings.predictor, settings.dim]
        self.predictor = mlp(head, last_bias=True, scope=scope)
        self.queue = Queue(settings.queue, settings.dim)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=byol())}

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        h1, h2 = (self.encoder(batch[name]) for name in ("view1", "view2"))
        z1, z2 = self.projector(h1), self.projector(h2)
        one = in_batch(self.neighbour(z1), self.predictor(z2), self.config.temperature)
        two = in_batch(self.neighbour(z2), self.predictor(z1), self.config.temperature)
        yield Output((one + two) / 2, embedding=h1.detach())
        self.queue.enqueue(unit(z1.detach()), len(step.lanes))

    def neighbour(self, z: Tensor) -> Tensor:
        """(N, D) -> rows (N, D) of the queue with the greatest cosine; no gradient."""
        nearest = (unit(z.detach()) @ self.queue.rows.T).argmax(1)
        return self.queue.rows[nearest]
