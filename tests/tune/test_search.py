"""Whole sweeps on a real Ray."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from raycl.errors import RayclError
from raycl.recipe import Recipe, load
from raycl.sections import Stop
from raycl.space import Distribution, Repeats, Scheduler
from raycl.sweep import Row, best_recipe, read, settings_of, trials, winner
from raycl.train.trainer import pretrain
from raycl.tune.search import search
from tests.conftest import ROOT, Cluster
from tests.tune.test_trial import metrics

RAYCL = Path(sys.executable).with_name("raycl")


def rows_of(place: Path, phase: str = "search") -> list[Row]:
    return trials(read(place), settings_of(place), phase)


def alive(cluster: Cluster) -> list[Any]:
    from ray.util.state import list_actors

    return list_actors(filters=[("state", "!=", "DEAD")], address=cluster.address)


@pytest.fixture(scope="module")
def troubled(cluster: Cluster, toy: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial of every kind of trouble, and the best once more."""
    place = tmp_path_factory.mktemp("sweeps") / "troubled"
    assert toy.tune is not None
    only = {"method.trouble": toy.tune.search["method.trouble"]}
    settings = toy.tune.model_copy(update={"searcher": "grid", "search": only})
    method = toy.method | {"marker": str(place.with_name("marker"))}
    # Other tests of this run, and Ray itself, may have left some before.
    known = [actor.actor_id for actor in alive(cluster)]
    place.with_name("actors.json").write_text(json.dumps(known))
    search(toy.model_copy(update={"tune": settings, "method": method}), place)
    return place


def test_trouble_ends_a_trial_and_never_the_sweep(troubled: Path) -> None:
    rows = {row.values["method.trouble"]: row for row in rows_of(troubled)}
    fine, nan, breaks, dies = (rows[trouble] for trouble in ("none", "nan", "breaks", "dies"))
    assert (fine.how, fine.epochs) == (dies.how, dies.epochs) == ("finished", 3)
    assert nan.how == breaks.how == "failed"
    assert "no finite number" in nan.error and nan.lost == 0
    assert "something broke" in breaks.error and breaks.lost == 1
    # What died was done again, and came to what it would have come to.
    assert dies.lost == 1 and dies.score("knn") == fine.score("knn")


def test_the_best_is_repeated_with_another_seed_and_can_be_trained_again(
    troubled: Path, tmp_path: Path
) -> None:
    found = rows_of(troubled)
    (again,) = rows_of(troubled, "repeats")
    assert (again.of, again.seed, again.how) == (found[0].trial, 1, "finished")
    best, repeats = winner(troubled, settings_of(troubled))
    assert best.trial == found[0].trial and repeats == [again.score("knn")]
    path = tmp_path / "best.yaml"
    path.write_text(best_recipe(troubled))
    assert "tune" not in {k for k, v in yaml.safe_load(path.read_text()).items() if v is not None}
    run = pretrain(load(path), tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["knn"] for line in lines if "knn" in line][-1] == best.score("knn")


def test_a_sweep_that_is_over_is_not_run_again(troubled: Path, toy: Recipe) -> None:
    before = read(troubled)
    search(load(troubled), troubled)
    assert read(troubled) == before
    with pytest.raises(RayclError, match="holds the sweep of another recipe"):
        search(toy, troubled)


def test_nothing_of_a_sweep_is_left_on_the_cluster(troubled: Path, cluster: Cluster) -> None:
    from ray.util.state import list_placement_groups

    known = set(json.loads(troubled.with_name("actors.json").read_text()))
    deadline = time.monotonic() + 30
    while True:
        actors = [actor for actor in alive(cluster) if actor.actor_id not in known]
        groups = list_placement_groups(
            filters=[("state", "!=", "REMOVED")], address=cluster.address
        )
        if not (actors or groups) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert not actors and not groups
    partial = [path for path in troubled.rglob("*") if "partial" in path.name]
    assert partial == []


