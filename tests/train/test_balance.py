"""Classes that occur equally often, also those that a method finds between epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycl.data.folder import Folder
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.train.balance import MethodLabels, evened
from raycl.train.trainer import pretrain
from tests.conftest import Cluster
from tests.train.test_trainer import series


def recipe_of(folder: Path, digits: Path) -> Path:
    path = folder / "rare.yaml"
    path.write_text(
        "method: {name: 'tests.train.toys:Rare'}\n"
        f"data: {{train: {digits / 'train'}, limit: 512, balance: method}}\n"
        "optimizer: {name: sgd, lr: 1.0e-4, lr_scaling: none, warmup_epochs: 0}\n"
        "trainer: {lanes: 2, batch: 64, log_every: 1, stop: {epochs: 2}}\n"
    )
    return path


def test_even_weights() -> None:
    weights = evened(np.array([3, 3, 3, 7]))
    assert weights[:3].sum() == pytest.approx(weights[3])


def test_pseudo_labels_of_the_epoch_decide_on_any_number_of_workers(
    cluster: Cluster, digits: Path, tmp_path: Path
) -> None:
    path = recipe_of(tmp_path, digits)
    one = pretrain(load(path), tmp_path / "one")
    shares = series(one, "rare")
    assert len(shares) == 8 and np.mean(shares) == pytest.approx(0.5, abs=0.05)
    two = pretrain(load(path, ["trainer.workers=2"]), tmp_path / "two")
    assert series(two, "loss") == pytest.approx(series(one, "loss"), rel=1e-5)


def test_a_method_that_balances_needs_the_recipe_to_say_so(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(RayclError, match=r"data\.balance=method"):
        pretrain(load(recipe_of(tmp_path, digits), ["data.balance=null"]), tmp_path / "run")


def test_labels_that_nobody_gave(tmp_path: Path) -> None:
    labels = MethodLabels(Folder(str(tmp_path)), 4)
    with pytest.raises(RayclError, match="no labels for epoch 3"):
        labels(3)
    labels.write(3, np.array([0, 0, 0, 1]))
    assert labels(3).tolist() == pytest.approx([1 / 3] * 3 + [1])
    with pytest.raises(ValueError, match="4 labels are needed"):
        labels.write(3, np.zeros(5))
