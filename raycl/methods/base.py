"""The contract of a method: what one published system shows to the loop, and nothing of Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.nn.backbones import Encoder, ResNet, timm_encoder
from raycl.nn.backbones.timm import check_name
from raycl.nn.batchnorm import Scope
from raycl.views.image import ImageView, MaskView
from raycl.views.packing import GraphView, View

Batch = dict[str, Tensor]


class Settings(BaseModel):
    """Base of every configuration: unknown fields are mistakes, not decoration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Recompute = Annotated[
    bool, Field(description="compute activations again in backward: less memory, more time")
]


class ResNetBackbone(Settings):
    """A ResNet. `width` is the channels of the first stage (64 as published)."""

    name: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101] = 50
    # With fewer than 8 channels, oneDNN's convolutions in channels_last write beyond their buffers
    # (torch 2.15 on the CPU): the heap is damaged and the process dies or hangs steps later.
    width: int = Field(64, ge=8)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    output_stride: Literal[8, 16, 32] = 32
    dilate: bool = Field(
        True, description="dilate the stages that output_stride keeps from shrinking"
    )
    recompute: Recompute = False

    def build(self, scope: Scope) -> ResNet:
        settings = self.model_dump(exclude={"name"})
        return ResNet(**settings, scope=scope)


class ViTBackbone(Settings):
    """A vision transformer. `image` is the side that its position embeddings are made for."""

    name: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base", "large"] = "small"
    patch: int = Field(16, ge=1)
    image: int = Field(224, ge=1)
    recompute: Recompute = False

    @model_validator(mode="after")
    def _whole_patches(self) -> ViTBackbone:
        if self.image % self.patch:
            raise ValueError(f"image={self.image} is no multiple of patch={self.patch}")
        return self

    def build(self, scope: Scope) -> Encoder:
        from raycl.nn.backbones.vit import ViT  # it brings torchvision, which takes seconds

        return ViT(**self.model_dump(exclude={"name"}))


class TimmBackbone(Settings):
    """Any model of timm, without its weights; `options` go to `timm.create_model`."""

    name: Literal["timm"] = "timm"
    model: str
    options: dict[str, Any] = {}
    recompute: Recompute = False

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            check_name(name)
        except RayclError as error:
            raise ValueError(str(error)) from error
        return name

    def build(self, scope: Scope) -> Encoder:
        return timm_encoder(self.model, scope, self.recompute, **self.options)


def _backbone(settings: Any) -> str:
    """The name of a backbone's settings; without one they are a ResNet's."""
    if isinstance(settings, Mapping):
        return str(settings.get("name", "resnet"))
    return getattr(settings, "name", "resnet")


# The type of a method's field `encoder`: `name` says which of them it is.
Backbone = Annotated[
    Annotated[ResNetBackbone, Tag("resnet")]
    | Annotated[ViTBackbone, Tag("vit")]
    | Annotated[TimmBackbone, Tag("timm")],
    Discriminator(_backbone),
]


class Stream(Settings):
    """One stream of samples that every step eats, with the views that are drawn from them.

    `source` names a data set of the recipe (`data.train`, ...). Names of views are unique over the
    streams of a method, because they are the keys of the batch and of the recipe's `views`. Where
    there are any, the first is of an image, or of a graph and the only one; masks follow views of
    the same stream, and `of` names one. `fields` are arrays of the samples that go into the batch
    as they are, beside its numbers. An encoder of the first of these is what a stream without views
    is evaluated by.
    """

    source: str = "train"
    views: dict[str, View]
    fields: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _of_this_stream(self) -> Stream:
        for name, view in self.views.items():
            other = view.follows if isinstance(view, MaskView) else getattr(view, "of", None)
            if other and other not in self.images:
                raise ValueError(f"{name}: {other!r} is no view that is cut from this stream")
        return self

    @property
    def cut(self) -> dict[str, View]:
        """The views that are cut from the samples; a method draws the others from these."""
        return {n: v for n, v in self.views.items() if not getattr(v, "of", None)}

    @property
    def images(self) -> dict[str, ImageView]:
        """The views of images among them."""
        return {name: v for name, v in self.cut.items() if isinstance(v, ImageView)}

    @property
    def graphs(self) -> dict[str, GraphView]:
        """The views of graphs."""
        return {name: v for name, v in self.views.items() if isinstance(v, GraphView)}

    @property
    def first(self) -> ImageView:
        """Of the first view are the field and the normalisation of the encoder's images."""
        return next(v for v in self.views.values() if isinstance(v, ImageView))


@dataclass(frozen=True)
class DataInfo:
    """What a method may know of its data before it is built.

    Attributes:
        samples: of the training set.
        classes: their names.
        streams: the recipe's.
        arrays: shapes of the fields of the training set that hold arrays.
        class_embeddings: (C, A), where the recipe has them (`data.classes`).
        seen: the classes that occur in the training set, ascending, where there are embeddings.
    """

    samples: int
    classes: list[str] | None = None
    streams: Mapping[str, Stream] | None = None
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    class_embeddings: Tensor | None = None
    seen: Tensor | None = None


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

    @property
    def streams(self) -> Mapping[str, Stream]:
        """The streams of a step as the recipe has them, for a method that draws views itself."""
        given = self.data and self.data.streams
        return given or self.views(self.config)

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

    def logits(self, images: Tensor) -> Tensor:
        """Scores of the classes of images (N, K), or of the cells of a map (N, K, h, w).

        Only methods that are trained with labels have them; the protocol `classifier` asks.
        """
        raise TypeError(f"{type(self).__name__} classifies nothing: it has no logits()")

    def detections(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Objects found on each of N images (N, 3, H, W); the protocol `detection` asks.

        Returns:
            By image: "boxes" (n, 4), x0, y0, x1, y1 in pixels of the view; "labels" (n,), classes
            from 0; "scores" (n,); from methods with masks also "masks" (n, 1, h, w), how likely
            each cell of its box is the object's.
        """
        raise TypeError(f"{type(self).__name__} finds no objects: it has no detections()")

    def synthesize(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Samples (N, D), as the data has them, made up for classes (N,).

        Only methods that generate have them; the protocol `zero_shot` asks.
        """
        raise TypeError(f"{type(self).__name__} makes up no samples: it has no synthesize()")

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


def classes_of(method: Method) -> int:
    """The number of classes that a method's settings say, or else that its data name.

    Raises:
        RayclError: neither does.
    """
    named = method.data.classes if method.data else None
    count: int = method.config.classes or len(named or ())
    if not count:
        raise RayclError("method.classes: the data set names no classes; say how many there are")
    return count


def labels_of(batch: Batch, method: Method) -> Tensor:
    """The labels (N,) of a batch.

    Raises:
        RayclError: the data set has none.
    """
    if "label" not in batch:
        raise RayclError(
            f"data.train: {type(method).__name__} needs a field 'label'; import the images from a "
            f"folder per class"
        )
    return batch["label"]
