"""The contract of a method: what one published system shows to the loop, and nothing of Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from raycl.nn.backbones import ResNet
from raycl.views.image import ImageView

Batch = dict[str, Tensor]


class Settings(BaseModel):
    """Base of every configuration: unknown fields are mistakes, not decoration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(Settings):
    """A ResNet encoder. `width` is the channels of the first stage (64 as published)."""

    depth: Literal[18, 34, 50, 101] = 50
    # With fewer than 8 channels, oneDNN's convolutions in channels_last write beyond their buffers
    # (torch 2.15 on the CPU): the heap is damaged and the process dies or hangs steps later.
    width: int = Field(64, ge=8)
    stem: Literal["imagenet", "cifar"] = "imagenet"

    def build(self, scope: Literal["lane", "global"]) -> ResNet:
        return ResNet(self.depth, self.width, self.stem, scope)


class Stream(Settings):
    """One stream of samples that every step eats, with the views that are drawn from them.

    `source` names a data set of the recipe (`data.train`, ...). Names of views are unique over the
    streams of a method, because they are the keys of the batch and of the recipe's `views`.
    """

    source: str = "train"
    views: dict[str, ImageView]


@dataclass(frozen=True)
class DataInfo:
    """What a method may know of its data before it is built."""

    samples: int
    classes: list[str] | None = None


@dataclass(frozen=True)
class Step:
    """Where a run is. `progress` is in [0, 1) over the whole run."""

    index: int
    epoch: int
    total: int
    seed: int = 0
    lanes: tuple[int, ...] = (0,)

    @property
    def progress(self) -> float:
        return self.index / max(self.total, 1)

    def generator(self, lane: int, device: torch.device | str = "cpu") -> torch.Generator:
        """A random generator keyed by (seed, step, lane), for what a method draws itself.

        Partners, noise, corruption and dropout that come from here are the same on any number of
        ranks, because they belong to the lane.
        """
        key = hashlib.blake2b(f"{self.seed}/{self.index}/{lane}".encode(), digest_size=8).digest()
        generator = torch.Generator(device)
        generator.manual_seed(int.from_bytes(key, "little") >> 1)
        return generator


@dataclass
class Output:
    """What one optimizer update is made of.

    Attributes:
        loss: scalar to minimise: the mean over this rank's rows.
        metrics: detached scalars worth a curve.
        embedding: detached (N, D) representation of this rank's samples, for observers.
        optimizer: name of the optimizer that steps, a key of `Method.parameter_groups`.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None
    optimizer: str = "main"


class Corpus(Protocol):
    """The whole training set, for a pass between epochs; rows are shared out over the ranks."""

    def __len__(self) -> int: ...

    def embed(self, encoder: nn.Module) -> tuple[Tensor, Tensor]:
        """Ids (N,) and features (N, D) of every sample, on every rank, in the order of the ids."""

    def balance(self, labels: Tensor, step: Step) -> None:
        """Makes pseudo-labels (N,) occur equally often in the epoch that begins with `step`.

        They are in the order of the ids; rank 0's count. It takes `data.balance=method`.
        """


class Method(nn.Module):
    """Networks and objective of one published system.

    A method is plain PyTorch. A subclass gives `Config`, `views`, `encoder`, and either `embed` and
    `objective` (then a loss that couples the batch can be accumulated exactly, see
    `raycl.train.loop`) or its own `training_step`.
    """

    class Config(Settings):
        """Every hyperparameter with the paper's default and its bounds."""

    encoder: nn.Module
    config: Any
    paper: ClassVar[str] = ""

    def __init__(self, config: Any = None, data: DataInfo | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else type(self).Config()
        self.data = data

    @classmethod
    def views(cls, config: Any) -> dict[str, Stream]:
        """The streams of a step; the first defines the epoch. The recipe can override any field."""
        raise TypeError(f"{cls.__name__} does not define views()")

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Trainable parameters per optimizer, as groups.

        A group holds `params` and may hold `decay` (weight decay and LARS adaptation apply, default
        True), `lr_scale` (default 1) and `schedule` (default: the recipe's). The default is one
        optimizer, "main", with biases and normalisation parameters excluded from decay.
        """
        trainable = [p for p in self.parameters() if p.requires_grad]
        return {
            "main": [
                {"params": [p for p in trainable if p.ndim > 1], "decay": True},
                {"params": [p for p in trainable if p.ndim <= 1], "decay": False},
            ]
        }

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Network outputs whose rows belong to the batch's rows; `objective` couples them."""
        raise TypeError(f"{type(self).__name__} defines neither embed() nor training_step()")

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        """The loss of the whole rank's embeddings."""
        raise TypeError(f"{type(self).__name__} defines neither objective() nor training_step()")

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        """Yields once per optimizer update; the update is done when the generator is resumed."""
        yield self.objective(self.embed(batch), step)

    def after_step(self, step: Step) -> None:
        """State that follows an update: momentum encoder, queue, centre."""

    def before_epoch(self, corpus: Corpus, step: Step) -> None:
        """A pass over the whole corpus, where the method needs one."""
