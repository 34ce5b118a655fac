"""The loop of one rank: the same code in this process, in a Ray Train worker and in a trial.

It knows methods only by their contract, and Ray not at all.
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raycl.data.folder import Folder
from raycl.errors import RayclError
from raycl.methods.base import Batch, Corpus, Method, Output, Step
from raycl.nn import collectives
from raycl.nn.backbones import Encoder
from raycl.nn.batchnorm import average_statistics, running_statistics
from raycl.nn.lanes import Layout, use
from raycl.recipe import Recipe
from raycl.train import checkpoint, optim, sharding
from raycl.train.checkpoint import Writer
from raycl.train.gradients import GradientAverager
from raycl.train.guard import Divergence
from raycl.train.observers import Event, Observer

Backward = Callable[[], None]
NEVER = torch.iinfo(torch.int64).max


class Batches(Protocol):
    """Where batches come from."""

    @property
    def steps(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


@dataclass
class Place:
    """Where this rank is: its device and the lanes that it runs."""

    device: torch.device
    lanes: Sequence[int]
    rank: int = 0
    world: int = 1


class Loop:
    """Trains a method; everything with state is in `state()`, and so in the checkpoint.

    Args:
        writer: of checkpoints, None to write none.
        corpus: the training set for `before_epoch` and observers.
        notify: called on all ranks alike after each checkpoint that was begun has been written or
            has failed, with the newest complete one on rank 0 and None elsewhere.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        batches: Batches,
        place: Place,
        *,
        writer: Writer | None = None,
        corpus: Corpus | None = None,
        observers: Sequence[Observer] = (),
        notify: Callable[[Folder | None], None] = lambda newest: None,
    ) -> None:
        trainer = recipe.trainer
        self.recipe, self.method, self.batches, self.place = recipe, method, batches, place
        self.writer, self.corpus, self.observers, self.notify = writer, corpus, observers, notify
        self.total = trainer.stop.epochs * batches.steps
        if trainer.stop.steps:
            self.total = min(self.total, trainer.stop.steps)
        layout = torch.channels_last if trainer.channels_last else torch.contiguous_format
        method.to(place.device, memory_format=layout)  # type: ignore[call-overload]
        collectives.broadcast([*method.parameters(), *method.buffers()])
        if trainer.sharded and place.world > 1:
            sharding.shard(method, place.device)
        for module in method.modules() if trainer.compile else ():
            if isinstance(module, Encoder):
                module.compile()
        self.settings = {name: recipe.optimizer.of(name) for name in method.parameter_groups()}
        rows = trainer.lanes * trainer.batch
        self.optimizers = {
            name: optim.build(groups, self.settings[name], rows)
            for name, groups in method.parameter_groups().items()
        }
        self.parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self.optimizers.items()
        }
        # Of what is sharded, gradients are averaged as they arrive; and none can be left out of a
        # backward pass, because its parameters are not those that the graph knows.
        of_graph = {
            name: [] if any(map(sharding.is_sharded, ps)) else ps
            for name, ps in self.parameters.items()
        }
        self.averagers = {name: GradientAverager(ps) for name, ps in of_graph.items()}
        self._inputs = {name: ps or None for name, ps in of_graph.items()}
        self._one = torch.ones((), dtype=torch.float64, device=place.device)
        self.step = 0
        self._open = False  # the steps of an epoch are done, and its end is not
        self.done = False
        self.interrupted = False  # set from outside: save after this step and stop
        self.asked = False  # set from outside on any rank: save at the next logged step
        self.ending = False  # set from outside on any rank: save there, and stop on all
        self.metrics: dict[str, float] = {}
        self.best: dict[str, Any] = {}
        self._due = False  # some rank was asked, and all know it
        self._sums: dict[str, Tensor] = {}  # (2,) sum and count of each metric since it was logged
        # This rank's first step with a loss that is no finite number; it stays on the device.
        self._bad = torch.full((), NEVER, device=place.device)
        self._divergence = Divergence()
        self._check_accumulation()

    def _check_accumulation(self) -> None:
        at_once = self.recipe.trainer.lanes_at_once
        if not at_once or at_once == len(self.place.lanes):
            return
        if type(self.method).training_step is not Method.training_step:
            raise RayclError(
                f"trainer.lanes_at_once: {type(self.method).__name__} has a training_step of its "
                f"own and cannot be accumulated; leave the field out"
            )
        if any(getattr(m, "scope", "lane") == "global" for m in self.method.modules()):
            raise RayclError(
                "trainer.lanes_at_once: batch norm over the global batch needs all lanes at once; "
                "set method.batch_norm=lane or leave the field out"
            )

    # -- running

    def fit(self) -> dict[str, float]:
        """Trains to the end; returns the latest value of every metric."""
        try:
            self._epochs()
        except BaseException as error:
            # What was begun is good. Alone it gets written; a lost peer's part would never come.
            if self.writer and (self.place.world == 1 or isinstance(error, RayclError)):
                self.writer.wait()
            raise
        return self.metrics

    def _epochs(self) -> None:
        while not self.done:
            if not self._open:
                epoch, start = divmod(self.step, self.batches.steps)
                if start == 0:
                    self._before_epoch(epoch)
                self._epoch(epoch, start)
            epoch = (self.step - 1) // self.batches.steps
            average_statistics(self.method)
            self.done = self.step == self.total
            event = self._event(self._at(epoch), logged=True)
            for observer in self.observers:
                observer.after_epoch(event)
            self.metrics |= event.metrics
            self.done |= self._out_of_patience(epoch)
            self._open = False
            if self.done and "method" in self.best:
                sharding.load(self.method, self.best["method"])
            every = self.recipe.trainer.checkpoint.every_epochs
            if self.done or self._due or (epoch + 1) % every == 0:
                self.save(wait=self.done or self._due)

    def _before_epoch(self, epoch: int) -> None:
        if type(self.method).before_epoch is Method.before_epoch or self.corpus is None:
            return
        before = {p: p._version for ps in self.parameters.values() for p in ps}
        self.method.before_epoch(self.corpus, self._at(epoch))
        if {p for p in self.method.parameters() if p.requires_grad} - set(before):
            raise RuntimeError("before_epoch() replaced parameters; re-initialise them in place")
        fresh = [p for p, version in before.items() if p._version != version]
        for optimizer in self.optimizers.values():
            for parameter in fresh:
                optimizer.state.pop(parameter, None)
        # Ranks that re-initialise on their own would drift apart without an error.
        fresh = [p for p in fresh if not sharding.is_sharded(p)]  # those draw alike by themselves
        collectives.broadcast([*fresh, *self.method.buffers()])

    def _epoch(self, epoch: int, start: int) -> None:
        every = self.recipe.trainer.log_every
        self.method.train()
        with contextlib.closing(self.batches.epoch(epoch, start)) as stream:  # type: ignore[type-var]
            for batch in stream:
                step = self._at(epoch)
                embedding = self._train(batch, step)
                self.step += 1
                self._open = self.step == self.total or self.step % self.batches.steps == 0
                logged = self.step % every == 0
                event = self._event(step, batch, embedding, logged=logged)
                for observer in self.observers:
                    observer.after_step(event)
                self.metrics |= event.metrics
                if self.interrupted or self._due:
                    self.save(wait=True)
                if self.interrupted:
                    raise KeyboardInterrupt
                if self.step == self.total:
                    break

    def _event(
        self,
        step: Step,
        batch: Batch | None = None,
        embedding: Tensor | None = None,
        *,
        logged: bool,
    ) -> Event:
        metrics = self._mean_metrics() if logged and self._sums else {}
        notes = self._judge(metrics)
        return Event(step, metrics, batch or {}, embedding, self.method, logged, self.done, notes)

    def _at(self, epoch: int) -> Step:
        seed = self.recipe.trainer.seed
        return Step(self.step, epoch, self.total, seed, tuple(self.place.lanes))

    # -- one step

    def _train(self, batch: Batch, step: Step) -> Tensor | None:
        # Whatever still draws from the global generators draws the same after a resume.
        torch.manual_seed(step.seed * 1_000_003 + step.index * 1_009 + self.place.rank)
        embedding = None
        for output, backward in self._turns(batch, step):
            name = output.optimizer
            optimizer, settings = self.optimizers[name], self.settings[name]
            warmup = round(settings.warmup_epochs * self.batches.steps)
            rate = optim.set_rate(optimizer, settings, step.index, self.total, warmup)
            optimizer.zero_grad(set_to_none=True)
            backward()
            if settings.clip:
                nn.utils.clip_grad_norm_(self.parameters[name], settings.clip)
            optimizer.step()
            embedding = output.embedding if output.embedding is not None else embedding
            self._add(name, output, rate)
        self.method.after_step(step)
        return embedding

    def _turns(self, batch: Batch, step: Step) -> Iterator[tuple[Output, Backward]]:
        """Each output of the step with the function that fills the gradients of its optimizer."""
        at_once = self.recipe.trainer.lanes_at_once
        lanes, rows = len(self.place.lanes), self.recipe.trainer.batch
        if at_once and at_once < lanes:
            yield self._two_passes(batch, step, at_once * rows, Layout(at_once, rows))
            return
        outputs = iter(self.method.training_step(batch, step))
        while True:
            with self._cast(), use(Layout(lanes, rows)):
                output = next(outputs, None)
            if output is None:
                return

            def backward(output: Output = output) -> None:
                name = output.optimizer
                with self.averagers[name]:
                    output.loss.backward(inputs=self._inputs[name])

            yield output, backward

    def _two_passes(
        self, batch: Batch, step: Step, rows: int, layout: Layout
    ) -> tuple[Output, Backward]:
        """Exact accumulation of a loss that couples the batch.

        First all embeddings without a graph, then the loss and its gradient with respect to them,
        then each part again with a graph, into which that gradient is fed (Gao et al. 2021,
        arXiv 2101.06983). Parts are whole lanes, so batch norm sees what it would have seen.
        """
        parts = [
            {key: value[at : at + rows] for key, value in batch.items()}
            for at in range(0, len(batch["id"]), rows)
        ]
        silent = Layout(layout.lanes, layout.batch, update_statistics=False)
        with torch.no_grad(), self._cast(), use(silent):
            pieces = [self.method.embed(part) for part in parts]
        leaves = {
            key: torch.cat([piece[key] for piece in pieces]).detach().requires_grad_()
            for key in pieces[0]
        }
        with self._cast(), use(Layout(len(self.place.lanes), layout.batch)):
            output = self.method.objective(leaves, step)

        def backward() -> None:
            name = output.optimizer
            inputs = self._inputs[name]
            output.loss.backward(inputs=inputs and [*leaves.values(), *inputs])
            running = running_statistics(self.method)
            before = [buffer.clone() for buffer in running]
            moved = [torch.zeros_like(buffer) for buffer in running]
            for index, part in enumerate(parts):
                with self._cast(), use(layout):
                    again = self.method.embed(part)
                graded = [
                    (again[key], leaf.grad[index * rows : (index + 1) * rows])
                    for key, leaf in leaves.items()
                    if leaf.grad is not None
                ]
                last = index == len(parts) - 1
                sharding.exchange(self.method, last)
                with self.averagers[name] if last else contextlib.nullcontext():
                    torch.autograd.backward(
                        [tensor for tensor, _ in graded],
                        [gradient for _, gradient in graded],
                        inputs=self._inputs[name],
                    )
                # All lanes at once move the running statistics once, by the lanes' mean.
                for buffer, start, mean in zip(running, before, moved, strict=True):
                    mean += buffer / len(parts)
                    buffer.copy_(mean if last else start)

        return output, backward

    def _cast(self) -> Any:
        precision = getattr(torch, self.recipe.trainer.precision)
        enabled = precision is not torch.float32
        return torch.autocast(self.place.device.type, precision, enabled=enabled)

    # -- metrics

    def _add(self, name: str, output: Output, rate: float) -> None:
        prefix = "" if name == "main" else f"{name}."
        values = {"loss": output.loss.detach(), **output.metrics, "lr": torch.tensor(rate)}
        for key, value in values.items():
            pair = torch.stack([value.detach().to(self._one), self._one])
            self._sums[prefix + key] = self._sums.get(prefix + key, 0) + pair
        finite = output.loss.detach().isfinite()
        self._bad = torch.where(finite, self._bad, self._bad.clamp(max=self.step + 1))

    def _mean_metrics(self) -> dict[str, float]:
        """Means since the last call, over steps and ranks."""
        sums, counts = torch.stack(list(self._sums.values())).unbind(1)
        asked, self.asked = sums.new_tensor([self.asked, self.ending]), False
        *means, asked_share, ending_share = collectives.all_reduce_mean(
            torch.cat([sums / counts, asked])
        ).tolist()
        self._due = asked_share > 0
        self.interrupted |= ending_share > 0
        metrics = dict(zip(self._sums, means, strict=True))
        self._sums = {}
        losses = [mean for key, mean in metrics.items() if key.rpartition(".")[2] == "loss"]
        if not all(map(math.isfinite, losses)):
            self._refuse_nonfinite()
        return metrics

    # -- guards

    def _refuse_nonfinite(self) -> None:
        """Raises, on all ranks, if a loss of any of them or a parameter is no finite number."""
        parameters = map(sharding.local, self.method.parameters())
        finite = torch.stack([p.isfinite().all() for p in parameters]).all()
        found = torch.stack([self._bad, finite.to(self._bad)])[None]
        first, all_finite = collectives.concat(found).amin(0).tolist()
        if first < NEVER:
            what = f"the loss is no finite number at step {first}"
        elif not all_finite:
            what = f"step {self.step}, whose loss was finite, left parameters that are not"
        else:
            return
        raise RayclError(f"{what}; {self._remedy()}")

    def _judge(self, metrics: dict[str, float]) -> list[str]:
        """Notes on a loss that diverges, or the end of the run where the recipe wants that."""
        since = self._divergence.see(self.step, metrics["loss"]) if "loss" in metrics else None
        if since is None:
            return []
        note = (
            f"the loss diverges since step {since}: it is {metrics['loss']:.4g} at step "
            f"{self.step}, was {self._divergence.best:.4g} at best and "
            f"{self._divergence.ceiling:.4g} untrained"
        )
        if self.recipe.trainer.stop.divergence:
            raise RayclError(f"{note}; {self._remedy()}")
        return [note]

    def _remedy(self) -> str:
        changes = "a lower optimizer.lr, a higher method.temperature, or optimizer.clip"
        good = None
        if self.writer:
            self.writer.wait()
            collectives.barrier()  # all ranks have come to this verdict; rank 0 has written
            good = checkpoint.latest(self.writer.place)
        if good is None:
            return f"no checkpoint was written before; start again with {changes}"
        run = str(good).rpartition("/checkpoints/")[0]
        return (
            f"the last good checkpoint is {good}; go on from its weights with "
            f"`raycl pretrain {run} init_from={run}` and {changes}"
        )

    # -- patience, state

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.recipe.trainer.stop.patience
        if patience is None:
            return False
        if patience.metric not in self.metrics:
            if epoch + 1 < self.recipe.evaluation.every_epochs:
                return False
            raise RayclError(
                f"trainer.stop.patience.metric: {patience.metric!r} is not measured; "
                f"measured are: {', '.join(self.metrics)}"
            )
        value = self.metrics[patience.metric] * (1 if patience.mode == "min" else -1)
        if value < self.best.get("value", float("inf")):
            here = self.method.state_dict()
            state = {k: sharding.whole(v).detach().to("cpu", copy=True) for k, v in here.items()}
            self.best = {"value": value, "epoch": epoch, "method": state}
        return epoch - self.best["epoch"] >= patience.epochs

    def state(self) -> dict[str, Any]:
        """Everything with state, as tensors and plain data."""
        return self._part() | {
            "loop": {
                "step": self.step,
                "open": self._open,
                "done": self.done,
                "metrics": self.metrics,
                "best": self.best,
                "sums": self._sums,
                "world": self.place.world,
                "divergence": self._divergence.state_dict(),
            },
        }

    def _part(self) -> dict[str, Any]:
        """What the ranks share out, and what is this rank's own."""
        return {
            "method": self.method.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "observers": {type(o).__name__: o.state_dict() for o in self.observers},
        }

    def load(self, state: dict[str, Any]) -> None:
        sharding.load(self.method, state["method"])
        for name, optimizer in self.optimizers.items():
            optim.restore(optimizer, state["optimizers"][name])
        loop = state["loop"]
        self.step, self.done, self.best = loop["step"], loop["done"], loop["best"]
        self.metrics, self._open = loop["metrics"], loop.get("open", False)
        if loop["world"] == self.place.world and "statistics" in state:
            self._restore(state["statistics"])
        self._sums = {key: value.to(self.place.device) for key, value in loop["sums"].items()}
        self._divergence.load_state_dict(loop.get("divergence", {}))
        for observer in self.observers:
            observer.load_state_dict(state["observers"].get(type(observer).__name__, {}))

    def save(self, wait: bool = False) -> None:
        """Begins a checkpoint, on all ranks alike; its files are written beside the training.

        Args:
            wait: until it is complete.
        """
        self._due = False
        if self.writer is None:
            return
        self._refuse_nonfinite()
        if self.recipe.trainer.stop.divergence and self._divergence.high and not self.done:
            return  # until it is known whether this is a divergence, the last good one must stay
        self._settle()
        # Any number of ranks goes on with the average; this one, as if nothing had been saved.
        own = [statistic.clone() for statistic in running_statistics(self.method)]
        average_statistics(self.method)
        self.writer.save(
            self.step,
            (self.state() if self.place.rank == 0 else self._part()) | {"statistics": own},
            divmod(self.step, self.batches.steps),
            encoder=self.method.encoder.state_dict(),
            metrics=self.metrics,
            token=collectives.agreed(secrets.randbits(31), self.place.device),
        )
        self._restore(own)
        if wait:
            self._settle(must=self.done or self.interrupted)
            collectives.barrier()  # complete: rank 0 has seen the parts of all

    def _restore(self, statistics: Sequence[Tensor]) -> None:
        for buffer, value in zip(running_statistics(self.method), statistics, strict=True):
            buffer.copy_(value)

    def _settle(self, must: bool = False) -> None:
        if self.writer is not None and self.writer.wait(must):
            self.notify(self.writer.newest)
