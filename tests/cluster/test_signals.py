"""What a scheduler or a person does to a run on Ray: it is told to end, and saves first."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from raycl.train import checkpoint
from tests.cluster.conftest import until
from tests.train.test_trainer import command, metrics


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_on_ray_saves_before_it_ends(
    tiny: list[str], tmp_path: Path, stop: signal.Signals
) -> None:
    """Two workers, no checkpoint due before the end; the resumed run does no step twice."""
    run = tmp_path / "run"
    changes = [
        *tiny, "trainer.workers=2", "trainer.lanes=2", "trainer.stop.epochs=40",
        "trainer.checkpoint.every_epochs=99", "evaluation.every_epochs=0", "trainer.log_every=1",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command("pretrain", "simclr/digits", *changes, "--run", str(run)),
        env=environment, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    path = run / "metrics.jsonl"
    until(lambda: path.exists() and path.stat().st_size, 200, "no step was made")
    process.send_signal(stop)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert f"raycl pretrain --resume {run}" in errors
    saved = checkpoint.require(run)
    step = int(saved.name.removeprefix("step-"))
    before = [line["step"] for line in metrics(run)]
    assert 0 < step < 160 and before[-1] >= step
    again = command("pretrain", "--resume", str(run), "trainer.workers=1")
    subprocess.run(again, check=True, timeout=200, env=environment)
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, 161))