def test_tensorboard_shows_values_beside_the_metric(troubled: Path) -> None:
    """As its HParams tab asks for them: of runs with the same values it shows one."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(logdir=str(troubled), port=0, load_fast="false")
    url = board.launch()
    query = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [
            {"hparam": "method.trouble"},
            {"metric": {"group": "", "tag": "knn"}},
        ],
        "startIndex": 0,
        "sliceSize": 100,
    }
    scores: dict[str, list[float]] = {}
    for row in [*rows_of(troubled), *rows_of(troubled, "repeats")]:
        if row.how == "finished":
            scores.setdefault(row.values["method.trouble"], []).append(row.score("knn"))
    found: dict[Any, float] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(found) < len(scores):
        request = urllib.request.Request(
            f"{url}data/plugin/hparams/session_groups",
            json.dumps(query).encode(),
            {"Content-Type": "application/json"},
        )
        groups = json.loads(urllib.request.urlopen(request).read()).get("sessionGroups", [])
        found = {
            group["hparams"]["method.trouble"]: value["value"]
            for group in groups
            for value in group.get("metricValues", [])
            if group["hparams"]["method.trouble"] in scores
        }
        time.sleep(1)
    assert found.keys() == scores.keys() == {"none", "dies"}
    for trouble, value in found.items():
        assert any(value == pytest.approx(score, abs=1e-6) for score in scores[trouble])


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_a_browser_shows_values_and_metric(troubled: Path, tmp_path: Path) -> None:
    """The HParams tab has a table, in an ink of its own, which it has not without a sweep."""
    from PIL import Image
    from tensorboard import program

    written = []
    for name, folder in (("nothing", tmp_path / "empty"), ("sweep", troubled)):
        board = program.TensorBoard()
        board.configure(logdir=str(folder), port=0, load_fast="false")
        url, picture = board.launch(), tmp_path / f"{name}.png"
        time.sleep(5)
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
             "--virtual-time-budget=30000", f"--screenshot={picture}", f"{url}#hparams"],
            stderr=subprocess.DEVNULL, timeout=120, check=True,
        )  # fmt: skip
        page = np.asarray(Image.open(picture).convert("RGB"))
        written.append(int((page == (38, 52, 69)).all(-1).sum()))
    assert written[0] == 0 and written[1] > 500


def test_a_killed_driver_costs_no_finished_trial(toy: Recipe, tmp_path: Path) -> None:
    place, recipe = tmp_path / "sweep", tmp_path / "recipe.yaml"
    content = toy.model_dump(mode="json", exclude_unset=True)
    content["trainer"]["stop"]["epochs"] = 6
    content["tune"] |= {
        "samples": 3,
        "repeats": {"seeds": 0},
        "search": {"method.temperature": {"loguniform": [0.05, 1.0]}},
    }
    recipe.write_text(yaml.safe_dump(content))
    settings: Any = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    settings["env"].pop("RAY_ADDRESS", None)
    driver = subprocess.Popen([RAYCL, "tune", recipe, "--sweep", place], **settings)
    deadline = time.monotonic() + 200
    while not (place / "events.jsonl").exists() or not any(
        r.how == "finished" for r in rows_of(place)
    ):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.1)
    actors = [
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if process.cmdline()[0].startswith("ray::ResourceTrainable")
    ]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {row.trial: row for row in rows_of(place) if row.how == "finished"}
    assert actors and not psutil.wait_procs(actors, timeout=30)[1]
    done = subprocess.run(
        [RAYCL, "tune", "--resume", place], capture_output=True, text=True, **settings
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(place)
    assert [row.how for row in rows] == ["finished"] * 3
    for row in rows:
        assert sorted(row.measured) == [1, 2, 3, 4, 5, 6]
        if row.trial in before:
            assert row.measured == before[row.trial].measured


def test_pbt_hands_on_weights_and_changes_values(
    cluster: Cluster, toy: Recipe, tmp_path: Path
) -> None:
    assert toy.tune is not None
    settings = toy.tune.model_copy(
        update={
            "samples": 4,
            "scheduler": Scheduler(name="pbt", grace=1),
            "repeats": Repeats(seeds=0),
            "search": {"method.temperature": Distribution(loguniform=(0.01, 10.0))},
        }
    )
    place = tmp_path / "sweep"
    longer = toy.trainer.model_copy(update={"stop": Stop(epochs=6)})
    search(toy.model_copy(update={"tune": settings, "trainer": longer}), place)
    rows = rows_of(place)
    assert [(row.how, row.epochs) for row in rows] == [("finished", 6)] * 4
    lives = {run.name: metrics(run) for run in (place / "trials").iterdir()}
    taken = [name for name, lines in lives.items() if lines and lines[0]["epoch"] > 1]
    assert taken  # runs that began with the weights of another one
    for name in taken:
        others = [n for n in lives if n.startswith(name.partition("-")[0]) and n != name]
        assert others
        own, other = (load(place / "trials" / n).method["temperature"] for n in (name, others[0]))
        assert own != other


def test_optuna_learns_from_what_trials_found(
    cluster: Cluster, toy: Recipe, tmp_path: Path
) -> None:
    """Told of all scores: those of its study are those of the trials."""
    assert toy.tune is not None
    only = {"method.temperature": Distribution(loguniform=(0.05, 1.0))}
    changes = {"searcher": "optuna", "samples": 3, "repeats": Repeats(seeds=0), "search": only}
    place = tmp_path / "sweep"
    search(toy.model_copy(update={"tune": toy.tune.model_copy(update=changes)}), place)
    rows = rows_of(place)
    assert [(row.how, row.epochs) for row in rows] == [("finished", 3)] * 3
    (state,) = (place / "ray" / "search").glob("searcher-state-*.pkl")
    study = pickle.loads(state.read_bytes())["_ot_study"]
    told = {t.params["method.temperature"]: t.value for t in study.trials}
    assert told == {row.values["method.temperature"]: row.score("knn") for row in rows}


def test_a_sweep_in_which_everything_fails_says_why(
    cluster: Cluster, toy: Recipe, tmp_path: Path
) -> None:
    method = toy.method | {"trouble": "nan"}
    assert toy.tune is not None
    only = {"method.temperature": toy.tune.search["method.temperature"]}
    settings = toy.tune.model_copy(update={"samples": 12, "search": only})
    with pytest.raises(RayclError, match="no trial has measured knn: the loss is no finite number"):
        search(toy.model_copy(update={"tune": settings, "method": method}), tmp_path / "sweep")
    assert len(rows_of(tmp_path / "sweep")) < 12  # it did not try all
