"""Jobs, as users submit them: through the job server of a real head, with a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow.dataset
import pytest
import yaml

from raycl.data.shards import Shards
from raycl.recipe import load
from raycl.report.machine import commit
from tests.cluster.conftest import until
from tests.conftest import ROOT, Cluster


def submit(cluster: Cluster, *entrypoint: str) -> str:
    """Submits a job, waits for it and returns what it printed."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "submit", "--address", cluster.dashboard,
         "--working-dir", str(ROOT), "--", sys.executable, *entrypoint],
        capture_output=True, text=True, timeout=400,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_training_to_predictions_as_jobs(
    cluster: Cluster, digits: Path, tiny: list[str], tmp_path: Path
) -> None:
    run, test = tmp_path / "run", str(digits / "test")
    recipe = ["supervised/cifar10-small", *tiny, "trainer.stop.epochs=1", "trainer.workers=2"]
    printed = submit(cluster, "jobs/pretrain.py", *recipe, "--run", str(run))
    assert f"run: {run}" in printed and "succeeded" in printed
    assert (run / "encoder.safetensors").is_file()
    submit(cluster, "jobs/evaluate.py", str(run), "--protocol", "knn")
    (row,) = json.loads((run / "evaluation.json").read_text())["rows"][:1]
    assert row["protocol"] == "knn" and row["score"] > 0.1
    for name in ("embed", "predict"):
        submit(cluster, f"jobs/{name}.py", str(run), test, str(tmp_path / name))
        assert pyarrow.dataset.dataset(tmp_path / name, format="parquet").count_rows() == 360
    small = tmp_path / "small"
    submit(cluster, "jobs/convert.py", test, str(small), "--max-resolution", "4")
    assert Shards(small).read(0)["image"].shape == (4, 4, 3)


def test_a_job_with_a_mistake_fails_with_its_message(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match=r"method\.temperature: 0 was given"):
        submit(cluster, "jobs/pretrain.py", "simclr/digits", "method.temperature=0")


