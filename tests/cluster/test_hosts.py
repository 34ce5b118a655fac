"""A run on several hosts, one of which is lost."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from raycl.recipe import load
from raycl.train.trainer import pretrain
from tests.cluster.conftest import Hosts, until
from tests.cluster.watched import seen
from tests.conftest import ROOT
from tests.train.test_trainer import metrics, series


@pytest.fixture
def changes(tiny: list[str]) -> list[str]:
    return [*tiny, "trainer.stop.epochs=24", "evaluation.every_epochs=0", "trainer.log_every=1"]


def watched(log: Path) -> str:
    log.mkdir()
    return f"method.log={log}"


def test_a_host_is_cut_off_in_mid_epoch(hosts: Hosts, changes: list[str], tmp_path: Path) -> None:
    """Three hosts, a job from outside, two ranks; one rank's host goes and the run ends by itself.

    Every lane sees the samples of the undisturbed run, no step is logged twice or missing.
    """
    changes = [*changes, "method.name=tests.cluster.watched:Watched"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    begin = time.monotonic()
    submitted = hosts.job(
        "submit", "--no-wait", "--submission-id", "watched", "--working-dir", str(ROOT), "--",
        sys.executable, "jobs/pretrain.py", "simclr/digits", "--run", str(run), *changes,
        watched(tmp_path / "log"), "trainer.workers=[1,2]",
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    until(lambda: run.exists() and (run / "metrics.jsonl").exists(), 240, "no step was made")
    until(lambda: metrics(run)[-1]["step"] >= 10, 120, "no tenth step")
    lost = next(host for host in (1, 2) if hosts.trainers(host))
    hosts.cut(lost)
    cut_at, cut = metrics(run)[-1]["step"], time.monotonic()
    until(lambda: metrics(run)[-1]["step"] > cut_at + 4, 240, "training does not go on")
    again = time.monotonic() - cut
    until(lambda: (run / "encoder.safetensors").exists(), 240, "the run does not end")
    until(lambda: "succeeded" in hosts.job("status", "watched").stdout, 60, "no success")
    print(f"cut at step {cut_at}; training again after {again:.0f} s; "
          f"{time.monotonic() - begin:.0f} s in all")  # fmt: skip
    pretrain(
        load("simclr/digits", [*changes, watched(tmp_path / "alone"), "trainer.workers=1"]), whole
    )
    assert seen(tmp_path / "log") == seen(tmp_path / "alone")
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in metrics(whole)]
    # One process against two, 96 steps in float32: rounding grows, from 1e-7 at the first step.
    assert series(run, "loss") == pytest.approx(series(whole, "loss"), rel=1e-3)
