"""Observers that measure: speed, the health of the embedding, online kNN."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any, Protocol

import torch

from raycl.data.host import Waits
from raycl.evaluate.knn import knn
from raycl.evaluate.spectrum import alpha_req, embedding_std, rank_me
from raycl.methods.base import Corpus
from raycl.nn import collectives
from raycl.train.guard import LONG
from raycl.train.observers import Event, Observer

COLLAPSE = "look at what keeps the method from it (negatives, stop-gradient, predictor, batch norm)"


class Waiting(Protocol):
    """A loader that knows how long the training step has waited for it."""

    @property
    def waits(self) -> Waits: ...

    @property
    def substituted(self) -> int: ...


class Throughput(Observer):
    """Images a second over all ranks, seconds a step, and the share spent waiting, by cause."""

    def __init__(self, loader: Waiting, rows: int) -> None:
        self.loader, self.rows = loader, rows
        self._start()

    def after_step(self, event: Event) -> None:
        self._steps += 1
        if not event.logged:
            return
        seconds, waited = time.perf_counter() - self._begin, asdict(self.loader.waits)
        event.metrics["images_per_second"] = self._steps * self.rows / seconds
        event.metrics["step_time"] = seconds / self._steps
        shares = {name: (waited[name] - self._waited[name]) / seconds for name in waited}
        event.metrics["wait_share"] = min(sum(shares.values()), 1.0)
        event.metrics |= {f"wait_share/{name}": share for name, share in shares.items()}
        if self.loader.substituted:
            event.metrics["substituted"] = self.loader.substituted
        self._start()

    def after_epoch(self, event: Event) -> None:
        self._start()  # evaluation between epochs is no training time

    def _start(self) -> None:
        self._begin, self._waited, self._steps = time.perf_counter(), asdict(self.loader.waits), 0


class Embeddings(Observer):
    """Standard deviation, RankMe and alpha-ReQ of the last embeddings, and a note on a collapse.

    Collapsed is an embedding whose standard deviation has been under a tenth of 1/sqrt(D), that of
    rows spread over the sphere, for 25 logged steps in a row (untrained networks may begin there),
    or whose RankMe is under 2: nearly all rows are multiples of one vector. Each is noted once, and
    again only after the standard deviation has been above, or RankMe above 3, in between.
    """

    def __init__(self, size: int = 2048) -> None:
        self.size = size
        self.queue = torch.empty(0)
        self._narrow = 0  # logged steps in a row
        self._flat = False
        self._new = True  # since RankMe was measured, which takes longer than some epochs

    def after_step(self, event: Event) -> None:
        if event.embedding is None:
            return
        rows = event.embedding.float().cpu()
        self.queue = torch.cat([self.queue, rows])[-self.size :] if len(self.queue) else rows
        self._new |= event.logged
        if event.logged:
            std = event.metrics["embedding_std"] = embedding_std(self.queue)
            dims = self.queue.shape[1]
            self._narrow = self._narrow + 1 if std < 0.1 / math.sqrt(dims) else 0
            if self._narrow == LONG:
                event.notes.append(
                    f"the embedding collapses to a point: its standard deviation, {std:.2g} at "
                    f"step {event.step.index + 1}, has been under 0.1/sqrt({dims}) for {LONG} "
                    f"logged steps; {COLLAPSE}"
                )

    def after_epoch(self, event: Event) -> None:
        if not len(self.queue) or not (self._new or event.last):
            return
        self._new = False
        rank = event.metrics["rank_me"] = rank_me(self.queue)
        alpha = alpha_req(self.queue)
        if math.isfinite(alpha):
            event.metrics["alpha_req"] = alpha
        before, self._flat = self._flat, rank < (3 if self._flat else 2)  # it hovers
        if self._flat and not before:
            event.notes.append(
                f"the embedding collapses to a line: its RankMe is {rank:.2f} of "
                f"{self.queue.shape[1]} at step {event.step.index}; {COLLAPSE}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"queue": self.queue, "narrow": self._narrow, "flat": self._flat, "new": self._new}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.queue = state.get("queue", self.queue)
        self._narrow, self._flat = state.get("narrow", 0), state.get("flat", False)
        self._new = state.get("new", True)


class OnlineKnn(Observer):
    """kNN accuracy of the encoder on the held-out set every few epochs and at the end."""

    def __init__(
        self,
        train: Corpus,
        test: Corpus,
        labels: tuple[torch.Tensor, torch.Tensor],
        every: int,
        k: int,
        temperature: float,
    ) -> None:
        self.train, self.test, self.labels = train, test, labels
        self.every, self.k, self.temperature = every, k, temperature

    def after_epoch(self, event: Event) -> None:
        if not event.last and (event.step.epoch + 1) % self.every:
            return
        _, train = self.train.embed(event.method.encoder)
        _, test = self.test.embed(event.method.encoder)
        if collectives.rank() == 0:
            guess = knn(train, self.labels[0], test, k=self.k, temperature=self.temperature)
            event.metrics["knn"] = (guess.cpu() == self.labels[1]).double().mean().item()
