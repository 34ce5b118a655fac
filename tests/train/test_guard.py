"""Guards: a loss that is no number, a loss that diverges, and the checkpoints that they leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raycl.errors import RayclError
from raycl.methods.base import Batch, Output, Step
from raycl.nn import collectives
from raycl.recipe import load
from raycl.train import checkpoint
from raycl.train.guard import LONG, Divergence
from raycl.train.observers import Event, Observer
from raycl.train.trainer import pretrain
from tests.conftest import Cluster
from tests.nn.distributed import run
from tests.train.test_loop import loop_of, recipe
from tests.train.toys import Toy


def onsets(losses: list[float]) -> list[int]:
    """The steps that a guard names, of one logged loss a step."""
    guard = Divergence()
    found = [guard.see(step, loss) for step, loss in enumerate(losses)]
    return [step for step in found if step is not None]


def towards(start: float, end: float, count: int = 300) -> list[float]:
    """Losses on their way, with noise of a tenth of it."""
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0)).tolist()
    share = [math.exp(-step / 40) for step in range(count)]
    return [end + (start - end) * (s + 0.1 * n) for s, n in zip(share, noise, strict=True)]


@pytest.mark.parametrize(
    "losses",
    [
        towards(5.5, 4.0),
        towards(-0.1, -0.9),  # a cosine
        [2.0, 1.0] + [0.1] * 100 + towards(0.1, 0.5),  # BYOL: dips before its target moves
        [11.0 * math.log1p(i) / math.log(LONG) for i in range(LONG)] + towards(11.0, 7.0),  # MoCo
        [5.5, 5.6, 5.4] * 100,  # learns nothing
        towards(5.5, 4.0) + [50.0] * (LONG // 2) + [4.0] * 50,  # a peak
        [1e6, 1e4, *towards(10.0, 1.0)],
    ],
)
def test_no_divergence(losses: list[float]) -> None:
    assert onsets(losses) == []


@pytest.mark.parametrize(("start", "end"), [(5.5, 4.0), (-0.1, -0.9), (1e-3, 1e-5), (2e4, 1e3)])
def test_a_divergence_is_named_once_and_by_its_first_step(start: float, end: float) -> None:
    good, bad = towards(start, end), start + 2 * (start - end)
    assert onsets([*good, *[bad] * 100]) == [300]
    # Going on, getting well and diverging again are one onset each.
    assert onsets([*good, *[bad] * 100, *good, *[bad] * 100]) == [300, 700]


def test_a_guard_goes_on_where_it_was() -> None:
    whole, first = Divergence(), Divergence()
    losses = [*towards(5.5, 4.0), *[50.0] * 100]
    for step, loss in enumerate(losses[:305]):
        first.see(step, loss)
    second = Divergence()
    second.load_state_dict(first.state_dict())
    expected = [whole.see(step, loss) for step, loss in enumerate(losses)][305:]
    assert [second.see(step, loss) for step, loss in enumerate(losses[305:], 305)] == expected
    assert 300 in expected


class Scripted(Toy):
    """The loss is what a function of the step says; the weights move a little."""

    def __init__(self, loss: Callable[[int], float]) -> None:
        super().__init__()
        self.loss = loss

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        mean = self.encoder(batch["view1"]).mean()
        yield Output(0.001 * (mean - mean.detach()) + self.loss(step.index + 1))


def from_step(first: int, bad: float, good: float = 1.0) -> Callable[[int], float]:
    return lambda step: bad if step >= first else good


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named_and_the_last_good_checkpoint_stays(
    tmp_path: Path, bad: float
) -> None:
    """Logged at steps 5 and 9, bad from step 7 on; the checkpoint of step 9 would be bad."""
    made = recipe("trainer.log_every=5", "trainer.stop.epochs=9")
    loop = loop_of(made, Scripted(from_step(7, bad)).double(), run=tmp_path)
    with pytest.raises(RayclError, match="no finite number at step 7; ") as caught:
        loop.fit()
    good = checkpoint.require(tmp_path)
    assert steps_of(tmp_path) == [3, 6] and good.name == "step-0000000006"
    assert f"the last good checkpoint is {good}; " in str(caught.value)
    assert f"raycl pretrain {tmp_path} init_from={tmp_path}" in str(caught.value)
    weights: dict[str, Tensor] = checkpoint.load(good, 0)["method"]
    assert all(value.isfinite().all() for value in weights.values())


def test_a_bad_loss_before_the_first_checkpoint(tmp_path: Path) -> None:
    made = recipe("trainer.log_every=5", "trainer.stop.epochs=9")
    with pytest.raises(RayclError, match="at step 2; no checkpoint was written before"):
        loop_of(made, Scripted(from_step(2, float("nan"))).double(), run=tmp_path).fit()


class Interrupt(Observer):
    """Ctrl-C after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_step(self, event: Event) -> None:
        self.loop.interrupted = event.step.index + 1 == self.steps  # type: ignore[attr-defined]


