"""Runs on several hosts, some of which are lost, leave, come back, or take the head with them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from raycl.recipe import load
from raycl.train import checkpoint
from raycl.train.trainer import pretrain
from tests.cluster.conftest import Hosts, until
from tests.cluster.watched import seen
from tests.conftest import ROOT
from tests.train.test_trainer import metrics, series

EPOCHS = 24  # of 4 steps


class Job:
    """A watched run of `tiny` that was submitted to the hosts from outside."""

    def __init__(
        self, folder: Path, tiny: list[str], *changes: str, run: Path | None = None
    ) -> None:
        self.folder, self.run = folder, run or folder / "run"
        self.changes = [
            *tiny, "method.name=tests.cluster.watched:Watched", f"trainer.stop.epochs={EPOCHS}",
            "evaluation.every_epochs=0", "trainer.log_every=1", *changes,
        ]  # fmt: skip
        (folder / "log").mkdir()

    def start(self, hosts: Hosts, *arguments: str) -> None:
        """`simclr/digits` unless arguments say otherwise."""
        first = arguments or (
            "simclr/digits", "--run", str(self.run), *self.changes,
            f"method.log={self.folder / 'log'}", "trainer.workers=[1,2]",
        )  # fmt: skip
        submitted = hosts.job(
            "submit", "--no-wait", "--submission-id", "watched", "--working-dir", str(ROOT), "--",
            sys.executable, "jobs/pretrain.py", *first,
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr

    @property
    def step(self) -> int:
        path = self.run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = text.rpartition("\n")[0].splitlines()  # a full disk cuts the last one
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def reaches(self, step: int, seconds: float = 240) -> float:
        """Waits until a step is logged; returns the seconds that it took."""
        begin = time.monotonic()
        until(lambda: self.step >= step, seconds, f"step {step} is not reached")
        return time.monotonic() - begin

    def check(self, hosts: Hosts) -> None:
        """Ended by itself, with samples and metrics of the run that nobody disturbed."""
        until(lambda: (self.run / "encoder.safetensors").exists(), 300, "the run does not end")
        until(lambda: "succeeded" in hosts.job("status", "watched").stdout, 60, "no success")
        (self.folder / "alone").mkdir()
        alone = [*self.changes, f"method.log={self.folder / 'alone'}", "trainer.workers=1"]
        alone.append("method.pause=0")
        whole = pretrain(load("simclr/digits", alone), self.folder / "whole")
        assert seen(self.folder / "log") == seen(self.folder / "alone")
        steps = [line["step"] for line in metrics(self.run)]
        assert steps == [line["step"] for line in metrics(whole)]
        # One process against two in float64, where 496 undisturbed steps differ by 7e-16.
        assert series(self.run, "loss") == pytest.approx(series(whole, "loss"), rel=1e-12)


def test_a_host_is_cut_off_in_mid_epoch(hosts: Hosts, tiny: list[str], tmp_path: Path) -> None:
    """Three hosts, two ranks; one rank's host goes and the run ends by itself."""
    job, begin = Job(tmp_path, tiny), time.monotonic()
    job.start(hosts)
    job.reaches(10)
    lost = next(host for host in (1, 2) if hosts.trainers(host))
    hosts.cut(lost)
    cut_at = job.step
    again = job.reaches(cut_at + 1)
    job.check(hosts)
    print(f"cut at step {cut_at}; training again after {again:.0f} s; "
          f"{time.monotonic() - begin:.0f} s in all")  # fmt: skip


def test_a_host_that_does_not_share_the_directory_is_named(
    hosts: Hosts, tiny: list[str], tmp_path: Path
) -> None:
    """Before anything is trained or written."""
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    hosts.mount(2, own, shared)
    job = Job(tmp_path, tiny, run=shared / "run")
    job.start(hosts)
    until(lambda: "failed" in hosts.job("status", "watched").stdout.lower(), 120, "no failure")
    told = hosts.job("logs", "watched").stdout
    assert f"error: trainer.storage: none given, and {job.run} is not shared by all hosts" in told
    assert f"  {hosts.network}.3: does not see what the run's host writes there" in told
    assert f"{hosts.network}.2:" not in told
    assert not list(shared.iterdir()) and not list(own.iterdir())


def test_a_host_leaves_with_notice_and_comes_back(
    idle_hosts: Hosts, tiny: list[str], tmp_path: Path
) -> None:
    """A checkpoint at the notice, one rank without the host, two again when it is back.

    There are no other checkpoints before the end, so steps would be lost if one were not written.
    """
    slow = "method.pause=1.0"  # a host takes its time to come back
    job = Job(tmp_path, tiny, "trainer.checkpoint={every_epochs: 99, keep: 9}", slow)
    place, hosts, leaving = checkpoint.folder(job.run), idle_hosts, 1
    hosts.up(2)
    job.start(hosts)
    job.reaches(10)
    assert hosts.trainers(leaving)
    told_at, told = job.step, time.monotonic()
    hosts.drain(leaving)
    until(lambda: checkpoint.latest(place), 30, "no checkpoint at the notice")
    print(f"told at step {told_at}; a checkpoint after {time.monotonic() - told:.1f} s")
    found = checkpoint.latest(place)
    assert found is not None and int(found.name.removeprefix("step-")) >= told_at
    hosts.kill(leaving)
    until(lambda: not hosts.trainers(leaving), 30, "the host does not go")
    again = job.reaches(job.step + 5)
    print(f"training again after {again:.0f} s")
    hosts.start(leaving)
    until(lambda: hosts.trainers(leaving), 200, "the group does not grow")
    grown = [int(f.removeprefix("step-")) for f in place.names()]
    assert len(grown) == 2, "before it grows the group saves"
    job.check(hosts)


def test_the_head_is_killed_and_the_run_resumed(
    hosts: Hosts, tiny: list[str], tmp_path: Path
) -> None:
    job = Job(tmp_path, tiny)
    job.start(hosts)
    job.reaches(10)
    for host in (0, 1, 2):  # without their head the others end after a while
        hosts.kill(host)
    hosts.up()
    job.start(hosts, "--resume", str(job.run))
    job.check(hosts)
