"""Sweeps whose storage goes away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from raycl.recipe import Recipe
from raycl.sweep import read, settings_of, trials
from raycl.train import checkpoint
from tests.conftest import ROOT
from tests.data.conftest import Bucket, bucket, s3_server

__all__ = ["bucket", "s3_server"]


def test_a_sweep_outlives_its_storage(toy: Recipe, bucket: Bucket, tmp_path: Path) -> None:
    """For a minute every request to it fails, from the first measurement on."""
    bucket.put("sweep/.keep", b"")
    place, recipe = tmp_path / "sweep", tmp_path / "recipe.yaml"
    content = toy.model_dump(mode="json", exclude_unset=True)
    content["trainer"] |= {"storage": bucket.uri("sweep"), "stop": {"epochs": 4}}
    content["tune"] |= {
        "samples": 4,
        "repeats": {"seeds": 0},
        "search": {"method.temperature": {"loguniform": [0.05, 1.0]}},
    }
    recipe.write_text(yaml.safe_dump(content))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen(
        [Path(sys.executable).with_name("raycl"), "tune", recipe, "--sweep", place],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not any(event["event"] == "result" for event in read(place)):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.1)
    bucket.proxy.always = "500"
    time.sleep(60)
    bucket.proxy.always = ""
    _, told = driver.communicate(timeout=400)
    assert driver.returncode == 0, told
    rows = trials(read(place), settings_of(place), "search")
    assert [(row.how, row.epochs) for row in rows] == [("finished", 4)] * 4
    for row in rows:
        kept = checkpoint.newest(checkpoint.folder(place, bucket.uri(f"sweep/trials/{row.run}")))
        assert kept is not None and kept.name == "step-0000000016"
