"""Shards that Ray Data's tasks write: the same bytes as those of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycl.data.encode import Storage
from raycl.data.reshape import convert
from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from tests.conftest import Cluster

SIX = Storage(shard_samples=6)


def folder(root: Path, count: int) -> Path:
    root.mkdir()
    for i in range(count):
        corners = np.random.default_rng(i).integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(corners).resize((32, 24)).save(root / f"{i}.jpg")
    return root


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_tasks_write_what_one_process_writes(tmp_path: Path, cluster: Cluster) -> None:
    source = folder(tmp_path / "in", 40)
    seen: list[int] = []
    import_dataset("imagefolder", source, tmp_path / "one", storage=SIX)
    (written,) = import_dataset(
        "imagefolder",
        source,
        tmp_path / "two",
        storage=SIX,
        workers=2,
        progress=lambda done, total: seen.append(done),
    )
    assert (written.samples, written.shards) == (40, 7)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert seen[-1] == 40 and seen == sorted(seen)
    raw = Storage(write_mode="raw", shard_samples=15)
    convert([tmp_path / "one"], tmp_path / "three", raw)
    convert([tmp_path / "one"], tmp_path / "four", raw, workers=2)
    assert contents(tmp_path / "four") == contents(tmp_path / "three")


def test_a_damaged_image_ends_it_and_the_rest_goes_on_later(
    tmp_path: Path, cluster: Cluster
) -> None:
    source = folder(tmp_path / "in", 40)
    content = (source / "7.jpg").read_bytes()
    (source / "7.jpg").write_bytes(b"damaged")
    with pytest.raises(RayclError) as error:
        import_dataset("imagefolder", source, tmp_path / "out", storage=SIX, workers=2)
    assert str(error.value).startswith(f"{source / '7.jpg'}: not an image")
    assert "Traceback" not in str(error.value)
    (source / "7.jpg").write_bytes(content)
    import_dataset("imagefolder", source, tmp_path / "out", storage=SIX, workers=2)
    import_dataset("imagefolder", source, tmp_path / "one", storage=SIX)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


# Every shard takes a second, so that a kill comes in the middle of some.
SLOW = """
import sys, time
from raycl.data import fleet, sink
from raycl.data.encode import Storage
from raycl.data.sink import import_dataset
class Slow(fleet.ShardSink):
    def write(self, blocks, ctx):
        time.sleep(1)
        return super().write(blocks, ctx)
fleet.ShardSink = Slow
storage = Storage(shard_samples=6)
import_dataset('imagefolder', sys.argv[1], sys.argv[2], storage=storage, workers=2,
               address=sys.argv[3])
"""


def test_a_killed_driver_is_survived(tmp_path: Path, cluster: Cluster) -> None:
    source = folder(tmp_path / "in", 60)
    place = tmp_path / "out.partial"
    command = [sys.executable, "-c", SLOW, str(source), str(tmp_path / "out"), cluster.address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while len(list(place.glob("*.index"))) < 2:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in place.glob("*.index")}
    before |= {name.removesuffix(".index"): 0 for name in before}
    for name in before:
        before[name] = (place / name).stat().st_mtime_ns
    import_dataset("imagefolder", source, tmp_path / "out", storage=SIX, workers=2)
    import_dataset("imagefolder", source, tmp_path / "one", storage=SIX)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert {n: (tmp_path / "out" / n).stat().st_mtime_ns for n in before} == before
