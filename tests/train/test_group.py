"""Worker groups that lose a process, and those that must not be started again."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors.torch import load_file

from raycl.errors import RayclError
from raycl.recipe import RecipeError, load
from raycl.sections import Checkpoint
from raycl.train import checkpoint
from raycl.train.backend import interface_of
from raycl.train.group import TRIES, Elastic, Restart
from raycl.train.trainer import pretrain
from tests.train.test_trainer import metrics, series


def workers() -> list[psutil.Process]:
    """Worker processes of this test run's own cluster; another one may run beside it."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if (process.cmdline() or [""])[0].startswith("ray::RayTrainWorker"):
                found.append(process)
    return found


def kill_after(run: Path, step: int, killed: list[int]) -> None:
    """SIGKILLs a worker when the run has got to a step."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        lines = metrics(run) if (run / "metrics.jsonl").exists() else []
        if lines and lines[-1]["step"] >= step:
            victim = max(workers(), key=lambda process: process.create_time())
            victim.send_signal(signal.SIGKILL)
            killed.append(victim.pid)
            return
        time.sleep(0.05)


def test_a_killed_worker_costs_no_step(
    by_two: tuple[Path, list[dict[str, Any]]], tiny: list[str], tmp_path: Path
) -> None:
    """The group starts again by itself, and ends with the weights of the undisturbed run.

    Its workers read for themselves, as they do in a Ray of their own, and still train on what Ray
    Data brought to those of the other run.
    """
    (tmp_path / "log").mkdir()
    changes = [
        *tiny, "trainer.workers=2", "trainer.nccl={NCCL_DEBUG: WARN}", "data.read_on=worker",
        "method.name=tests.cluster.watched:Paused", "method.pause=0.5",
        f"method.log={tmp_path / 'log'}",
    ]  # fmt: skip
    whole, _ = by_two
    run, killed = tmp_path / "run", []  # type: tuple[Path, list[int]]
    thread = threading.Thread(target=kill_after, args=(run, 6, killed))
    thread.start()
    heard: list[dict[str, Any]] = []
    pretrain(load("simclr/digits", changes), run, heard.append)
    thread.join()
    assert killed
    assert [line["step"] for line in heard].count(6) >= 2, "it was not killed in time"
    assert {path.read_text() for path in (tmp_path / "log").glob("*.nccl")} == {"WARN"}
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in metrics(whole)]
    assert series(run, "loss") == series(whole, "loss")
    one, two = (load_file(r / "encoder.safetensors") for r in (whole, run))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(two[name], value), name


def complete(run: Path, step: int) -> None:
    writer = checkpoint.Writer(checkpoint.folder(run), Checkpoint())
    writer.save(step, {"method": {"x": torch.zeros(1)}}, (0, step))
    writer.wait(must=True)


class Handle:
    """A method of an actor's handle."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def remote(self, *arguments: Any) -> None:
        self.calls.append(arguments)


class Board:
    """Stands for the actor: what the policies call is kept."""

    def __init__(self) -> None:
        self.ask, self.put = Handle(), Handle()


def test_a_group_that_gets_nowhere_is_given_up(tmp_path: Path) -> None:
    board = Board()
    policy = Restart(checkpoint.folder(tmp_path), board)
    lost = WorkerGroupError("", {0: RuntimeError("Connection closed by peer")})
    for _ in range(TRIES - 1):
        assert policy.make_decision(lost) == FailureDecision.RETRY
    complete(tmp_path, 5)  # progress: the count begins anew
    for _ in range(TRIES - 1):
        assert policy.make_decision(lost) == FailureDecision.RETRY
    assert policy.make_decision(lost) == FailureDecision.RAISE
    notes = [call[0]["note"] for call in board.put.calls]
    assert len(notes) == 2 * (TRIES - 1)
    assert "from the beginning: Training failed" in notes[0]
    assert "from checkpoint step-0000000005: " in notes[-1]


@pytest.mark.parametrize("error", [RayclError("bad sample"), TypeError("a bug")])
def test_what_will_not_pass_is_raised_at_once(tmp_path: Path, error: Exception) -> None:
    lost = WorkerGroupError("", {0: error, 1: RuntimeError("Connection closed by peer")})
    policy = Restart(checkpoint.folder(tmp_path), Board())
    assert policy.make_decision(lost) == FailureDecision.RAISE


def test_a_group_saves_before_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    config = ScalingConfig(num_workers=(1, 6), resources_per_worker={"CPU": 1})
    policy = Elastic(config, checkpoint.folder(tmp_path), [1, 2, 3, 6], board)
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": True}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    assert policy._count_possible_workers({"a": {"CPU": 3.0}, "b": {"CPU": 2.0}}) == 3
    nodes[1]["Alive"] = False  # what is reserved there will never come
    assert policy._count_possible_workers({"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}) == 2
    assert policy._count_possible_workers({}) == 0
    decisions = iter([ResizeDecision(3, {"CPU": 1}), *[NoopDecision()] * 3])
    monkeypatch.setattr(
        "ray.train.v2._internal.execution.scaling_policy.elastic.ElasticScalingPolicy"
        ".make_decision_for_running_worker_group",
        lambda *_, **__: next(decisions),
    )
    states: Any = {"worker_group_state": None, "worker_group_status": None}
    assert isinstance(policy.make_decision_for_running_worker_group(**states), NoopDecision)
    assert len(board.ask.calls) == 1
    assert isinstance(policy.make_decision_for_running_worker_group(**states), NoopDecision)
    complete(tmp_path, 7)
    decision = policy.make_decision_for_running_worker_group(**states)
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 3
    assert isinstance(policy.make_decision_for_running_worker_group(**states), NoopDecision)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ("[4,5]", r"workers=\[4, 5\] does not divide lanes=6; allowed .*: 1, 2, 3, 6"),
        ("[3,2]", r"workers=\[3, 2\]: give \[least, most\]"),
        ("0", r"trainer\.workers: 0 was given"),
        ("[1,0]", r"trainer\.workers\.1: 0 was given"),
    ],
)
def test_sizes_that_do_not_divide_the_lanes_are_refused(workers: str, message: str) -> None:
    recipe = load("simclr/digits", ["trainer.lanes=6", "trainer.workers=[1,4]"])
    assert recipe.trainer.group_sizes == [1, 2, 3]
    with pytest.raises(RecipeError, match=message):
        load("simclr/digits", ["trainer.lanes=6", f"trainer.workers={workers}"])


def test_what_is_no_setting_of_nccl_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"trainer\.nccl: .*PATH is no setting of NCCL"):
        load("simclr/digits", ["trainer.nccl={PATH: /tmp}"])
