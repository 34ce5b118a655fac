"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# Ray reads both when it is first imported, which test modules do before any fixture runs.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loads a golden file by name: arrays computed by a published implementation."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(ROOT / "tests" / "golden" / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a shared data set; skips where there is none, which CI does not accept."""

    def find(name: str) -> Path:
        path = SHARED / "data" / name
        if not path.exists():
            if os.environ.get("RAYCL_NEEDS_DATA"):
                pytest.fail(f"the shared data set {name} is missing and this run requires it")
            pytest.skip(f"shared data set {name} is not beside this checkout")
        return path

    return find


@dataclass(frozen=True)
class Cluster:
    """A running head: where drivers and jobs reach it."""

    address: str
    dashboard: str
    token: str


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The one Ray cluster of the whole test run: a head with two CPUs, dashboard and token.

    This process is connected to it, so that drivers under test use it as it is.
    """
    import ray

    port, dashboard, agent = free_port(), free_port(), free_port()
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        head(
            folder, port, "--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}",
            "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}",
            "--object-store-memory=800000000",
        ) as process,
    ):  # fmt: skip
        try:
            address = f"127.0.0.1:{port}"
            for attempt in range(10):
                try:
                    ray.init(address, log_to_driver=False, logging_level="ERROR")
                    break
                except Exception:
                    if attempt == 9 or process.poll() is not None:
                        raise
                    time.sleep(1)
            yield Cluster(address, f"http://127.0.0.1:{dashboard}", os.environ["RAY_AUTH_TOKEN"])
        finally:
            ray.shutdown()


@contextmanager
def head(
    folder: str, port: int, *options: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A head that keeps its state in a folder; the block's end ends its own processes alone."""
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}",
         f"--temp-dir={folder}", "--num-gpus=0", "--disable-usage-stats", *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": _path()} | environment,
    )  # fmt: skip
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a session, in which are its children
        process.wait(30)


def _path() -> str:
    """On which a node's `python` is the one that has raycl."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="module", autouse=True)
def _cores_are_free_again() -> Iterator[None]:
    """A module that leaves an actor behind is named; the next one would wait for its core."""
    yield
    import ray

    if ray.is_initialized():
        whole, deadline = ray.cluster_resources().get("CPU"), time.monotonic() + 120
        while ray.available_resources().get("CPU") != whole:
            assert time.monotonic() < deadline, "tasks or actors of this module hold cores"
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits as shards: a folder with train and test."""
    from raycl.data.encode import Storage
    from raycl.data.sink import import_dataset

    folder = tmp_path_factory.mktemp("data") / "digits"
    import_dataset("digits", None, folder, storage=Storage(shard_samples=600))
    return folder


@pytest.fixture(scope="session")
def tiny(digits: Path) -> list[str]:
    """Overrides that make simclr/digits a matter of seconds."""
    return [
        f"data.train={digits / 'train'}",
        f"data.test={digits / 'test'}",
        "data.limit=512",
        "views.size=16",
        "method.encoder.width=8",
        "trainer.batch=64",
        "trainer.log_every=2",
        "trainer.stop.epochs=2",
        "trainer.checkpoint.every_epochs=1",
        # Digits lie on a flat background, where rounding decides the sign of whole areas before a
        # ReLU: float32 gradients are a percent off, in one process too. With small steps the
        # losses of all batches can still be compared to rounding.
        "optimizer={name: sgd, lr: 5.0e-5, lr_scaling: none, warmup_epochs: 0}",
        "evaluation.every_epochs=1",
    ]