@pytest.mark.parametrize("name", ["pretrain", "tune", "evaluate", "embed", "predict", "convert"])
def test_a_job_is_the_command_of_its_name(name: str) -> None:
    done = subprocess.run(
        [sys.executable, f"jobs/{name}.py", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and f" {name} [OPTIONS]" in done.stdout.splitlines()[0]


def raycl_submit(
    cluster: Cluster, folder: Path, *command: str, token: str = "", options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """`raycl submit` of a user who stands in a folder of their own."""
    return subprocess.run(
        [sys.executable, "-m", "raycl", "submit", *options, cluster.dashboard, *command],
        capture_output=True, text=True, timeout=400, cwd=folder,
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or cluster.token},
    )  # fmt: skip


def test_a_recipe_is_submitted_followed_and_its_report_comes_back(
    cluster: Cluster, tiny: list[str], tmp_path: Path
) -> None:
    """From a folder that holds a recipe, and data which stays where it is."""
    folder, run = tmp_path / "project", tmp_path / "first"
    folder.mkdir()
    (folder / "mine.yaml").write_text(load("simclr/digits", tiny).to_yaml())
    (folder / "large.beton").write_bytes(os.urandom(150 << 20))  # above what Ray takes
    done = raycl_submit(
        cluster, folder, "pretrain", "mine.yaml", "trainer.stop.epochs=1", "--run", str(run)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"run: {run}" in done.stdout and "epoch 1.0/1" in done.stdout
    page = (folder / "first.html").read_text()
    assert page == (run / "report.html").read_text() and "</html>" in page
    mistaken = raycl_submit(
        cluster, folder, "pretrain", "mine.yaml", "data.train=/no", "--run", "/x"
    )
    assert mistaken.returncode == 2 and "data.train: /no" in mistaken.stdout


def test_what_cannot_be_submitted_is_told_before_anything_is_sent(
    cluster: Cluster, tmp_path: Path
) -> None:
    command, recipe = ["pretrain", "simclr/digits"], tmp_path / "mine.yaml"
    recipe.write_text("method: {name: simclr}")
    for words, message in (
        (command, "--run: give a directory that all hosts"),
        ([*command, "method.temperature=0", "--run", "/x"], "method.temperature: 0 was given"),
        ([*command, "--rnu", "/x"], "No such option: --rnu"),
        (["pretrain"], "RECIPE is missing"),
        ([*command[:1], str(recipe), "--run", "/x"], "mine.yaml: give it relative to this"),
        (["demo"], "demo runs here, not on a cluster"),
    ):
        done = raycl_submit(cluster, tmp_path, *words)
        assert done.returncode == 2 and message in done.stderr and "job:" not in done.stderr
    (tmp_path / "photos").mkdir()
    with (tmp_path / "photos" / "all.tar").open("wb") as photos:
        photos.truncate(150 << 20)
    large = raycl_submit(cluster, tmp_path, *command, "--run", "/x")
    assert large.returncode == 2 and "photos/all.tar (150 MiB)" in large.stderr
    (tmp_path / ".rayignore").write_text("photos\n")
    refused = raycl_submit(cluster, tmp_path, *command, "--run", "/x", token="wrong" * 8)
    assert refused.returncode == 2 and "not to this token" in refused.stderr


def test_a_stopped_job_leaves_a_checkpoint(
    cluster: Cluster, tiny: list[str], tmp_path: Path
) -> None:
    run, environment = tmp_path / "run", {"RAY_AUTH_TOKEN": cluster.token}
    settings = ["trainer.stop.epochs=2000", "trainer.checkpoint.every_epochs=2000"]
    done = raycl_submit(
        cluster, tmp_path, "pretrain", "simclr/digits", *tiny, *settings,
        "evaluation.every_epochs=0", "--run", str(run), options=("--no-wait",),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stop = done.stderr.partition("stop: ray ")[2].split()
    until(lambda: (run / "metrics.jsonl").is_file(), 120, "nothing is trained")
    ray = str(Path(sys.executable).with_name("ray"))
    stopped = subprocess.run(
        [ray, *stop], env=os.environ | environment, capture_output=True, text=True, timeout=100
    )
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert len(list((run / "checkpoints").iterdir())) == 1


def test_a_study_is_run_once_and_told_in_a_table(
    digits: Path, tiny: list[str], tmp_path: Path
) -> None:
    """Two seeds of an arm; a second call finds the runs, and scores them by another protocol."""
    study, out, figures = tmp_path / "study.yml", tmp_path / "out", tmp_path / "figures.json"
    settings = ["method.temperature=0.5"]
    arms = {"warm": {"recipe": "simclr/digits", "set": settings, "untrained": True}}
    evaluate = ["evaluation.protocols=[knn]"]
    study.write_text(yaml.safe_dump({"arms": arms, "evaluate": evaluate}))
    changes = [*tiny, "trainer={workers: 1, lanes: 1, batch: 64, stop: {epochs: 1}}"]
    changes += ["evaluation.every_epochs=0", "evaluation.few=[]", "data.limit=128"]
    command = [sys.executable, "jobs/reproduce.py", str(study), *changes, "--seeds", "2"]
    command += ["--out", str(out), "--json", str(figures)]

    def call(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    mistaken = subprocess.run(
        [*command, "--arms", "cold"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert mistaken.returncode == 1 and "--arms: 'cold' is no arm of" in mistaken.stderr
    told = call()
    assert "warm" in told and f"command: python jobs/reproduce.py {study}" in told
    assert f"commit: {commit()}" in told
    assert sorted(path.name for path in out.iterdir()) == ["warm-0", "warm-1"]
    assert "temperature: 0.5" in (out / "warm-1" / "recipe.yaml").read_text()
    written = (out / "warm-0" / "encoder.safetensors").stat().st_mtime_ns
    call("--also", "other", "evaluation.protocols=[geometry]")
    assert (out / "warm-0" / "encoder.safetensors").stat().st_mtime_ns == written
    found = json.loads(figures.read_text())["figures"]["arms"]
    assert len(found["warm"]["kNN"]) == len(found["warm"]["other: geometry: uniformity"]) == 2
    assert "untrained encoder: kNN" in found["warm"] and found["warm"]["kNN"][0] > 10
    row = json.loads((out / "warm-0" / "evaluation.json").read_text())["rows"][-1]
    assert 100 * row["score"] == found["warm"]["kNN"][0]


@pytest.mark.parametrize(
    ("name", "told"), [("byol", "it has: simclr, byol "), ("bayol", "bayol: no study")]
)
def test_a_method_without_a_study_is_compared_with_simclr(name: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/reproduce.py", name, "--arms", "none"],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1 and told in done.stderr


OTHERS = sorted((ROOT / "raycl" / "recipes").rglob("*.yml"))
STUDIES = [path for path in OTHERS if path.name != "space.yml"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_arm_of_a_packaged_study_is_a_valid_recipe(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["arms"]
    for arm in content["arms"].values():
        recipe = load(arm["recipe"], [*content.get("set", []), *arm.get("set", [])])
        assert recipe.trainer.workers == 1
        load(arm["recipe"], content.get("evaluate", []))


def test_few_labels_from_scratch_and_from_an_encoder(tiny: list[str], tmp_path: Path) -> None:
    """The study of shares of the labels, made small: a digit of each class is what 1 % are."""
    small = [*tiny[:3], "method.encoder.width=8", "views.size=16", "trainer.batch=10"]
    small += ["trainer.stop.epochs=1", "evaluation.size=16", "data.limit=200"]
    for name, more in (
        ("scratch", []),
        ("tuned", [f"init_from={tmp_path / 'scratch'}/1-percent-0"]),
    ):
        done = subprocess.run(
            [sys.executable, "jobs/reproduce.py", "supervised", *small, *more, "--seeds", "1",
             "--arms", "1 percent", "--out", str(tmp_path / name)],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        run = tmp_path / name / "1-percent-0"
        (row,) = json.loads((run / "evaluation.json").read_text())["rows"]
        assert (row["protocol"], row["train"], row["test"]) == ("classifier", 10, 360)


@pytest.mark.parametrize("token", ["", "wrong" * 8])
def test_without_the_token_nobody_gets_in(cluster: Cluster, token: str) -> None:
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code in (401, 403)
