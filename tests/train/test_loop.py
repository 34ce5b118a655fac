"""The loop: accumulation, turns, re-initialised heads, patience, exact continuation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycl.errors import RayclError
from raycl.methods.base import Batch, Method, Output, Step
from raycl.methods.simclr import SimCLR
from raycl.nn import collectives
from raycl.recipe import Recipe, load
from raycl.train import checkpoint
from raycl.train.loop import Loop, Place
from raycl.train.observers import Event, Observer
from tests.nn.distributed import run
from tests.train.toys import Clusters, Everything, Fixed, Toy, Turns

CPU = torch.device("cpu")


def recipe(*overrides: str, lanes: int = 1, steps: int = 3) -> Recipe:
    return load(
        "simclr/digits",
        [
            "method.encoder.width=8",
            "method.batch_norm=lane",
            "method.projector={hidden: 8, dim: 4}",
            "evaluation.every_epochs=0",
            "optimizer={name: sgd, lr: 0.05, lr_scaling: none, warmup_epochs: 0}",
            f"trainer={{workers: 1, lanes: {lanes}, batch: 4, log_every: 1, stop: {{epochs: 1}}}}",
            *overrides,
        ],
    )


def method_of(made: Recipe, seed: int = 0) -> SimCLR:
    torch.manual_seed(seed)
    return made.build().double()  # type: ignore[return-value]


def loop_of(
    made: Recipe,
    method: Method,
    *,
    steps: int = 3,
    rank: int = 0,
    world: int = 1,
    run: Path | None = None,
    **others: Any,
) -> Loop:
    lanes = list(range(rank, made.trainer.lanes, world))
    batches = Fixed(lanes, made.trainer.batch, steps)
    if run is not None:
        folder = checkpoint.folder(run)
        others["writer"] = checkpoint.Writer(folder, made.trainer.checkpoint, rank, world)
    return Loop(made, method, batches, Place(CPU, lanes, rank, world), **others)


def weights(method: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in method.state_dict().items() if v.is_floating_point()}


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], **how: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], **({"rtol": 1e-9, "atol": 1e-10} | how))


@pytest.mark.parametrize("at_once", [1, 2])
def test_two_passes_equal_one(at_once: int) -> None:
    """NT-Xent over four lanes, one or two of them in memory at a time."""
    whole, parts = recipe(lanes=4), recipe(f"trainer.lanes_at_once={at_once}", lanes=4)
    one, two = method_of(whole), method_of(whole)
    first, second = loop_of(whole, one), loop_of(parts, two)
    assert first.fit()["loss"] == pytest.approx(second.fit()["loss"], rel=1e-12)
    assert_equal(weights(one), weights(two))


@pytest.mark.parametrize("overrides", [[], ["trainer.lanes_at_once=1"]])
def test_activations_computed_again_change_nothing(overrides: list[str]) -> None:
    """The backward pass comes when the lanes of the forward pass are no longer in force."""
    usual, again = (
        recipe(*overrides, f"method.encoder.recompute={value}", lanes=2)
        for value in ("false", "true")
    )
    one, two = method_of(usual), method_of(again)
    assert loop_of(usual, one).fit() == loop_of(again, two).fit()
    assert_equal(weights(one), weights(two), rtol=1e-12, atol=1e-14)


def test_accumulation_refuses_what_it_cannot_do_exactly() -> None:
    made = recipe("trainer.lanes_at_once=1", "method.batch_norm=global", lanes=2)
    with pytest.raises(RayclError, match=r"method\.batch_norm=lane"):
        loop_of(made, method_of(made))
    made = recipe("trainer.lanes_at_once=1", lanes=2)
    with pytest.raises(RayclError, match="Turns has a training_step of its own"):
        loop_of(made, Turns().double())


Rank = tuple[dict[str, float], dict[str, torch.Tensor], dict[str, torch.Tensor]]


def _rank(scope: str) -> Rank:
    rank = collectives.rank()
    made = recipe(f"method.batch_norm={scope}", lanes=4)
    method = method_of(made, seed=rank)  # only rank 0's first weights count
    loop = loop_of(made, method, rank=rank, world=2)
    metrics = loop.fit()
    head = Clusters().double()
    clusters = loop_of(made, head, rank=rank, world=2, corpus=Everything(16))
    clusters.fit()
    return metrics, weights(method), weights(head)


@pytest.mark.parametrize("scope", ["lane", "global"])
def test_two_processes_equal_one(scope: str) -> None:
    made = recipe(f"method.batch_norm={scope}", lanes=4)
    alone = method_of(made)
    metrics = loop_of(made, alone).fit()
    results = run(2, _rank, scope)
    for logged, found, _ in results:
        assert logged["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
        assert_equal(weights(alone), found, rtol=1e-7, atol=1e-8)
    # Heads that each rank re-initialised for itself did not drift apart.
    assert_equal(results[0][2], results[1][2])


def test_two_optimizers_in_turns() -> None:
    made = recipe("trainer.batch=20", "optimizer.per={generator: {lr: 0.5}}")
    method = Turns().double()
    loop = loop_of(made, method, steps=2)
    before = weights(method.critic)
    metrics = loop.fit()
    assert method.order == (["critic"] * 5 + ["generator"]) * 2
    assert {"critic.loss", "generator.loss", "critic.lr", "generator.lr"} <= set(metrics)
    assert loop.optimizers["generator"].param_groups[0]["lr"] > 5 * metrics["critic.lr"]
    assert any((before[k] != v).any() for k, v in weights(method.critic).items())
    # The generator's turn must leave no gradient in the critic.
    assert all(p.grad is not None for p in method.encoder.parameters())


def test_a_head_that_is_reset_loses_its_momentum_and_nothing_else_does() -> None:
    made = recipe("trainer.stop.epochs=2")
    method = Clusters().double()
    loop = loop_of(made, method, corpus=Everything(16))
    seen: list[int] = []
    original = method.before_epoch

    def watched(corpus: Any, step: Step) -> None:
        original(corpus, step)
        seen.append(step.epoch)

    method.before_epoch = watched  # type: ignore[method-assign]
    optimizer = loop.optimizers["main"]
    loop.fit()
    assert seen == [0, 1] and method.passes == 2
    loop._before_epoch(2)
    assert not any(p in optimizer.state for p in method.head.parameters())
    assert all("momentum_buffer" in optimizer.state[p] for p in method.encoder.parameters())


class Worsens(Toy):
    """The loss is worse in every epoch but the first two."""

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        value = [2.0, 1.0, 3.0, 4.0, 5.0][min(step.epoch, 4)]
        yield Output(
            self.encoder(batch["view1"]).sum() * 0 + value + 0 * self.encoder[1].bias.sum()
        )
        with torch.no_grad():
            self.encoder[1].bias.fill_(step.epoch)


def test_patience_stops_and_restores_the_best_weights(tmp_path: Path) -> None:
    made = recipe("trainer.stop={epochs: 9, patience: {metric: loss, epochs: 2}}")
    method = Worsens().double()
    loop = loop_of(made, method, run=tmp_path)
    loop.fit()
    assert loop.step == 4 * 3  # epoch 1 was the best, epochs 2 and 3 were patience
    assert (method.encoder[1].bias == 1).all()
    again = loop_of(made, Worsens().double(), run=tmp_path)
    again.load(checkpoint.load(checkpoint.require(tmp_path)))
    again.fit()
    assert again.step == loop.step  # a run that is done stays done


def test_patience_on_what_is_not_measured() -> None:
    made = recipe("trainer.stop={epochs: 9, patience: {metric: knm, epochs: 2}}")
    with pytest.raises(RayclError, match=r"patience\.metric: 'knm' is not measured.*loss"):
        loop_of(made, method_of(made)).fit()


class Explodes(Toy):
    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        yield Output(self.encoder(batch["view1"]).sum() / 0)


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    made = recipe()
    with pytest.raises(RayclError, match="no finite number at step 1"):
        loop_of(made, Explodes().double()).fit()


class StopAfter(Observer):
    """Interrupts a loop after some steps, as Ctrl-C does, and notes the ends of epochs."""

    loop: Loop

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends: list[int] = []

    def after_epoch(self, event: Event) -> None:
        self.ends.append(event.step.epoch)

    def after_step(self, event: Event) -> None:
        self.loop.interrupted = event.step.index + 1 == self.steps


@pytest.mark.parametrize("at", [2, 3, 5, 6])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, at: int) -> None:
    made = recipe("trainer.stop.epochs=2", "optimizer.momentum=0.9", "trainer.log_every=2", lanes=2)
    whole = method_of(made)
    expected = loop_of(made, whole).fit()

    stop = StopAfter(at)
    loop = loop_of(made, method_of(made), run=tmp_path, observers=[stop])
    stop.loop = loop
    with pytest.raises(KeyboardInterrupt):
        loop.fit()
    folder = checkpoint.require(tmp_path)
    assert checkpoint.cursor(folder) == divmod(at, 3)
    rest = method_of(made, seed=5)
    later = StopAfter(at)
    later.loop = resumed = loop_of(made, rest, run=tmp_path, observers=[later])
    resumed.load(checkpoint.load(folder))
    later.steps = 0
    assert resumed.fit() == expected
    assert (resumed.step, stop.ends + later.ends) == (6, [0, 1])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


class AskAfter(StopAfter):
    """Asks one rank for a checkpoint after some steps, as a cluster that grows does."""

    def after_step(self, event: Event) -> None:
        self.loop.asked |= event.step.index + 1 == self.steps


def test_a_checkpoint_that_is_asked_for_comes_at_the_next_logged_step(tmp_path: Path) -> None:
    made = recipe(
        "trainer.stop.epochs=2", "trainer.log_every=1", "trainer.checkpoint.keep=9", lanes=2
    )
    ask = AskAfter(4)
    ask.loop = loop_of(made, method_of(made), run=tmp_path, observers=[ask])
    ask.loop.fit()
    folders = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert [int(name.partition("-")[2]) for name in folders] == [3, 5, 6]


def test_stop_at_a_number_of_steps() -> None:
    made = recipe("trainer.stop={epochs: 5, steps: 4}")
    loop = loop_of(made, method_of(made))
    loop.fit()
    assert loop.step == loop.total == 4


def test_bfloat16_trains_in_autocast() -> None:
    made = recipe("trainer.precision=bfloat16")
    method = method_of(made).float()
    batches = Fixed([0], 4, 3, dtype=torch.float32)
    seen: list[torch.dtype] = []
    method.encoder.layer1.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    loss = Loop(made, method, batches, Place(CPU, [0])).fit()["loss"]
    assert set(seen) == {torch.bfloat16} and 0 < loss < 10
    assert all(p.dtype == torch.float32 for p in method.parameters())


def test_one_process_is_no_group() -> None:
    assert collectives.world_size() == 1