def test_an_interrupt_does_not_save_what_was_not_yet_logged(tmp_path: Path) -> None:
    made = recipe("trainer.log_every=50", "trainer.stop.epochs=9")
    interrupt = Interrupt(5)
    method = Scripted(from_step(4, float("nan"))).double()
    loop = loop_of(made, method, run=tmp_path, observers=[interrupt])
    interrupt.loop = loop  # type: ignore[attr-defined]
    with pytest.raises(RayclError, match="at step 4; "):
        loop.fit()
    assert steps_of(tmp_path) == [3]


class Kink(Toy):
    """At one step a finite loss has a gradient that is not."""

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        value = self.encoder(batch["view1"]).mean()
        yield Output((0 * value).sqrt() if step.index + 1 == 6 else value)


def test_parameters_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    made = recipe("trainer.stop.epochs=9")
    with pytest.raises(RayclError, match="step 6, whose loss was finite, left parameters"):
        loop_of(made, Kink().double(), run=tmp_path).fit()
    assert steps_of(tmp_path) == [3]


def _rank(folder: Path) -> str:
    rank = collectives.rank()
    made = recipe("trainer.log_every=5", "trainer.stop.epochs=9", lanes=2)
    # Only rank 1 sees it, two steps before the gradients' average brings it to the other.
    method = Scripted(from_step(7 if rank else 8, float("nan"))).double()
    with pytest.raises(RayclError) as caught:
        loop_of(made, method, rank=rank, world=2, run=folder).fit()
    return str(caught.value)


def test_all_ranks_name_the_step_that_one_of_them_has_seen(tmp_path: Path) -> None:
    one, two = run(2, _rank, tmp_path)
    assert one == two and "no finite number at step 7; " in one
    assert "step-0000000006" in one


def test_a_divergence_is_noted_or_ends_the_run_at_the_checkpoint_before(tmp_path: Path) -> None:
    """60 steps fall, then the loss is high for good; a checkpoint after every 3 steps."""
    notes: list[str] = []

    class Listen(Observer):
        def after_step(self, event: Event) -> None:
            notes.extend(event.notes)

    losses = towards(5.0, 4.0, 60)
    made = recipe("trainer.stop.epochs=40")

    def method() -> Toy:
        return Scripted(lambda step: losses[step - 1] if step <= 60 else 40.0).double()

    loop_of(made, method(), run=tmp_path / "warn", observers=[Listen()]).fit()
    (note,) = notes
    assert note.startswith("the loss diverges since step 61: it is 40 at step ")
    assert steps_of(tmp_path / "warn")[-1] == 120

    made = recipe("trainer.stop={epochs: 40, divergence: true}")
    with pytest.raises(RayclError, match=r"diverges since step 61.*checkpoint is .*-0000000060;"):
        loop_of(made, method(), run=tmp_path / "stop").fit()
    assert steps_of(tmp_path / "stop") == [57, 60]


class Alike(Toy):
    """Embeds all samples alike, and from step 30 on its loss is no number."""

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        zero = 0 * self.encoder(batch["view1"]).mean()
        loss = zero + (float("nan") if step.index + 1 >= 30 else 1.0)
        yield Output(loss, embedding=torch.ones(len(batch["id"]), 4))


@pytest.mark.parametrize("workers", [1, 2])
def test_whoever_started_a_run_hears_of_it(
    cluster: Cluster, digits: Path, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In this process and from Ray workers: warnings while it runs, and why it ended, at once."""
    overrides = [
        f"data={{train: {digits / 'train'}, limit: 512}}",
        "method={name: 'tests.train.test_guard:Alike'}",
        "views={size: 8}",
        f"trainer={{lanes: 2, batch: 32, workers: {workers}, log_every: 1, stop: {{epochs: 9}}}}",
        "evaluation.every_epochs=0",
    ]
    heard: list[dict[str, object]] = []
    with pytest.raises(RayclError, match=r"no finite number at step 30; .*step-0000000024"):
        pretrain(load("simclr/digits", overrides), tmp_path / "run", heard.append)
    notes = [r.getMessage() for r in caplog.records if "the embedding collapses" in r.getMessage()]
    assert ["a line" in note for note in notes] == [True, False]
    assert [record["step"] for record in heard if "loss" in record] == list(range(1, 30))
    assert not any("note" in record for record in heard)
    assert (tmp_path / "run" / "metrics.parquet").is_file()
