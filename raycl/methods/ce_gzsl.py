"""CE-GZSL: contrastive embedding for generalized zero-shot learning.

Han, Fu, Chen, Yang, CVPR 2021, arXiv 2103.16173. On features x of images and an embedding a of
every class, of which only the seen ones have images:

    V = E[D(x, a)] - E[D(x~, a)] - 10 E[(|grad D(x^, a)| - 1)^2],  x~ = G(noise, a)
    embedding h = E(x), projection z = H(h), relevance of a class F(h, a)
    L_ins: z against those of the same class in the batch;  L_cls: F(h, a_y) against all seen a_s

    critic:    -V + L_ins(z) + L_cls(h)                      over D, E, H, F; five updates
    generator: -E[D(x~, a)] + w L_ins([z~; z]) + w L_cls(h~) over G; one update

As in the released code the generator's update takes the last of the five batches, and no gradient
reaches the real z in it. The released code multiplies both learning rates by 0.99 every so many
epochs; here they follow the recipe's schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.methods.base import (
    Batch,
    Corpus,
    DataInfo,
    Method,
    Output,
    Settings,
    Step,
    Stream,
    labels_of,
)
from raycl.nn.losses import supervised_contrast


class CEGZSL(Method):
    """CE-GZSL on any features; the data need fields `features` and `label`, and class embeddings.

    The rows of a lane are `critic_steps` batches, one for each of the critic's updates. The first
    epoch begins with a pass over the features, which are scaled to [0, 1] in each dimension, as
    those of a ReLU are in the published code; signed ones would lie close together there.
    """

    paper = "arXiv 2103.16173"
    classes: Tensor
    seen: Tensor
    encoder: Embedding

    class Config(Settings):
        critic_steps: int = Field(5, ge=1, description="updates of the critic for one of G")
        penalty: float = Field(10.0, ge=0)
        temperature: float = Field(0.1, gt=0, description="of L_ins (tau_e)")
        class_temperature: float = Field(0.1, gt=0, description="of L_cls (tau_s)")
        instance_weight: float = Field(1.0, ge=0, description="of L_ins, in both losses")
        class_weight: float = Field(1.0, ge=0, description="of L_cls, in both losses")
        generator_weight: float = Field(0.001, ge=0, description="of both in the generator's, too")
        noise: int | None = Field(None, ge=1, description="as long as a class embedding")
        class_scale: float = Field(
            1.0, gt=0, description="of class embeddings: short ones are lost beside long noise"
        )
        hidden: int = Field(4096, ge=1, description="of generator and critic")
        embedding: int = Field(2048, ge=1, description="h")
        projection: int = Field(512, ge=1, description="z")
        comparator: int = Field(2048, ge=1, description="hidden units of F")
        signed: bool = Field(
            False, description="features below 0 mean something: standardised, and G ends linearly"
        )

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        settings = self.config
        if data is None or data.class_embeddings is None or data.seen is None:
            raise RayclError(
                "data.classes: CE-GZSL needs an embedding of every class; give the data set that "
                "`raycl data import features` writes of them"
            )
        (features,) = data.arrays["features"]
        attributes = data.class_embeddings.shape[1]
        self.noise = settings.noise or attributes
        self.register_buffer(
            "classes", settings.class_scale * data.class_embeddings, persistent=False
        )
        self.register_buffer("seen", data.seen.clone(), persistent=False)
        hidden, embedding = settings.hidden, settings.embedding
        layers = leaky([self.noise + attributes, hidden, features])
        self.generator = nn.Sequential(*layers, *([] if settings.signed else [nn.ReLU()]))
        self.critic = nn.Sequential(*leaky([features + attributes, hidden, 1]))
        self.encoder = Embedding(features, embedding)
        self.projector = nn.Linear(embedding, settings.projection)
        self.comparator = Comparator(embedding, attributes, settings.comparator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        return {"features": Stream(views={}, fields=("features",))}

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        critic = (self.critic, self.encoder, self.projector, self.comparator)
        groups = {"critic": nn.ModuleList(critic), "generator": self.generator}
        return {name: [{"params": list(part.parameters())}] for name, part in groups.items()}

    def before_epoch(self, corpus: Corpus, step: Step) -> None:
        if step.index == 0:
            self.encoder.fit(corpus.embed(nn.Identity())[1], self.config.signed)

    def synthesize(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(labels), self.noise, generator=generator, device=generator.device)
        made = conditioned(self.generator, noise, self.classes, labels)
        return self.encoder.low + self.encoder.span * made

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        parts = self.config.critic_steps
        every_x, every_y = self.encoder.scaled(batch["features"]), labels_of(batch, self)
        lanes, rows = len(step.lanes), len(every_x) // len(step.lanes)
        if rows % parts:
            raise RayclError(
                f"trainer.batch: {rows} rows of a lane are no {parts} equal batches, one for each "
                f"update of the critic; give a multiple of method.critic_steps={parts}"
            )
        drawing = [step.generator(lane) for lane in step.lanes]
        for part in range(parts):
            x, y = (
                v.unflatten(0, (lanes, parts, -1))[:, part].flatten(0, 1)
                for v in (every_x, every_y)
            )
            noise, alpha = (
                torch.cat([draw(rows // parts, n, generator=g) for g in drawing]).to(x)
                for draw, n in ((torch.randn, self.noise), (torch.rand, 1))
            )
            yield self._critic_output(x, y, noise, alpha)
        noise = torch.cat([torch.randn(rows // parts, self.noise, generator=g) for g in drawing])
        yield self._generator_output(x, y, noise.to(x))

    def _critic_output(self, x: Tensor, y: Tensor, noise: Tensor, alpha: Tensor) -> Output:
        fake = conditioned(self.generator, noise, self.classes, y).detach()

        def score(v: Tensor) -> Tensor:
            return conditioned(self.critic, v, self.classes, y)

        real_score, fake_score = score(x).mean(), score(fake).mean()
        penalty = self.config.penalty * gradient_penalty(score, x, fake, alpha)
        h = self.encoder.embedded(x)
        instance, classes = self._contrast(h, self.projector(h), y, y)
        loss = fake_score - real_score + penalty
        loss = loss + self._weighted(instance, classes)
        metrics = {
            "wasserstein": (real_score - fake_score).detach(),
            "penalty": penalty.detach(),
            "instance": instance.detach(),
            "class": classes.detach(),
        }
        return Output(loss, metrics, h.detach(), "critic")

    def _generator_output(self, x: Tensor, y: Tensor, noise: Tensor) -> Output:
        fake = conditioned(self.generator, noise, self.classes, y)
        h = self.encoder.embedded(fake)
        with torch.no_grad():
            real = self.projector(self.encoder.embedded(x))
        z = torch.cat([self.projector(h), real])
        instance, classes = self._contrast(h, z, y, torch.cat([y, y]))
        score = conditioned(self.critic, fake, self.classes, y).mean()
        contrast = self.config.generator_weight * self._weighted(instance, classes)
        return Output(contrast - score, optimizer="generator")

    def _weighted(self, instance: Tensor, classes: Tensor) -> Tensor:
        return self.config.instance_weight * instance + self.config.class_weight * classes

    def _contrast(self, h: Tensor, z: Tensor, y: Tensor, of_z: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.comparator(h, self.classes[self.seen]) / self.config.class_temperature
        among_seen = torch.searchsorted(self.seen, y)
        instance = supervised_contrast(z, of_z, self.config.temperature)
        return instance, F.cross_entropy(scores, among_seen)


class Embedding(nn.Module):
    """Features x (N, D) -> h (N, dim), and the scaling that was fitted to the training set."""

    low: Tensor
    span: Tensor

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(features, dim)
        self.register_buffer("low", torch.zeros(features))
        self.register_buffer("span", torch.ones(features))

    @torch.no_grad()
    def fit(self, x: Tensor, signed: bool) -> None:
        """Learns the range of each dimension of (N, D), or if signed its mean and deviation."""
        low, span = (x.mean(0), x.std(0)) if signed else (x.amin(0), x.amax(0) - x.amin(0))
        self.low.copy_(low)
        self.span.copy_(torch.where(span > 0, span, 1))

    def scaled(self, x: Tensor) -> Tensor:
        return (x - self.low) / self.span

    def embedded(self, x: Tensor) -> Tensor:
        """h of scaled features."""
        return self.layer(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.embedded(self.scaled(x))


class Comparator(nn.Module):
    """F: how relevant each class (S, A) is to each h (N, E), as scores (N, S)."""

    def __init__(self, embedding: int, attributes: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(embedding + attributes, hidden)
        self.second = nn.Linear(hidden, 1)

    def forward(self, h: Tensor, classes: Tensor) -> Tensor:
        of_h, of_class = self.first.weight.split([h.shape[1], classes.shape[1]], dim=1)
        # Each half is multiplied once, not once for every pair.
        pairs = F.linear(h, of_h, self.first.bias)[:, None] + F.linear(classes, of_class)
        return self.second(F.leaky_relu(pairs, 0.2)).squeeze(2)


def leaky(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers with LeakyReLUs of slope 0.2 between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return layers[:-1]


def conditioned(network: nn.Module, x: Tensor, classes: Tensor, y: Tensor) -> Tensor:
    """A network of rows [x; a_y].

    Args:
        network: whose first layer is linear.
        x: (N, D).
        classes: embeddings (C, A), which that layer multiplies once, not for every row.
        y: (N,) classes.
    """
    first, *others = network.children()
    assert isinstance(first, nn.Linear)
    of_x, of_class = first.weight.split([x.shape[1], classes.shape[1]], dim=1)
    hidden = F.linear(x, of_x, first.bias) + F.linear(classes, of_class)[y]
    for layer in others:
        hidden = layer(hidden)
    return hidden


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, alpha: Tensor
) -> Tensor:
    """Mean of (|gradient of D at a mixture| - 1)^2, with respect to the features alone.

    Args:
        critic: scores (N, 1) of features (N, D).
        real, fake: features (N, D).
        alpha: share (N, 1) of the real ones in each mixture.
    """
    mixed = (alpha * real + (1 - alpha) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()
