"""A trial by itself, asked for one result after the other as Ray Tune would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune
from safetensors.torch import load_file

from raycl.recipe import Recipe, load, validate
from raycl.train import checkpoint
from raycl.train.trainer import pretrain
from raycl.tune.space import space_of
from raycl.tune.trial import Sweep, Trial


@contextmanager
def trial(recipe: Recipe, place: Path, **drawn: Any) -> Iterator[Any]:
    sweep = Sweep(space_of(recipe), place, 1.0, 1)
    made: Any = tune.with_parameters(Trial, sweep=sweep)({"method.trouble": 0} | drawn)
    try:
        yield made
    finally:
        made.stop()


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def run_of(place: Path, result: dict[str, Any]) -> Path:
    return place / "trials" / result["run"]


def test_a_trial_is_the_run_of_its_values(toy: Recipe, tmp_path: Path) -> None:
    with trial(toy, tmp_path / "sweep", **{"method.temperature": 1}) as one:
        results = [one.train() for _ in range(3)]
    assert [r["epoch"] for r in results] == [1, 2, 3]
    assert [r["done"] for r in results] == [False, False, True]
    run = run_of(tmp_path / "sweep", results[-1])
    assert load(run).method["temperature"] == 0.5
    again = pretrain(load(run), tmp_path / "alone")
    weights, same = (load_file(place / "encoder.safetensors") for place in (run, again))
    assert all(torch.equal(weights[name], same[name]) for name in same)
    knn = [m["knn"] for m in metrics(again) if "knn" in m]
    assert knn == [r["knn"] for r in results]


def test_nothing_is_trained_that_nobody_asks_for(toy: Recipe, tmp_path: Path) -> None:
    with trial(toy, tmp_path, **{"method.temperature": 0}) as one:
        run = run_of(tmp_path, one.train())
        time.sleep(2)  # three epochs take less
        assert metrics(run)[-1]["epoch"] <= 1.5  # the first logged step after the measurement
    assert not (run / "encoder.safetensors").exists()


def test_weights_travel_to_a_trial_with_other_values(toy: Recipe, tmp_path: Path) -> None:
    """What pbt does: save the donor, reset the other, restore it, go on."""
    with trial(toy, tmp_path, **{"method.temperature": 0}) as donor:
        first = donor.train()
        saved = donor.save(str(tmp_path / "saved"))
        with trial(toy, tmp_path, **{"method.temperature": 1}) as clone:
            clone.train()
            mutated = {"method.temperature": 1, "method.trouble": 0, "optimizer": 0}
            assert clone.reset(mutated)
            clone.restore(saved)
            second = clone.train()
    source, target = run_of(tmp_path, first), run_of(tmp_path, second)
    assert source != target and second["epoch"] == 2
    old, new = (checkpoint.folder(run) for run in (source, target))
    step = f"step-{first['record']['step']:010d}"
    for name in (old / step).names():
        assert (old / step).read(name) == (new / step).read(name)
    # It went on from there, with its own temperature, and began nothing anew.
    assert next(m["epoch"] for m in metrics(target)) > 1
    assert load(target).method["temperature"] == 0.5
    both = [checkpoint.load(checkpoint.newest(p))["method"] for p in (old, new)]  # type: ignore[arg-type]
    assert not torch.equal(both[0]["encoder.1.weight"], both[1]["encoder.1.weight"])


def test_a_lost_trial_goes_on_where_its_run_was(toy: Recipe, tmp_path: Path) -> None:
    """Ray Tune, which has forgotten the first epochs, hears of them again; they are not trained."""
    drawn = {"method.temperature": 0}
    with trial(toy, tmp_path, **drawn) as one:
        first = one.train()
        one.save(str(tmp_path / "saved"))
    run = run_of(tmp_path, first)
    with trial(toy, tmp_path, **drawn) as other:
        other._trial_info = one._trial_info
        other.reset_config({"method.trouble": 0} | drawn)
        results = [other.train()]
        while not results[-1]["done"]:
            results.append(other.train())
    assert run_of(tmp_path, results[0]) == run
    assert [r["epoch"] for r in results] == [1, 2, 3]
    assert results[0]["record"] == first["record"]  # to the microsecond
    with trial(toy, tmp_path, **drawn) as after:  # its driver died before it heard of the end
        assert [after.train()["record"] for _ in range(3)] == [r["record"] for r in results]


def test_values_that_cannot_work_end_a_trial_without_another_try(
    toy: Recipe, tmp_path: Path
) -> None:
    with trial(toy, tmp_path, **{"method.temperature": 0, "method.trouble": 1}) as one:
        result = one.train()
    assert result["done"] and "no finite number at step 3" in result["failed"]
    assert "knn" not in result


def test_values_that_do_not_go_together_end_a_trial(tiny: list[str], tmp_path: Path) -> None:
    """Each of them is allowed beside the recipe's own values, and not beside the other."""
    search = {"views.crop.scale.0": {"uniform": [0.1, 0.9]}}
    search |= {"views.crop.scale.1": {"uniform": [0.5, 1.0]}}
    changes = ["views.crop={scale: [0.2, 1.0]}", "trainer.workers=1"]
    content = load("simclr/digits", [*tiny, *changes]).model_dump(exclude={"tune"})
    recipe = validate(content | {"tune": {"search": search}})
    with trial(recipe, tmp_path, **{"views.crop.scale.0": 0.9, "views.crop.scale.1": 0.5}) as one:
        result = one.train()
    assert result["done"] and "scale is (lowest, highest), (0.9, 0.5) was given" in result["failed"]


def test_what_breaks_is_raised_so_that_ray_tries_again(toy: Recipe, tmp_path: Path) -> None:
    with (
        trial(toy, tmp_path, **{"method.temperature": 0, "method.trouble": 2}) as one,
        pytest.raises(RuntimeError, match="something broke"),
    ):
        one.train()


def test_a_metric_that_is_not_measured_is_named(toy: Recipe, tmp_path: Path) -> None:
    assert toy.tune is not None
    unknown = toy.tune.model_copy(update={"metric": "accuracy"})
    recipe = toy.model_copy(update={"tune": unknown})
    with trial(recipe, tmp_path, **{"method.temperature": 0}) as one:
        result = one.train()
    assert "'accuracy' is not measured" in result["failed"] and "rank_me" in result["failed"]
