"""Small methods and batches for tests of the loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from raycl.data.host import Waits
from raycl.methods.base import Batch, Corpus, DataInfo, Method, Output, Settings, Step, Stream
from raycl.nn import collectives
from raycl.nn.heads import mlp
from raycl.views.image import ImageView


@dataclass
class Fixed:
    """Batches of random images that depend on epoch, step and lane alone; this rank's lanes."""

    lanes: list[int]
    rows: int
    steps: int
    size: int = 8
    dtype: torch.dtype = torch.float64
    waits: Waits = field(default_factory=Waits)
    substituted: int = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.steps):
            parts = [self._lane(epoch, step, lane) for lane in self.lanes]
            yield {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _lane(self, epoch: int, step: int, lane: int) -> Batch:
        generator = torch.Generator().manual_seed(epoch * 10_000 + step * 100 + lane)
        shape = (2, self.rows, 3, self.size, self.size)
        views = torch.rand(shape, generator=generator, dtype=self.dtype)
        ids = lane * self.rows + torch.arange(self.rows)
        return {"view1": views[0], "view2": views[1], "id": ids}


class Toy(Method):
    """Base of the toys: a linear encoder on pixels."""

    class Config(Settings):
        pass

    def __init__(self, config: Any = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

    @classmethod
    def views(cls, config: Any) -> dict[str, Stream]:
        return {"images": Stream(views={"view1": ImageView(size=8), "view2": ImageView(size=8)})}


class Turns(Toy):
    """Two optimizers in turns, as CE-GZSL asks: five critic updates, then one of the generator."""

    def __init__(self, config: Any = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        self.critic = nn.Linear(4, 1)
        self.order: list[str] = []

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        return {
            "critic": [{"params": list(self.critic.parameters())}],
            "generator": [{"params": list(self.encoder.parameters())}],
        }

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        for part in batch["view1"].chunk(5):
            score = self.critic(self.encoder(part).detach())
            self.order.append("critic")
            yield Output(score.square().mean(), optimizer="critic")
        self.order.append("generator")
        yield Output(-self.critic(self.encoder(part)).mean(), optimizer="generator")


class Clusters(Toy):
    """A head that is re-initialised before every epoch, as XDC asks, on each rank its own way."""

    def __init__(self, config: Any = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        self.head = nn.Linear(4, 3)
        self.register_buffer("labels", torch.zeros(1000, dtype=torch.long))
        self.passes = 0

    def before_epoch(self, corpus: Corpus, step: Step) -> None:
        ids, features = corpus.embed(self.encoder)
        self.labels[ids] = features.argmax(dim=1) % 3
        self.head.reset_parameters()
        self.passes += 1

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        logits = self.head(self.encoder(batch["view1"]))
        yield Output(nn.functional.cross_entropy(logits, self.labels[batch["id"]]))


class Rare(Toy):
    """Balances pseudo-labels that another tenth of the samples has in every epoch."""

    def __init__(self, config: Any = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        self.register_buffer("labels", torch.zeros(1000, dtype=torch.long))

    def before_epoch(self, corpus: Corpus, step: Step) -> None:
        ids, _ = corpus.embed(self.encoder)
        self.labels[ids] = (ids % 10 == step.epoch).long()
        corpus.balance(self.labels[ids], step)

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        loss = self.encoder(batch["view1"]).square().mean()
        yield Output(loss, {"rare": self.labels[batch["id"]].float().mean()})


class Queued(Toy):
    """A momentum encoder and a queue of its keys, as MoCo has them, with batch norm per lane."""

    def __init__(self, config: Any = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        self.encoder = mlp([3 * 8 * 8, 32, 8], scope="lane")
        self.momentum = copy.deepcopy(self.encoder).requires_grad_(False)
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("queue", normalize(torch.randn(48, 8, generator=generator), dim=1))

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        queries = normalize(self.encoder(batch["view1"].flatten(1)), dim=1)
        with torch.no_grad():
            fast = self.encoder.parameters()
            for slow, parameter in zip(self.momentum.parameters(), fast, strict=True):
                slow.lerp_(parameter, 0.1)
            keys = normalize(self.momentum(batch["view2"].flatten(1)), dim=1)
        positive = (queries * keys).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, queries @ self.queue.T.clone()], dim=1) / 0.2
        self.queue = torch.cat([collectives.concat(keys), self.queue])[: len(self.queue)]
        yield Output(logits.log_softmax(dim=1)[:, 0].neg().mean())


class Everything:
    """A corpus of random images."""

    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 3, 8, 8, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.images)

    def embed(self, encoder: nn.Module) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return torch.arange(len(self)), encoder(self.images)
