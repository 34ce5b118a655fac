"""Checkpoints: complete or absent, and what is damaged is passed over by everyone alike."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raycl.data import storage
from raycl.data.folder import Folder
from raycl.errors import RayclError
from raycl.sections import Checkpoint
from raycl.train import checkpoint
from raycl.train.checkpoint import TRIES, Writer
from raycl.train.mirror import Mirror
from tests.data.conftest import SECRET, Bucket


def state_of(step: int) -> dict[str, Any]:
    return {"method": {"weight": torch.full((3,), float(step))}, "loop": {"step": step}}


def saved(run: Path | str, step: int, keep: int = 9, **others: Any) -> Folder:
    """A checkpoint of one rank."""
    place = Folder(str(run)) / "checkpoints"
    writer = Writer(place, Checkpoint(keep=keep))
    writer.save(step, state_of(step), (step // 10, step % 10), **others)
    writer.wait(must=True)
    assert writer.newest is not None
    return writer.newest


def newest(run: Path) -> Folder | None:
    return checkpoint.newest(checkpoint.folder(run))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = saved(tmp_path, 12)
    assert newest(tmp_path) == folder
    assert checkpoint.cursor(folder) == (1, 2)
    state = checkpoint.load(folder)
    assert state["loop"]["step"] == 12
    assert torch.equal(state["method"]["weight"], torch.full((3,), 12.0))
    # A rank that did not exist when it was saved gets what everyone has.
    assert checkpoint.load(folder, 5)["loop"] == {"step": 12}


def test_what_trains_on_meanwhile_is_not_in_it(tmp_path: Path) -> None:
    writer = Writer(checkpoint.folder(tmp_path), Checkpoint())
    weight = torch.zeros(1_000_000)
    writer.save(3, {"method": {"weight": weight}}, (0, 3))
    weight += 1
    writer.wait(must=True)
    found = newest(tmp_path)
    assert found is not None
    assert not checkpoint.load(found)["method"]["weight"].any()


def test_the_layout_can_be_read_without_raycl(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path, 7, encoder={"conv.weight": torch.ones(2)}).where)
    part = torch.load(folder / "rank-0.pt", weights_only=True)
    assert part["method"]["weight"].tolist() == [7.0] * 3
    assert load_file(folder / "encoder.safetensors")["conv.weight"].tolist() == [1.0, 1.0]


def test_without_complete_it_does_not_exist(tmp_path: Path) -> None:
    older, newer = saved(tmp_path, 10), saved(tmp_path, 20)
    newer.remove("COMPLETE")
    assert newest(tmp_path) == older


@pytest.mark.parametrize("file", ["rank-0.pt", "manifest-0.json", "COMPLETE"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_newest_is_passed_over(tmp_path: Path, file: str, damage: str) -> None:
    older, newer = saved(tmp_path, 10), saved(tmp_path, 20)
    content = bytearray(newer.read(file))
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    newer.write(file, content if damage == "flip" else content[:-9])
    if damage == "lose":
        newer.remove(file)
    assert newest(tmp_path) == older
    saved(tmp_path, 30, keep=1)  # and it hinders no later one
    assert (checkpoint.folder(tmp_path)).names() == ["step-0000000030"]


def test_only_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    settings = Checkpoint.model_validate({"keep": 1, "best": {"metric": "knn", "mode": "max"}})
    writer = Writer(checkpoint.folder(tmp_path), settings)
    for step, knn in ((10, 0.5), (20, 0.7), (30, 0.6), (40, float("nan"))):
        writer.save(step, state_of(step), (0, step), metrics={"knn": knn, "loss": 1.0})
    writer.wait(must=True)
    place = checkpoint.folder(tmp_path)
    assert place.names() == ["step-0000000020", "step-0000000040"]
    best = checkpoint.best(place, "knn", "max")
    assert best is not None and best.name == "step-0000000020"
    lowest = checkpoint.best(place, "loss", "min")
    assert lowest is not None and lowest.name == "step-0000000040"  # of equals the newest
    assert checkpoint.best(place, "accuracy", "max") is None


def test_the_ranks_share_the_tensors_out(tmp_path: Path) -> None:
    """Three ranks at once; each tensor lies in one file, and together they are the whole."""
    generator = torch.Generator().manual_seed(0)
    method = {f"layer{i}": torch.randn(50 + i, generator=generator) for i in range(8)}
    moments = {i: {"exp_avg": value + 1} for i, value in enumerate(method.values())}
    adam = {"state": moments, "param_groups": [{"lr": 0.1, "params": list(moments)}]}
    place = checkpoint.folder(tmp_path)
    writers = [Writer(place, Checkpoint(), rank, 3) for rank in range(3)]
    for rank, writer in enumerate(writers):
        state = {"method": method, "optimizers": {"main": adam}, "observers": {"rank": rank}}
        loop: dict[str, Any] = {} if rank else {"loop": {"step": 5}}
        writer.save(5, state | loop, (0, 5), token=99)
    for writer in writers:
        assert writer.wait(must=True)
    found = checkpoint.newest(place)
    assert found is not None
    assert json.loads(found.read("COMPLETE"))["world_size"] == 3
    sizes = [len(found.read(f"rank-{rank}.pt")) for rank in range(3)]
    assert max(sizes) < 0.5 * sum(sizes)
    for rank in (0, 2, 4):
        state = checkpoint.load(found, rank)
        assert state["loop"] == {"step": 5}
        assert state["observers"] == {"rank": rank if rank < 3 else 0}
        assert state["method"].keys() == method.keys()
        assert all(torch.equal(state["method"][name], value) for name, value in method.items())
        assert state["optimizers"]["main"]["param_groups"] == adam["param_groups"]
        for i, moment in moments.items():
            exp_avg = state["optimizers"]["main"]["state"][i]["exp_avg"]
            assert torch.equal(exp_avg, moment["exp_avg"])


def test_a_manifest_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    place = checkpoint.folder(tmp_path)
    (place / "step-0000000005").write("manifest-1.json", b'{"tok')
    writers = [Writer(place, Checkpoint(), rank, 2) for rank in range(2)]
    writers[0].save(5, state_of(5), (0, 5), token=1)
    time.sleep(0.5)
    assert checkpoint.newest(place) is None
    writers[1].save(5, state_of(5), (0, 5), token=1)
    for writer in writers:
        writer.wait(must=True)
    assert checkpoint.newest(place) is not None


def test_parts_of_an_attempt_before_are_no_parts_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PEERS", 0.5)
    place = checkpoint.folder(tmp_path)
    writers = [Writer(place, Checkpoint(), rank, 2) for rank in range(2)]
    writers[1].save(5, state_of(5), (0, 5), token=1)
    writers[1].wait(must=True)
    writers[0].save(5, state_of(5), (0, 5), token=2)
    with pytest.raises(RayclError, match="1 of 2 ranks have not written their part"):
        writers[0].wait(must=True)
    assert checkpoint.newest(place) is None


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert checkpoint.cursor(None) == (0, 0)
    with pytest.raises(RayclError, match="no complete checkpoint"):
        checkpoint.require(tmp_path)
    saved(tmp_path, 1).clear()
    assert newest(tmp_path) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one MiB."""
    target = tmp_path / "small"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(target)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of a given size needs the right to mount")
    yield target
    subprocess.run(["umount", str(target)], check=True)


