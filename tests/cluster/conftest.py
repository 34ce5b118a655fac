"""Hosts of a real Ray cluster on this machine: network namespaces with addresses of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

NETWORK = "10.77.{}"
RAY = str(Path(sys.executable).with_name("ray"))
# A host that answers no more is given up after some 15 s; Ray's defaults take over a minute.
HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
numbers = itertools.count(os.getpid() % 200)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


class Hosts:
    """Three hosts by default, each with one CPU; the first is the head."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        number = next(numbers)
        self.names = [f"rc{number}n{i}" for i in range(1, count + 1)]
        self.bridge, self.network = f"rc{number}b", NETWORK.format(number)
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.network}.254/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for i, name in enumerate(self.names, 1):
            ip("netns", "add", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}v", "master", self.bridge, "up")
            ip("-n", name, "addr", "add", f"{self.network}.{i}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")

    def up(self, count: int = 3) -> None:
        """Starts Ray on so many hosts, the head among them."""
        self.start(0)  # the others look for it
        until(lambda: self.is_up(0), 60, "no Ray on the head")
        for host in range(1, count):
            self.start(host)
        until(lambda: all(map(self.is_up, range(count))), 60, "no Ray on some host")

    @property
    def dashboard(self) -> str:
        return f"http://{self.network}.1:8265"

    def start(self, host: int) -> None:
        """Starts Ray on a host."""
        role = [f"--address={self.network}.1:6379"]
        if host == 0:
            role = ["--head", "--port=6379", f"--dashboard-host={self.network}.1",
                    f"--temp-dir={self.folder / 'ray'}"]  # fmt: skip
        ray = [
            RAY, "start", "--block", *role, f"--node-ip-address={self.network}.{host + 1}",
            "--num-cpus=1", "--num-gpus=0", "--object-store-memory=200000000",
            "--disable-usage-stats",
        ]  # fmt: skip
        # Ray's own files under one path on every host, and of each host alone.
        own, common = self.folder / self.names[host], self.folder / "ray"
        own.mkdir(exist_ok=True)
        common.mkdir(exist_ok=True)
        here = f"mount --bind {own} {common} && exec {shlex.join(ray)}"
        with (self.folder / f"{self.names[host]}.log").open("wb") as log:
            started = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], "sh", "-c", here],
                stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | HEALTH,
            )  # fmt: skip
        self.processes.append(started)

    def is_up(self, host: int) -> bool:
        return "block forever" in (self.folder / f"{self.names[host]}.log").read_text()

    def job(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray job ...` from outside of the cluster."""
        return subprocess.run(
            [RAY, "job", arguments[0], "--address", self.dashboard, *arguments[1:]],
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    def pids(self, host: int) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.names[host]).split()]

    def trainers(self, host: int) -> list[int]:
        """Processes of train workers on a host."""
        found = []
        for pid in self.pids(host):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                if title.startswith(b"ray::RayTrainWorker"):
                    found.append(pid)
        return found

    def cut(self, host: int) -> None:
        """Takes the host's link down: nothing in it dies, and nobody hears of it again."""
        ip("link", "set", f"{self.names[host]}v", "down")

    def mend(self, host: int) -> None:
        ip("link", "set", f"{self.names[host]}v", "up")

    def mount(self, host: int, folder: Path, over: Path) -> None:
        """Shows another folder in the place of one, to what runs on the host."""
        raylet = next(pid for pid in self.pids(host) if _is_raylet(pid))
        done = subprocess.run(
            ["nsenter", "-t", str(raylet), "-m", "mount", "--bind", str(folder), str(over)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def has_ray(self, host: int) -> bool:
        """Whether the host's raylet runs."""
        return any(map(_is_raylet, self.pids(host)))

    def kill(self, host: int) -> None:
        """Ends everything that runs on the host."""
        for pid in self.pids(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def drain(self, host: int, seconds: int = 60) -> None:
        """What a cloud's notice of preemption becomes: the node is to go in so many seconds."""
        ask = f"""
from ray._raylet import GcsClient
for node in GcsClient(address="{self.network}.1:6379").get_all_node_info().values():
    if node.state == 0 and node.node_manager_address == "{self.network}.{host + 1}":
        print(node.node_id.hex())
"""
        found = self.inside(0, [sys.executable, "-c", ask]).split()
        assert len(found) == 1, found
        self.inside(
            0,
            [
                RAY, "drain-node", f"--address={self.network}.1:6379", f"--node-id={found[0]}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
                f"--deadline-remaining-seconds={seconds}",
            ],
        )  # fmt: skip

    def inside(self, host: int, command: list[str]) -> str:
        """Runs a command on a host; returns what it prints."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.names[host], *command],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        for host, name in enumerate(self.names):
            self.kill(host)
            ip("netns", "del", name)
        ip("link", "del", self.bridge)
        for process in self.processes:
            process.wait(30)


def _is_raylet(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.fixture
def idle_hosts() -> Iterator[Hosts]:
    """Hosts on which no Ray runs yet."""
    if os.geteuid() or not shutil.which("ip"):
        if os.environ.get("RAYCL_NEEDS_HOSTS"):
            pytest.fail("hosts are network namespaces: this run needs root and iproute2")
        pytest.skip("hosts are network namespaces: root and iproute2 are needed")
    with tempfile.TemporaryDirectory(
        prefix="rc-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        cluster = Hosts(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def hosts(idle_hosts: Hosts) -> Hosts:
    idle_hosts.up()
    return idle_hosts


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s: {what}"
        time.sleep(0.1)
