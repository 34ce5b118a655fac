"""DenseCL: dense contrastive learning for self-supervised visual pre-training.

Wang, Zhang, Shen, Kong, Li, CVPR 2021, arXiv 2011.09157.

    loss = (1 - lambda) InfoNCE(q, k, queue) + lambda InfoNCE(Q_i, K_c(i), dense queue)

MoCo v2 with a second head that keeps the map: query cell i and its key cell c(i), the one whose
backbone feature is most similar, are a pair; negatives are the pooled dense keys of other images.
Queries look for keys, not the other way round.

lambda is 0 for the first 10,000 steps, as the first author states; the released configurations do
not enable that, and their hook's default is 1,000.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
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
from raycl.nn.backbones.encoder import last_map
from raycl.nn.ema import follow, momentum_copy
from raycl.nn.heads import mlp
from raycl.nn.losses import info_nce, unit
from raycl.nn.queue import Queue
from raycl.nn.shuffle import shuffled
from raycl.views.published import moco_v2


class Projector(Settings):
    """Both heads: Linear-ReLU-Linear on the pooled map, and the same as 1x1 convolutions on it."""

    hidden: int = Field(2048, ge=1)
    dim: int = Field(128, ge=1)


class Heads(nn.Module):
    """A map (N, C, h, w) -> `global` (N, D), `dense` (N, D, h w), `pooled` (N, D); no batch norm.

    `pooled` is the mean of `dense` over its cells.
    """

    def __init__(self, channels: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.image = mlp([channels, hidden, dim], norm=False, last_bias=True)
        self.cells = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, dim, 1)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        dense = self.cells(x).flatten(2)
        return {"global": self.image(x.mean((2, 3))), "dense": dense, "pooled": dense.mean(2)}


class DenseCL(Method):
    """DenseCL with a ResNet encoder (paper section 3; defaults of section 4.1)."""

    paper = "arXiv 2011.09157"

    class Config(Settings):
        temperature: float = Field(0.2, gt=0, le=100)
        momentum: float = Field(0.999, ge=0, lt=1)
        dense_weight: float = Field(0.5, ge=0, le=1, description="lambda; 0 is MoCo v2")
        warmup_steps: int = Field(10_000, ge=0, description="steps with lambda = 0")
        queue: int = Field(65536, ge=1, description="keys of each, a multiple of the global batch")
        key_groups: int = Field(8, ge=1, description="of a run of one lane, for its batch norms")
        encoder: Backbone = ResNetBackbone()
        projector: Projector = Projector()

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        head = self.config.projector
        encoder = self.encoder = self.config.encoder.build("lane")
        self.heads = Heads(encoder.dim, head.hidden, head.dim)
        self.key_encoder, self.key_heads = momentum_copy(self.encoder), momentum_copy(self.heads)
        self.queue = Queue(self.config.queue, head.dim)
        self.dense_queue = Queue(self.config.queue, head.dim)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"images": Stream(views=moco_v2())}

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        settings = self.config
        x = last_map(self.encoder, batch["view1"])
        q = self.heads(x)
        follow(self.key_encoder, self.encoder, settings.momentum)
        follow(self.key_heads, self.heads, settings.momentum)
        generator = step.generator(-1)
        k = shuffled(self._keys, batch["view2"], step.lanes, generator, settings.key_groups)
        single = info_nce(q["global"], k["global"], self.queue.rows, settings.temperature)
        match = matches(x.detach().flatten(2), k["map"])
        keys = k["dense"].gather(2, match[:, None].expand_as(q["dense"]))
        rows, keys = (y.transpose(1, 2).flatten(0, 1) for y in (q["dense"], keys))
        dense = info_nce(rows, keys, self.dense_queue.rows, settings.temperature)
        weight = settings.dense_weight * (step.index >= settings.warmup_steps)
        metrics = {"loss.global": single.detach(), "loss.dense": dense.detach()}
        metrics["match"] = correctness(match, batch, x.shape[2:])
        yield Output((1 - weight) * single + weight * dense, metrics, x.detach().mean((2, 3)))
        self.queue.enqueue(k["global"], len(step.lanes))
        self.dense_queue.enqueue(k["pooled"], len(step.lanes))

    def _keys(self, images: Tensor) -> dict[str, Tensor]:
        x = last_map(self.key_encoder, images)
        k = self.key_heads(x)
        of_images = {name: unit(k[name]) for name in ("global", "pooled")}
        return {"map": x.flatten(2), "dense": k["dense"], **of_images}


def matches(query: Tensor, key: Tensor) -> Tensor:
    """c: for every cell of the query's map the most similar one of the key's (section 3.3).

    Args:
        query, key: backbone features (N, C, P) of both views, not normalised.

    Returns:
        (N, P) indices of cells of the key.
    """
    return (unit(query).transpose(1, 2) @ unit(key)).argmax(2)


@torch.no_grad()
def correctness(match: Tensor, batch: Batch, grid: torch.Size) -> Tensor:
    """The share of cells that are matched to within one cell of where they truly are.

    Counted are cells of the first view whose centre the second shows; with none the share is 0.

    Args:
        match: (N, P) cells of the second view.
        batch: with `box` (top, left, height, width) and `flip` of both views.
        grid: rows and columns of a map.
    """
    rows, columns = grid
    at = torch.arange(rows * columns, device=match.device)
    cells = torch.stack([at // columns, at % columns], 1) + 0.5
    scale = cells.new_tensor([rows, columns])
    first, second = (_corner_and_size(batch, name) for name in ("view1", "view2"))
    inside = cells / scale  # (P, 2) in the unit square of the first view
    image = first[0] + _mirrored(inside, batch["view1.flip"]) * first[1]
    there = _mirrored((image - second[0]) / second[1], batch["view2.flip"])
    seen = ((there >= 0) & (there < 1)).all(2)
    found = torch.stack([match // columns, match % columns], 2) + 0.5
    near = ((found - there * scale).abs() <= 1).all(2)
    return (near & seen).sum() / seen.sum().clamp(min=1)


def _corner_and_size(batch: Batch, view: str) -> tuple[Tensor, Tensor]:
    """(N, 1, 2) each, (vertical, horizontal) in pixels of the image."""
    box = batch[f"{view}.box"].float()[:, None]
    return box[..., :2], box[..., 2:]


def _mirrored(points: Tensor, flip: Tensor) -> Tensor:
    """Points (N or 1, P, 2) of the unit square as they lie in images that are flipped (N,)."""
    points = points.expand(len(flip), -1, -1)
    turned = torch.stack([points[..., 0], 1 - points[..., 1]], 2)
    return torch.where(flip.bool()[:, None, None], turned, points)