def test_a_full_disk_costs_a_checkpoint_and_no_more(small_disk: Path) -> None:
    """Told, tried again, and fatal only when it does not help; the older one stays whole."""
    notes: list[str] = []
    place = checkpoint.folder(small_disk)
    writer = Writer(place, Checkpoint(keep=9), warn=notes.append)
    writer.save(10, {"method": {"weight": torch.zeros(50_000)}}, (1, 0))
    writer.wait(must=True)
    full = {"method": {"weight": torch.zeros(300_000)}}
    for step in range(20, 20 + TRIES - 1):
        writer.save(step, full, (2, 0))
        writer.wait()
    assert len(notes) == TRIES - 1 and "No space left on device" in notes[0]
    found = checkpoint.newest(place)
    assert found is not None and found.name == "step-0000000010"
    writer.save(30, {"method": {"weight": torch.zeros(10)}}, (3, 0))  # there is room for this
    writer.wait(must=True)
    for step in range(40, 40 + TRIES - 1):
        writer.save(step, full, (4, 0))
        writer.wait()
    writer.save(50, full, (5, 0))
    with pytest.raises(RayclError, match=r"No space left.*newest is step-0000000030; make room"):
        writer.wait()


def test_a_full_disk_is_cleared_of_what_is_half_written(small_disk: Path) -> None:
    place = checkpoint.folder(small_disk)
    writer = Writer(place, Checkpoint(keep=1), warn=lambda text: None)
    for step, size in ((10, 50_000), (20, 300_000), (30, 50_000)):
        writer.save(step, {"method": {"weight": torch.zeros(size)}}, (step, 0))
        writer.wait()
    assert place.names() == ["step-0000000030"]


