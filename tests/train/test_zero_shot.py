"""Features instead of images, from a run's directory to zero-shot accuracies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.train.evaluation import evaluate
from raycl.train.trainer import pretrain
from tests.train.test_trainer import metrics

CLASSES, DIM = 6, 8


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Clouds about points that a class embedding tells; of the last two classes there are none
    to train on."""
    folder = tmp_path_factory.mktemp("features")
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(CLASSES, 4))
    centres = np.abs(embeddings @ generator.normal(size=(4, DIM)))
    labels = np.repeat(np.arange(CLASSES), 40)
    features = centres[labels] + 0.05 * generator.normal(size=(len(labels), DIM))
    new = labels >= CLASSES - 2
    tested = np.arange(len(labels)) % 4 == 0
    np.savez(
        folder / "a.npz",
        features=features,
        labels=labels,
        att=embeddings,
        trainval_loc=np.flatnonzero(~new & ~tested),
        test_seen_loc=np.flatnonzero(~new & tested),
        test_unseen_loc=np.flatnonzero(new),
    )
    import_dataset("features", folder / "a.npz", folder / "made")
    return [f"data.{n}={folder / 'made' / n}" for n in ("train", "test", "classes")]


@pytest.fixture(scope="module")
def run(places: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = [
        *places, "method.hidden=32", "method.embedding=16", "method.projection=8",
        "method.comparator=8", "method.noise=4", "trainer.batch=60", "trainer.stop.epochs=30",
        "optimizer.lr=0.002", "trainer.log_every=1",
    ]  # fmt: skip
    return pretrain(load("ce_gzsl/flo-small", changes), tmp_path_factory.mktemp("runs") / "run")


def test_both_networks_are_trained_in_turns(run: Path) -> None:
    lines = [line for line in metrics(run) if "critic.loss" in line]
    assert len(lines) == 30 * 2 and all("generator.loss" in line for line in lines)
    assert lines[-1]["critic.class"] < lines[0]["critic.class"]


def test_zero_shot_accuracies(run: Path) -> None:
    rows = evaluate(run, ["evaluation.protocols=[zero_shot, knn]"])["rows"]
    found = {
        (row["representation"], row["metric"]): row["score"]
        for row in rows
        if row["protocol"] == "zero_shot"
    }
    assert found["samples themselves", "seen alone, last"] > 0.5
    found = {metric: v for (who, metric), v in found.items() if who == "trained encoder"}
    assert found["seen alone, last"] > 0.9
    assert found["H, best"] >= found["H, last"] >= 0
    assert found["unseen alone, best"] >= 0.5  # of two classes; what is made up is not noise
    s, u = found["S, last"], found["U, last"]
    assert found["H, last"] == pytest.approx(2 * s * u / (s + u) if s + u else 0)
    assert {row["metric"] for row in rows} >= {"accuracy"}


@pytest.mark.parametrize("protocol", ["dense", "geometry", "linear-sgd"])
def test_protocols_of_images_are_refused(run: Path, protocol: str) -> None:
    with pytest.raises(RayclError, match=f"{protocol} looks at images, and the samples of .* are"):
        evaluate(run, [f"evaluation.protocols=[{protocol}]"])


def test_a_run_without_class_embeddings_is_refused(places: list[str], tmp_path: Path) -> None:
    with pytest.raises(RayclError, match=r"data\.classes: CE-GZSL needs an embedding of every"):
        pretrain(load("ce_gzsl/flo-small", [*places[:2], "trainer.batch=60"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_that_makes_up_nothing_is_refused(
    digits: Path, tiny: list[str], run: Path
) -> None:
    from raycl.train.scores import check_zero_shot

    recipe = load("simclr/digits", tiny)
    with pytest.raises(RayclError, match="SimCLR makes up none"):
        check_zero_shot(recipe, None, None)  # type: ignore[arg-type]
