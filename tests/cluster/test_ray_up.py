"""cluster/onprem.yaml, launched by its user's `ray up` on three hosts of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl.sweep import read, settings_of, trials
from tests.cluster.conftest import until
from tests.cluster.machines import Machines, missing
from tests.conftest import ROOT

HEAD, *WORKERS = HOSTS = range(3)
USER = 3  # whose computer is none of the cluster
DASHBOARD = "http://127.0.0.1:8265"  # the user's end of the tunnel


@dataclass(frozen=True)
class Cluster:
    """What `ray up` made of a file."""

    machines: Machines
    file: Path

    def ray(self, *arguments: str | Path, seconds: float = 120, **environment: str) -> str:
        """What the user's command prints; it may not fail."""
        done = self.machines.run(USER, "ray", *arguments, seconds=seconds, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def nodes(self) -> list[dict[str, Any]]:
        told = self.ray("list", "nodes", "--address", DASHBOARD, "--detail", "--format", "json")
        return [node for node in json.loads(told) if node["state"] == "ALIVE"]

    def worked(self, host: int) -> set[str]:
        """Tasks and actors that have run on a host, by the first line that they print."""
        logs = "/tmp/ray/session_latest/logs"
        found = self.machines.run(host, "grep", "-rhoE", "^:(task|actor)_name:.*", logs)
        return {line.rpartition(":")[2] for line in found.stdout.splitlines()}


def written(machines: Machines) -> Path:
    """The file, with what it says is to be changed, and what three hosts on one machine need."""

    def swap(text: str, old: str, new: str) -> str:
        assert text.count(old) == 1, text
        return text.replace(old, new)

    config = yaml.safe_load((ROOT / "cluster" / "onprem.yaml").read_text())
    head, *workers = map(machines.address, HOSTS)
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(machines.key)}
    # No network to install from: the environment of these tests, at the place of the hosts' own.
    *install, path, cache = config["setup_commands"]
    assert all("raycl-venv/bin/pip" in command for command in install)
    config["setup_commands"] = [
        f"ln -sfn {sys.prefix} ~/raycl-venv", path, swap(cache, "/var/tmp/raycl", "/tmp/raycl")
    ]  # fmt: skip
    # Three hosts have the memory and the two cores of one.
    for role, store, cores in (("head", "3000000000", ""), ("worker", "16000000000", "1")):
        stop, start = config[f"{role}_start_ray_commands"]
        start = swap(start, f"--object-store-memory={store}", "--object-store-memory=200000000")
        config[f"{role}_start_ray_commands"] = [stop, f"{start} {cores and '--num-cpus=' + cores}"]
    out = machines.folder / "cluster.yaml"
    out.write_text(yaml.safe_dump(config, width=1000))
    return out


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if lack := missing():
        if os.environ.get("RAYCL_NEEDS_HOSTS"):
            pytest.fail(f"hosts to log in to are required, and this machine lacks: {lack}")
        pytest.skip(f"for hosts to log in to this machine lacks: {lack}")
    with tempfile.TemporaryDirectory(
        prefix="rc-", dir="/var/tmp", ignore_cleanup_errors=True
    ) as folder:
        machines = Machines(Path(folder), 4)
        try:
            machines.boot()
            up = Cluster(machines, written(machines))
            begin = time.monotonic()
            up.ray("get-auth-token", "--generate")
            up.ray("up", "-y", up.file, seconds=300)
            print(f"\nhead up after {time.monotonic() - begin:.0f} s")
            until(lambda: all(map(machines.hosts.has_ray, HOSTS)), 200, "Ray is not on all hosts")
            machines.start(USER, "ray", "dashboard", up.file)
            until(lambda: "8265" in machines.run(USER, "ss", "-ltn").stdout, 100, "no tunnel")
            until(lambda: len(up.nodes()) == 3, 200, "there are not three nodes")
            print(f"all hosts up after {time.monotonic() - begin:.0f} s")
            yield up
        finally:
            machines.hosts.close()


@pytest.fixture(scope="module")
def data(cluster: Cluster, digits: Path) -> list[str]:
    """The digits where all hosts see them."""
    place = cluster.machines.folder / "digits"
    shutil.copytree(digits, place)
    return [f"data.train={place / 'train'}", f"data.test={place / 'test'}"]


def test_hosts_are_labelled_and_the_head_has_no_room(cluster: Cluster) -> None:
    found = {node["node_ip"]: node for node in cluster.nodes()}
    address = cluster.machines.address
    tiers = {ip: node["labels"]["tier"] for ip, node in found.items()}
    assert tiers == {address(HEAD): "head", **{address(host): "cpu" for host in WORKERS}}
    cores = {ip: node["resources_total"].get("CPU", 0) for ip, node in found.items()}
    assert cores == {address(HEAD): 0, **{address(host): 1 for host in WORKERS}}


