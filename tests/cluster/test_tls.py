"""A cluster whose connections are encrypted: README, "On a cluster", Security."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.conftest import free_port, head

CONNECT = "import ray; ray.init(logging_level='ERROR'); print(len(ray.nodes()))"


@pytest.fixture(scope="module")
def encrypted() -> Iterator[dict[str, str]]:
    """Of a driver on a head with a certificate of one's own, which is its own authority."""
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        address = ray.util.get_node_ip_address()  # Ray never uses 127.0.0.1 where there is another
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
             "-keyout", key, "-out", certificate, "-subj", "/CN=raycl",
             "-addext", f"subjectAltName=IP:{address},IP:127.0.0.1"],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        tls = {
            "RAY_USE_TLS": "1", "RAY_TLS_SERVER_KEY": key, "RAY_TLS_SERVER_CERT": certificate,
            "RAY_TLS_CA_CERT": certificate,
        }  # fmt: skip
        port = free_port()
        options = ("--num-cpus=2", "--include-dashboard=false", "--object-store-memory=200000000")
        with head(folder, port, *options, **tls):
            yield os.environ | tls | {"RAY_ADDRESS": f"{address}:{port}"}


def test_a_run_of_two_workers_on_an_encrypted_cluster(
    encrypted: dict[str, str], tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "raycl", "pretrain", "simclr/digits", *tiny]
    done = subprocess.run(
        [*command, "trainer.workers=2", "trainer.stop.epochs=1", "--run", str(run)],
        env=encrypted, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (run / "encoder.safetensors").is_file()


def test_who_speaks_in_the_clear_does_not_get_in(encrypted: dict[str, str]) -> None:
    """Though it has the token. With TLS the same driver is in after seconds."""

    def connect(environment: dict[str, str], seconds: float) -> str:
        try:
            done = subprocess.run(
                [sys.executable, "-c", CONNECT],
                env=environment, capture_output=True, text=True, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.strip()

    assert connect(encrypted, 60) == "1"
    assert connect(encrypted | {"RAY_USE_TLS": "0"}, 25) == ""
