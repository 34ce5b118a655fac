"""Runs from end to end: in this process, on Ray, interrupted, resumed, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.train import checkpoint
from raycl.train.run import entries_of
from raycl.train.trainer import pretrain, through_ray
from tests.conftest import Cluster
from tests.data.conftest import Bucket
from tests.data.test_loader import damage

Lines = list[dict[str, Any]]


def metrics(run: Path) -> Lines:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def series(run: Path, name: str) -> list[float]:
    return [line[name] for line in metrics(run) if name in line]


def test_a_run_holds_what_it_should(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "checkpoints", "tensorboard"} <= names
    assert {"encoder.safetensors", "views.png"} <= names
    assert [line["step"] for line in metrics(whole) if "images_per_second" in line] == [2, 4, 6, 8]
    last = {key: value for line in metrics(whole) for key, value in line.items()}
    assert {"loss", "lr", "knn", "rank_me", "embedding_std", "wait_share"} <= set(last)
    assert last["epoch"] == 2.0 and 0.1 < last["knn"] <= 1
    encoder = load(whole).build().encoder
    encoder.load_state_dict(load_file(whole / "encoder.safetensors"))


def test_tensorboard_has_scalars_and_pictures(whole: Path) -> None:
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert {"loss", "knn", "lr"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]
    assert events.Tags()["images"] == ["views"]


def test_two_ray_workers_are_one_worker(whole: Path, by_two: tuple[Path, Lines]) -> None:
    """Same recipe and seed: the same losses, learning curve and weights on any number of ranks."""
    run, heard = by_two
    assert series(run, "loss") == pytest.approx(series(whole, "loss"), rel=1e-5)
    assert series(run, "knn") == pytest.approx(series(whole, "knn"), abs=0.03)
    one, two = (load_file(r / "encoder.safetensors") for r in (whole, run))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    assert heard == metrics(run)
    newest = checkpoint.require(run)
    assert json.loads(newest.read("COMPLETE"))["world_size"] == 2
    assert {"rank-0.pt", "rank-1.pt", "encoder.safetensors"} <= set(newest.names())


@pytest.mark.parametrize(
    ("change", "alone", "joined"),
    [
        ("data.read_on=null", False, True),
        ("data.read_on=worker", False, False),
        ("data.read_on=cluster", True, True),
        ("data.decode_on=cluster", True, True),
        ("data.engine=ffcv", False, False),
    ],
)
def test_workers_of_a_machine_alone_read_for_themselves(
    change: str, alone: bool, joined: bool
) -> None:
    recipe = load("simclr/digits", [change])
    assert (through_ray(recipe, local=True), through_ray(recipe, local=False)) == (alone, joined)


def test_a_ray_run_resumes_on_other_workers(cluster: Cluster, whole: Path, tiny: list[str]) -> None:
    """Stopped after the first epoch by one worker here, finished by two on Ray."""
    run = whole.parent / "moved"
    recipe = load("simclr/digits", [*tiny, "trainer.workers=1"])
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("tensorboard"))
    checkpoint.require(run).clear()  # the last one: what is left is the first epoch's
    assert checkpoint.cursor(checkpoint.require(run)) == (1, 0)
    trainer = recipe.trainer.model_copy(update={"workers": 2})
    pretrain(recipe.model_copy(update={"trainer": trainer}), run)
    steps = [line["step"] for line in metrics(run) if "images_per_second" in line]
    assert steps == [2, 4, 6, 8]
    assert series(run, "loss") == pytest.approx(series(whole, "loss"), rel=1e-5)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from raycl.cli import main; main()", *arguments]


def test_ctrl_c_and_resume(tiny: list[str], tmp_path: Path) -> None:
    """A real process, a real signal: the resumed run ends with the very same weights."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    # Long enough that the signal comes before the end.
    changes = [*tiny, "trainer.workers=1", "optimizer.lr=0.05", "trainer.stop.epochs=8"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    how: dict[str, Any] = {"env": environment, "text": True, "stderr": subprocess.PIPE}
    first = subprocess.Popen(
        command("pretrain", "simclr/digits", *changes, "--run", str(whole)), **how
    )
    _, errors = first.communicate(timeout=200)
    assert first.returncode == 0, errors

    second = subprocess.Popen(
        command("pretrain", "simclr/digits", *changes, "--run", str(run)), **how
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 130, errors
    assert f"raycl pretrain --resume {run}" in errors
    assert not (run / "encoder.safetensors").exists()
    subprocess.run(
        command("pretrain", "--resume", str(run)), check=True, timeout=300, env=environment
    )
    one, two = (load_file(r / "encoder.safetensors") for r in (whole, run))
    for name, value in one.items():
        assert torch.equal(two[name], value), name
    assert series(run, "loss") == series(whole, "loss")


def test_a_finished_run_stays_as_it_is(whole: Path) -> None:
    before = metrics(whole)
    pretrain(load(whole), whole)
    assert metrics(whole) == before


def test_a_run_goes_on_from_its_storage_on_another_machine(
    whole: Path, tiny: list[str], tmp_path: Path, bucket: Bucket
) -> None:
    """Its directory is lost and so is its newest checkpoint; the bucket has all that it takes."""
    bucket.put("run/.keep", b"")
    changes = [*tiny, "trainer.workers=1", f"trainer.storage={bucket.uri('run')}"]
    here, there = tmp_path / "here", tmp_path / "there"
    pretrain(load("simclr/digits", changes), here)
    assert not (here / "checkpoints").exists()
    checkpoint.require(here, bucket.uri("run")).clear()
    shutil.rmtree(here)
    pretrain(load("simclr/digits", changes), there)
    assert series(there, "loss") == series(whole, "loss")
    assert [line["step"] for line in metrics(there)] == [line["step"] for line in metrics(whole)]
    one, two = (load_file(r / "encoder.safetensors") for r in (whole, there))
    assert all(torch.equal(two[name], value) for name, value in one.items())
    assert (there / "views.png").exists()  # drawn at the first step, on the other machine


def test_another_recipe_in_the_same_directory_is_refused(whole: Path) -> None:
    with pytest.raises(RayclError, match=r"method\.temperature: 0\.5 there, 0\.2 here"):
        pretrain(load(whole, ["method.temperature=0.2"]), whole)


def test_a_directory_that_is_no_run_is_refused(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RayclError, match="exists and is no run"):
        pretrain(load("simclr/digits", tiny), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=null", r"data\.train: missing"),
        ("data.train=/nowhere/x.beton", r"data\.train: .*there is no such"),
        ("data.limit=7", "7 samples do not fill one global batch of 2 lanes x 64"),
        ("data.indices=/nowhere.npy", r"data\.indices: cannot read /nowhere\.npy"),
        ("views.field=picture", r"has no field 'picture'.*it has: image, label"),
        ("trainer.device=cuda", "cuda"),
        ("data.decode_on=gpu", r"data\.decode_on: gpu was asked for"),
        ("init_from=/nowhere", r"init_from: /nowhere is neither"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tiny: list[str], tmp_path: Path, override: str, message: str
) -> None:
    if override in ("trainer.device=cuda", "data.decode_on=gpu") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = tmp_path / "run"
    with pytest.raises(RayclError, match=message):
        pretrain(load("simclr/digits", [*tiny, "trainer.workers=1", override]), run)
    assert not run.exists()


def test_a_damaged_image_is_named_through_ray(
    cluster: Cluster, digits: Path, tiny: list[str], tmp_path: Path
) -> None:
    from raycl.data.encode import Storage
    from raycl.data.shards import Shards
    from raycl.data.sink import import_dataset

    import_dataset("digits", None, tmp_path / "data", storage=Storage(write_mode="jpg"))
    path = damage(Shards(tmp_path / "data" / "train"), 23)
    overrides = [*tiny, f"data.train={path.parent}", "evaluation.every_epochs=0"]
    with pytest.raises(RayclError, match=rf"{path}, sample 23: "):
        pretrain(load("simclr/digits", overrides), tmp_path / "run")


def test_weights_of_another_run(whole: Path, tiny: list[str], tmp_path: Path) -> None:
    for source in (whole, whole / "encoder.safetensors"):
        changes = [f"init_from={source}", "trainer.workers=1", "optimizer.lr=1e-12"]
        run = pretrain(load("simclr/digits", [*tiny, *changes]), tmp_path / source.name)
        one, two = (load_file(r / "encoder.safetensors") for r in (whole, run))
        torch.testing.assert_close(one["conv1.weight"], two["conv1.weight"], rtol=1e-4, atol=1e-6)
    wrong = [f"init_from={whole}", "trainer.workers=1", "method.encoder.width=16"]
    with pytest.raises(RayclError, match=r"init_from: the weights of .* do not fit"):
        pretrain(load("simclr/digits", [*tiny, *wrong]), tmp_path / "wrong")


def test_fine_tuning_on_a_share_of_the_labels(
    whole: Path, digits: Path, tiny: list[str], tmp_path: Path
) -> None:
    """A classifier begins with another method's encoder, on a fifth of every class."""
    encoder = load(whole).method["encoder"]
    changes = [
        *tiny, f"init_from={whole}", f"method.encoder={encoder}", "data.fraction=0.2",
        "data.limit=null", "trainer={workers: 1, lanes: 1, batch: 50, device: cpu}",
        "optimizer.lr=1e-12", "evaluation.every_epochs=0", "trainer.stop.epochs=1",
    ]  # fmt: skip
    run = pretrain(load("supervised/finetune-imagenet", changes), tmp_path / "run")
    one, two = (load_file(r / "encoder.safetensors") for r in (whole, run))
    torch.testing.assert_close(one["conv1.weight"], two["conv1.weight"], rtol=1e-4, atol=1e-6)
    made = load(run)
    ids = entries_of(made, Shards(digits / "train"))
    labels = Shards(digits / "train").column("label")
    counts = np.bincount(labels[np.asarray(ids)[:, 0]])
    assert (counts == np.ceil(0.2 * np.bincount(labels))).all()
    with pytest.raises(RayclError, match=r"data\.fraction"):
        load("supervised/finetune-imagenet", ["data.fraction=0"])