def test_who_has_no_token_is_refused(cluster: Cluster) -> None:
    head, run = cluster.machines.address(HEAD), cluster.machines.run
    refused = run(USER, "ray", "job", "list", "--address", DASHBOARD, RAY_AUTH_MODE="disabled")
    assert refused.returncode and "Missing authentication token" in refused.stderr
    refused = run(USER, "ray", "status", "--address", f"{head}:6379", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode and "InvalidAuthToken" in refused.stderr


def test_the_dashboard_is_the_heads_alone(cluster: Cluster) -> None:
    def reached(host: int, address: str) -> bool:
        connect = f"exec 3<> /dev/tcp/{address}/8265"
        return cluster.machines.run(host, "bash", "-c", connect).returncode == 0

    head = cluster.machines.address(HEAD)
    assert reached(HEAD, "127.0.0.1")
    assert not any(reached(host, head) for host in (*HOSTS, USER))


def test_a_job_trains_on_both_workers(cluster: Cluster, data: list[str], tiny: list[str]) -> None:
    run = cluster.machines.folder / "run"
    changes = [*tiny, *data]
    begin = time.monotonic()
    printed = cluster.ray(
        "job", "submit", "--address", DASHBOARD, "--working-dir", ".", "--", "python",
        "jobs/pretrain.py", "simclr/digits", "--run", run, *changes, "trainer.workers=2",
        seconds=400,
    )  # fmt: skip
    print(f"\njob done after {time.monotonic() - begin:.0f} s")
    assert f"run: {run}" in printed and "succeeded" in printed
    assert (run / "encoder.safetensors").is_file()
    head, *workers = map(cluster.worked, HOSTS)
    assert all("RayTrainWorker" in worked for worked in workers)
    # Data is read and trained on elsewhere; what looks after the job needs no core.
    assert "JobSupervisor" in head and "RayTrainWorker" not in head
    assert not any(name.startswith(("Read", "MapBatches")) for name in head)
    assert any(name.startswith("Read") for name in workers[0] | workers[1])


def test_a_sweep_is_submitted_and_its_page_comes_back(
    cluster: Cluster, data: list[str], tiny: list[str]
) -> None:
    sweep, page = cluster.machines.folder / "sweep", cluster.machines.folder / "page.html"
    begin = time.monotonic()
    done = cluster.machines.run(
        USER, "raycl", "submit", "--report", page, DASHBOARD, "tune", "simclr/cifar10-sweep",
        *tiny, *data, "trainer.stop.epochs=3", "tune.samples=8", "tune.repeats.top=1",
        "tune.repeats.seeds=1", "--sweep", sweep, seconds=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"\nsweep done after {time.monotonic() - begin:.0f} s")
    rows = trials(read(sweep), settings_of(sweep), "search")
    assert len(rows) == 8 and {row.how for row in rows} <= {"finished", "stopped"}
    assert "<svg" in page.read_text()
    assert all("Trial" in " ".join(cluster.worked(host)) for host in WORKERS)


def test_a_stopped_job_has_time_to_save(cluster: Cluster) -> None:
    """Longer than the three seconds that are Ray's default."""
    began, saved = cluster.machines.folder / "began", cluster.machines.folder / "saved"
    save = f"trap 'sleep 5; touch {saved}; exit' TERM; touch {began}; while :; do sleep 1; done"
    job = ("--address", DASHBOARD)
    cluster.ray(
        "job", "submit", *job, "--no-wait", "--submission-id", "slow", "--", "sh", "-c", save
    )
    until(began.exists, 60, "the job does not begin")
    cluster.ray("job", "stop", *job, "slow")
    assert saved.exists()


def test_down_ends_ray_on_the_hosts_and_nowhere_else(cluster: Cluster) -> None:
    machines = cluster.machines

    def rays(host: int) -> list[str]:
        running = machines.run(host, "ps", "-eo", "args").stdout.splitlines()
        assert any("sshd" in line for line in running)
        return [line for line in running if re.search(r"/ray/|^ray::|ray\.util", line)]

    assert all(map(rays, HOSTS))
    # What `ray stop` takes for Ray's by its arguments: on a host of the cluster, and not.
    alike = [sys.executable, "-c", "import time; time.sleep(600)", "log_monitor.py"]
    inside, users = machines.start(HEAD, *alike), machines.start(USER, *alike)
    outside = subprocess.Popen(alike)
    try:
        begin = time.monotonic()
        cluster.ray("down", "-y", cluster.file)
        assert not machines.hosts.has_ray(HEAD)
        print(f"\nray down after {time.monotonic() - begin:.0f} s")
        for host in WORKERS:  # which Ray leaves to themselves, for a minute or more
            machines.run(
                USER, "ssh", "-i", machines.key, "-o", "StrictHostKeyChecking=no",
                machines.address(host), "raycl-venv/bin/ray", "stop", "--force",
            )  # fmt: skip
        print(f"all hosts down after {time.monotonic() - begin:.0f} s")
        until(lambda: not any(map(rays, HOSTS)), 10, "Ray is still there")
        inside.wait(10)
        assert users.poll() is None and outside.poll() is None
    finally:
        outside.kill()
        outside.wait(10)
