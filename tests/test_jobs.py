"""Jobs, as users submit them: through the job server of a real head, with a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cluster


def submit(cluster: Cluster, *entrypoint: str) -> str:
    """Submits a job, waits for it and returns what it printed."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "submit", "--address", cluster.dashboard,
         "--working-dir", str(ROOT), "--", sys.executable, *entrypoint],
        capture_output=True, text=True, timeout=400,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_pretrain_and_evaluate_as_jobs(cluster: Cluster, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = [*tiny, "trainer.stop.epochs=1", "trainer.workers=2"]
    printed = submit(cluster, "jobs/pretrain.py", "simclr/digits", "--run", str(run), *changes)
    assert f"run: {run}" in printed and "succeeded" in printed
    assert (run / "encoder.safetensors").is_file()
    submit(cluster, "jobs/evaluate.py", str(run), "--protocol", "knn")
    (row,) = json.loads((run / "evaluation.json").read_text())["rows"][:1]
    assert row["protocol"] == "knn" and row["score"] > 0.1


def test_a_job_with_a_mistake_fails_with_its_message(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match=r"method\.temperature: 0 was given"):
        submit(cluster, "jobs/pretrain.py", "simclr/digits", "method.temperature=0")


@pytest.mark.parametrize("token", ["", "wrong" * 8])
def test_without_the_token_nobody_gets_in(cluster: Cluster, token: str) -> None:
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code in (401, 403)
