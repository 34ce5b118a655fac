"""From the recipe's `data` section to the order of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycl.data.plan import Plan
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.train.run import plan_of


def planned(tmp_path: Path, *overrides: str) -> Plan:
    return plan_of(
        load("simclr/digits", ["trainer.lanes=2", "trainer.batch=16", *overrides]), tmp_path
    )


def ids(plan: Plan, epochs: int = 1) -> np.ndarray:
    return np.concatenate([plan.first.order.plan(epoch).ravel() for epoch in range(epochs)])


def test_pages_hand_out_every_sample_once(digits: Path, tmp_path: Path) -> None:
    train = f"data.train={digits / 'train'}"
    found = ids(planned(tmp_path, train, "data.order=pages", "data.window=2"))
    assert len(set(found)) == len(found) == len(Shards(digits / "train")) // 32 * 32


def test_pages_of_a_subset(digits: Path, tmp_path: Path) -> None:
    chosen = np.random.default_rng(0).permutation(1400)[:320]
    np.save(tmp_path / "chosen.npy", chosen)
    train = [f"data.train={digits / 'train'}", f"data.indices={tmp_path / 'chosen.npy'}"]
    found = ids(planned(tmp_path, *train, "data.order=pages", "data.window=1"))
    assert sorted(found) == sorted(chosen)


def test_classes_are_balanced_by_a_field(digits: Path, tmp_path: Path) -> None:
    labels = Shards(digits / "train").column("label")
    skewed = np.concatenate([np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)[:10]])
    np.save(tmp_path / "skewed.npy", skewed)
    train = [f"data.train={digits / 'train'}", f"data.indices={tmp_path / 'skewed.npy'}"]
    found = labels[ids(planned(tmp_path, *train, "data.balance=label"), epochs=4)]
    assert np.bincount(found) / len(found) == pytest.approx(np.full(10, 0.1), abs=0.02)


def test_a_mixture_meets_its_shares_in_every_batch(digits: Path, tmp_path: Path) -> None:
    parts = [
        f"data.train.many.path={digits / 'train'}",
        f"data.train.few.path={digits / 'test'}",
        "data.train.few.share=3",
    ]
    plan = planned(tmp_path, *parts)
    border = len(Shards(digits / "train"))
    for step in plan.first.order.plan(0):
        assert (step >= border).mean() == 0.75


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.balance=colour", r"data\.balance: .* has no field 'colour'"),
        ("data.weights={folder}/short.npy", r"data\.weights: 512 numbers are needed"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    digits: Path, tmp_path: Path, override: str, message: str
) -> None:
    np.save(tmp_path / "short.npy", np.ones(3))
    overrides = [f"data.train={digits / 'train'}", "data.limit=512"]
    with pytest.raises(RayclError, match=message):
        planned(tmp_path, *overrides, override.format(folder=tmp_path))