def test_object_storage(bucket: Bucket, tmp_path: Path) -> None:
    """Written, listed, loaded and retired on a real S3 server."""
    bucket.put("run/.keep", b"")
    uri = bucket.uri("run")
    for step in (10, 20, 30):
        saved(uri, step, keep=2)
    place = checkpoint.folder(tmp_path, uri)
    assert place.names() == ["step-0000000020", "step-0000000030"]
    found = checkpoint.newest(place)
    assert found is not None and checkpoint.load(found)["loop"]["step"] == 30
    found.write("rank-0.pt", found.read("rank-0.pt")[:-1])
    older = checkpoint.newest(place)
    assert older is not None and older.name == "step-0000000020"
    assert checkpoint.newest(checkpoint.folder(tmp_path, bucket.uri("nothing"))) is None


def test_storage_that_is_gone_for_a_while_is_waited_for(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("run/.keep", b"")
    saved(bucket.uri("run"), 10)
    bucket.proxy.always = "500"
    threading.Timer(3, lambda: setattr(bucket.proxy, "always", "")).start()
    saved(bucket.uri("run"), 20)
    found = checkpoint.newest(checkpoint.folder(tmp_path, bucket.uri("run")))
    assert found is not None and found.name == "step-0000000020"


def test_storage_that_stays_gone_is_given_up(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 2.0)
    folder = Folder(bucket.uri("run"))
    bucket.proxy.always = "500"
    begin = time.monotonic()
    with pytest.raises(RayclError, match=r"s3://.*/run/COMPLETE: cannot be reached"):
        folder.write("COMPLETE", b"")
    assert 2 <= time.monotonic() - begin < 60


def test_storage_that_refuses_is_told(bucket: Bucket) -> None:
    bucket.put("run/.keep", b"")
    notes: list[str] = []
    writer = Writer(Folder(bucket.uri("run")), Checkpoint(), warn=notes.append)
    bucket.proxy.always = "expired"
    writer.save(10, state_of(10), (1, 0))
    writer.wait()
    assert len(notes) == 1 and "have expired" in notes[0] and "training goes on" in notes[0]
    assert SECRET not in notes[0]


def test_the_files_of_a_run_travel(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("run/metrics.jsonl", b"")
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "tensorboard").mkdir(parents=True)
    (here / "checkpoints").mkdir()
    (here / "checkpoints" / "own.txt").write_text("not this")
    (here / "metrics.jsonl").write_text("1\n")
    (here / "tensorboard" / "events.1").write_bytes(b"\0\1")
    mirror = Mirror(here, bucket.uri("run"))
    mirror.push()
    with (here / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    before = len(bucket.proxy.requests)
    mirror.push()
    puts = [path for method, path, _ in bucket.proxy.requests[before:] if method == "PUT"]
    assert len(puts) == 1 and "metrics.jsonl" in puts[0]  # what has not changed stays
    Mirror(there, bucket.uri("run")).pull()
    assert (there / "metrics.jsonl").read_text() == "1\n2\n"
    assert (there / "tensorboard" / "events.1").read_bytes() == b"\0\1"
    assert sorted(path.name for path in there.iterdir()) == ["metrics.jsonl", "tensorboard"]
