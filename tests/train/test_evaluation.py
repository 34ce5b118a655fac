"""Scoring a run: rows, baselines, protocols, and data that cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.report.page import write_report
from raycl.train import checkpoint
from raycl.train.evaluation import evaluate
from raycl.train.trainer import pretrain
from raycl.train.worker import evaluation_view


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    changes = ["trainer.workers=1", "trainer.stop.epochs=1", "evaluation.few=[5]"]
    return pretrain(load("simclr/digits", [*tiny, *changes]), folder)


def test_all_rows_are_scored_and_written(run: Path) -> None:
    result = evaluate(run, baselines=True)
    rows = {(r["representation"], r["labels"], r["protocol"]): r for r in result["rows"]}
    assert set(rows) == {
        (representation, labels, protocol)
        for representation in ("raw pixels", "untrained encoder", "trained encoder")
        for labels in ("all", "5 a class")
        for protocol in ("knn", "linear")
    }
    assert all(0.1 < row["score"] <= 1 for row in rows.values())
    assert {row["train"] for row in rows.values()} == {512, 50}
    assert {row["test"] for row in rows.values()} == {360}
    assert json.loads((run / "evaluation.json").read_text()) == result
    with np.load(run / "embedding.npz") as found:
        assert found["features"].shape == (360, 64) and found["labels"].shape == (360,)
        assert len(json.loads(str(found["classes"]))) == 10
    assert list((run / "tensorboard" / "projector").rglob("tensors.tsv"))
    page = write_report(run).read_text()
    assert "raw pixels" in page and "trained encoder" in page


def test_the_published_sgd_probe(run: Path) -> None:
    changes = ["evaluation.protocols=[linear-sgd]", "evaluation.few=[]", "evaluation.batch=64"]
    changes.append("data.limit=192")
    first = run / "evaluation.json"
    before = first.read_text() if first.exists() else None
    result = evaluate(run, changes, name="sgd")
    (row,) = result["rows"]
    assert json.loads((run / "sgd.json").read_text()) == result
    assert (first.read_text() if first.exists() else None) == before
    assert row["protocol"] == "linear-sgd" and row["score"] > 0.3


def test_images_may_be_larger_in_evaluation_than_in_training(run: Path) -> None:
    assert evaluation_view(load(run)).size == 16
    view = evaluation_view(load(run, ["evaluation.size=24"]))
    assert view.size == 24 and view.crop is None and view.color is None and view.flip == 0


def test_scoring_twice_gives_the_same(run: Path) -> None:
    assert evaluate(run) == evaluate(run)


def test_data_without_labels_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (i * 50, 0, 0)).save(folder / f"{i}.png")
    import_dataset("imagefolder", folder, tmp_path / "unlabelled")
    with pytest.raises(RayclError, match=r"data\.test: .*unlabelled has no field 'label'"):
        evaluate(run, [f"data.test={tmp_path / 'unlabelled'}"])


def test_a_run_without_a_checkpoint(run: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(RayclError, match="no complete checkpoint"):
        evaluate(tmp_path)


def test_the_best_checkpoint_is_scored_where_one_is_asked_for(run: Path) -> None:
    first = checkpoint.require(run)
    with pytest.raises(RayclError, match=r"trainer\.checkpoint\.best: names no metric"):
        evaluate(run, best=True)
    with pytest.raises(RayclError, match="no checkpoint holds the metric 'accuracy'"):
        evaluate(run, ["trainer.checkpoint.best={metric: accuracy}"], best=True)
    how = ["evaluation.protocols=[knn]", "trainer.checkpoint.best={metric: loss, mode: min}"]
    assert evaluate(run, how, best=True)["step"] == int(first.name.removeprefix("step-"))
