"""Observers that measure and that write into the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pyarrow import parquet
from torch import Tensor, nn

from raycl.methods.base import Batch, Output, Step
from raycl.report import write_report
from raycl.train import checkpoint
from raycl.train.guard import LONG
from raycl.train.observers import Event, Observer
from raycl.train.observers.measure import Embeddings, Throughput
from raycl.train.observers.write import Metrics
from tests.train.test_loop import StopAfter, loop_of, method_of, recipe
from tests.train.toys import Fixed, Toy

TOY = nn.Identity()


def event(step: int, metrics: dict[str, float], *notes: str, **others: Any) -> Event:
    """What a writer is shown after so many steps of an epoch of ten."""
    at = Step(step - 1, 0, 100)
    return Event(at, dict(metrics), {}, None, TOY, True, notes=list(notes), **others)  # type: ignore[arg-type]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_throughput_tells_the_time_of_a_step() -> None:
    made = recipe()
    rows = made.trainer.batch
    metrics = loop_of(
        made, method_of(made), observers=[Throughput(Fixed([0], rows, 3), rows)]
    ).fit()
    assert metrics["step_time"] * metrics["images_per_second"] == pytest.approx(rows)


def test_parquet_holds_what_the_lines_hold(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 10)
    metrics.after_step(event(5, {"loss": 1.0, "substituted": 2}))
    metrics.after_step(event(10, {"loss": 0.5, "wait_share/read": float("nan")}, "mind the step"))
    metrics.after_epoch(event(11, {"knn": 0.9}))
    metrics.close()
    table = parquet.read_table(tmp_path / "metrics.parquet")
    assert table["step"].to_pylist() == [5, 10, 10, 10]
    assert table["note"].to_pylist() == [None, None, "mind the step", None]
    frame = pd.read_parquet(tmp_path / "metrics.parquet")
    assert frame["loss"].dropna().tolist() == [1.0, 0.5]
    assert frame["knn"].dropna().tolist() == [0.9]
    assert list(frame) == list(dict.fromkeys(key for line in lines(tmp_path) for key in line))


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_parquet_has_no_step_twice_after_a_resume(tmp_path: Path, with_checkpoint: bool) -> None:
    """Stopped at step 5; goes on from the checkpoint of step 3, or from the beginning."""
    made = recipe("trainer.stop.epochs=2")
    whole = Metrics(tmp_path, 3)

    def stopped() -> None:
        stop = StopAfter(5)
        loop = loop_of(made, method_of(made), run=tmp_path, observers=[whole, Embeddings(), stop])
        stop.loop = loop
        loop.save = lambda wait=False: type(loop).save(loop) if loop.step == 3 else None  # type: ignore[method-assign]
        loop.fit()

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    again = Metrics(tmp_path, 3)
    loop = loop_of(made, method_of(made), run=tmp_path, observers=[again])
    if with_checkpoint:
        loop.load(checkpoint.load(checkpoint.require(tmp_path), 0))
    loop.fit()
    again.close()
    table = parquet.read_table(tmp_path / "metrics.parquet")
    assert table["step"].to_pylist() == [1, 2, 3, 4, 5, 6]


class Siamese(Toy):
    """Two views that only attract each other: SimSiam without its stop-gradient."""

    def training_step(self, batch: Batch, step: Step) -> Iterator[Output]:
        one, two = self.encoder(batch["view1"]), self.encoder(batch["view2"])
        yield Output((one - two).square().mean(), embedding=one.detach())


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[tuple[int, str]] = []

    def after_step(self, event: Event) -> None:
        self.heard += [(event.step.index + 1, note) for note in event.notes]

    def after_epoch(self, event: Event) -> None:
        self.heard += [(event.step.index, note) for note in event.notes]


def test_a_collapse_is_noted_once(tmp_path: Path) -> None:
    rate = "lr: 1, lr_scaling: none, schedule: constant, warmup_epochs: 0"
    made = recipe(
        "trainer.stop.epochs=50",
        "trainer.batch=16",
        f"optimizer={{name: sgd, momentum: 0, {rate}}}",
    )
    notes, embeddings = Notes(), Embeddings(64)
    metrics = Metrics(tmp_path, 3)
    torch.manual_seed(0)
    loop = loop_of(made, Siamese().double(), observers=[embeddings, notes, metrics])
    assert loop.fit()["embedding_std"] < 0.1 / 2
    point = [(step, note) for step, note in notes.heard if "to a point" in note]
    line = [(step, note) for step, note in notes.heard if "to a line" in note]
    assert len(point) == len(line) == 1
    low = {x["step"]: x["embedding_std"] < 0.1 / 2 for x in lines(tmp_path) if "loss" in x}
    noted = point[0][0]
    assert all(low[noted - i] for i in range(LONG)) and not low[noted - LONG]
    assert f"at step {noted}, has been under 0.1/sqrt(4)" in point[0][1]
    assert [x["note"] for x in lines(tmp_path) if "note" in x] == [note for _, note in notes.heard]
    page = write_report(tmp_path).read_text()
    assert page.count('<p class="alarm">') == 2 and "the embedding collapses to a point" in page


def test_simclr_does_not_collapse() -> None:
    made = recipe("trainer.stop.epochs=20", "trainer.batch=16")
    notes = Notes()
    loop = loop_of(made, method_of(made), observers=[Embeddings(64), notes])
    metrics = loop.fit()
    dims = made.build().encoder.dim  # type: ignore[attr-defined]
    assert metrics["embedding_std"] > 0.2 / dims**0.5 and metrics["rank_me"] > 4
    assert notes.heard == []


def feed(embeddings: Embeddings, rows: Tensor, steps: int, start: int = 0) -> list[str]:
    notes: list[str] = []
    for index in range(start, start + steps):
        shown = Event(Step(index, 0, 100), {}, {}, rows, TOY, True)  # type: ignore[arg-type]
        embeddings.after_step(shown)
        notes += shown.notes
    return notes


def test_an_alarm_comes_again_only_after_health() -> None:
    same, spread = torch.ones(32, 8), torch.randn(32, 8)
    embeddings = Embeddings(32)
    assert feed(embeddings, same, LONG - 1) == []
    resumed = Embeddings(32)
    resumed.load_state_dict(embeddings.state_dict())
    assert len(feed(resumed, same, 3 * LONG)) == 1
    assert feed(resumed, spread, 1) == []
    assert len(feed(resumed, same, LONG)) == 1
