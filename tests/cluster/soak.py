"""Thirty random faults over one run: `make soak`. RAYCL_SOAK_SEED repeats a sequence."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Hosts, until
from tests.cluster.test_hosts import Job
from tests.data.servers import Proxy

FAULTS = 30
BETWEEN = 16  # steps from one fault to the next
SMALL = 96  # MiB of the disk that holds the run


class Faults:
    """What can go wrong; each ends by itself, but for what raycl has to mend."""

    def __init__(self, hosts: Hosts, proxy: Proxy, disk: Path, chance: random.Random) -> None:
        self.hosts, self.proxy, self.disk, self.chance = hosts, proxy, disk, chance
        self.all: list[Callable[[], str]] = [
            self.kill, self.pause, self.cut, self.lose, self.fill, self.refuse,
        ]  # fmt: skip

    def _worker(self) -> int:
        """A train worker's process, as soon as there is one."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for host in range(3) for pid in self.hosts.trainers(host)]
            return bool(found)

        until(look, 180, "no train worker anywhere")
        return self.chance.choice(sorted(found))

    def kill(self) -> str:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._worker(), signal.SIGKILL)
        return "a worker is killed"

    def pause(self) -> str:
        seconds, pid = self.chance.uniform(2, 20), self._worker()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
        return f"a worker is stopped for {seconds:.0f} s"

    def cut(self) -> str:
        seconds, host = self.chance.uniform(2, 40), self.chance.choice([1, 2])
        self.hosts.cut(host)
        time.sleep(seconds)
        self.hosts.mend(host)
        time.sleep(5)
        self._back(host)
        return f"host {host + 1} is cut off for {seconds:.0f} s"

    def lose(self) -> str:
        seconds, host = self.chance.uniform(1, 20), self.chance.choice([1, 2])
        self.hosts.kill(host)
        time.sleep(seconds)
        self._back(host)
        return f"host {host + 1} is killed, and back after {seconds:.0f} s"

    def _back(self, host: int) -> None:
        """Ray ends on a host that its head has given up; its keeper starts it again."""
        if not self.hosts.has_ray(host):
            self.hosts.kill(host)
            self.hosts.start(host)

    def fill(self) -> str:
        seconds, path = self.chance.uniform(1, 10), self.disk / "filled"
        with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(seconds)
        path.unlink()
        return f"the disk of the run is full for {seconds:.0f} s"

    def refuse(self) -> str:
        seconds = self.chance.uniform(2, 60)
        self.proxy.always = "500"
        time.sleep(seconds)
        self.proxy.always = ""
        return f"the bucket of the data answers nothing but 500 for {seconds:.0f} s"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "disk"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}m", "tmpfs", str(target)]
    subprocess.run(mount, check=True)
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


@pytest.fixture
def bucket(idle_hosts: Hosts, digits: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Digits in a bucket that the hosts reach, behind a proxy that can refuse."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = server.get_host_and_port()
    with Proxy(address, f"{idle_hosts.network}.254").running() as proxy:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": proxy.url,
        }.items():
            monkeypatch.setenv(name, value)
        s3 = fs.S3FileSystem(endpoint_override=proxy.url, allow_bucket_creation=True)
        s3.create_dir("soak")
        fs.copy_files(str(digits), "soak", destination_filesystem=s3)
        yield proxy
    server.stop()


@pytest.mark.timeout(3600)
def test_thirty_faults(
    bucket: Proxy, disk: Path, idle_hosts: Hosts, tiny: list[str], tmp_path: Path
) -> None:
    seed = int(os.environ.get("RAYCL_SOAK_SEED") or random.randrange(1_000_000))
    print(f"\nseed {seed}", flush=True)
    chance, hosts = random.Random(seed), idle_hosts
    hosts.up()
    faults = Faults(hosts, bucket, disk, chance)
    epochs = FAULTS * BETWEEN // 4 + 4
    job = Job(
        tmp_path, tiny, f"trainer.stop.epochs={epochs}", "data.train=s3://soak/train",
        "data.test=s3://soak/test", "data.cache_gb=0", "method.pause=0.1", run=disk / "run",
    )  # fmt: skip
    begin = time.monotonic()
    job.start(hosts)
    for number in range(FAULTS):
        job.reaches((number + 1) * BETWEEN, 600)
        at = job.step
        what = chance.choice(faults.all)()
        print(f"{time.monotonic() - begin:6.0f} s, step {at}: {what}", flush=True)
    job.check(hosts)
    print(f"{FAULTS} faults, {epochs * 4} steps, nothing lost; "
          f"{time.monotonic() - begin:.0f} s in all", flush=True)  # fmt: skip
