"""Checkpoints: complete or absent, and what is damaged is passed over by everyone alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from raycl.errors import RayclError
from raycl.train import checkpoint


def _save(run: Path, step: int, keep: int = 9) -> Path:
    state = {"method": {"weight": torch.full((3,), float(step))}, "loop": {"step": step}}
    return checkpoint.save(run, step, state, (step // 10, step % 10), keep=keep)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = _save(tmp_path, 12)
    assert checkpoint.newest(tmp_path) == folder
    assert checkpoint.cursor(folder) == (1, 2)
    state = checkpoint.load(folder, 0)
    assert state["loop"]["step"] == 12
    assert torch.equal(state["method"]["weight"], torch.full((3,), 12.0))
    # A rank that did not exist when it was saved gets what everyone has.
    assert checkpoint.load(folder, 5)["loop"] == {"step": 12}


def test_without_complete_it_does_not_exist(tmp_path: Path) -> None:
    older, newer = _save(tmp_path, 10), _save(tmp_path, 20)
    (newer / "COMPLETE").unlink()
    assert checkpoint.newest(tmp_path) == older


@pytest.mark.parametrize("file", ["rank-0.pt", "manifest-0.json", "COMPLETE"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_newest_is_passed_over(tmp_path: Path, file: str, damage: str) -> None:
    older, newer = _save(tmp_path, 10), _save(tmp_path, 20)
    path = newer / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content if damage == "flip" else content[:-9])
    if damage == "lose":
        path.unlink()
    assert checkpoint.newest(tmp_path) == older


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        _save(tmp_path, step, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0000000030", "step-0000000040"]


def test_complete_names_the_world_and_all_manifests(tmp_path: Path) -> None:
    run = tmp_path
    # Two ranks in turns: rank 1 writes its part, then rank 0 writes the rest and COMPLETE.
    state = {"method": {}}
    checkpoint.save(run, 5, state, (0, 5), rank=1, world=2)
    assert checkpoint.newest(run) is None
    folder = checkpoint.save(run, 5, state, (0, 5), rank=0, world=2)
    complete = json.loads((folder / "COMPLETE").read_text())
    assert complete["world_size"] == 2
    assert set(complete["manifests"]) == {"manifest-0.json", "manifest-1.json"}
    assert checkpoint.newest(run) == folder
    (folder / "rank-1.pt").unlink()
    assert checkpoint.newest(run) is None


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.cursor(None) == (0, 0)
    with pytest.raises(RayclError, match="no complete checkpoint"):
        checkpoint.require(tmp_path)
    _save(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    assert checkpoint.newest(tmp_path) is None
