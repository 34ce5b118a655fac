"""Features instead of images, from a run's directory to zero-shot accuracies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.train.evaluation import evaluate
from raycl.train.trainer import pretrain
from tests.conftest import Cluster
from tests.test_cli import run as command
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


COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}


def drawings(folder: Path) -> Path:
    """Discs and squares of three colours, 30 of each; and the table that describes the classes."""
    generator = np.random.default_rng(0)
    lines = ["class,unseen,r,g,b,disc,square"]
    for name, colour in COLOURS.items():
        for disc in (0, 1):
            kind = f"{name}-{'disc' if disc else 'square'}"
            unseen = int(kind in ("green-disc", "blue-square"))
            described = [*(round(value / 255, 2) for value in colour), disc, 1 - disc]
            lines.append(",".join(map(str, [kind, unseen, *described])))
            (folder / "images" / kind).mkdir(parents=True)
            for number in range(30):
                noise = generator.integers(0, 60, (16, 16, 3), dtype=np.uint8)
                image, at = Image.fromarray(noise), generator.integers(1, 5)
                pen = ImageDraw.Draw(image)
                (pen.ellipse if disc else pen.rectangle)([at, at, at + 9, at + 9], fill=colour)
                image.save(folder / "images" / kind / f"{number}.png")
    (folder / "classes.csv").write_text("\n".join(lines))
    return folder


def test_from_own_images_to_classes_that_nobody_has_seen(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pretrained encoder, then what the README says: embed, import, pretrain, evaluate."""
    monkeypatch.chdir(drawings(tmp_path))
    tiny = [
        "method.encoder.width=8",
        "trainer={lanes: 1, workers: 1, batch: 60, stop: {epochs: 2}}",
    ]
    small = [
        "method.hidden=64", "method.embedding=32", "method.projection=16", "method.comparator=16",
        "method.noise=8", "trainer.batch=80", "trainer.stop.epochs=40", "optimizer.lr=0.002",
        "evaluation.zero_shot.samples=30",
    ]  # fmt: skip
    for arguments in (
        ["data", "import", "imagefolder", "images", "photos"],
        ["pretrain", "simclr/digits", "--run", "encoder", "data.train=photos", *tiny,
         "evaluation.every_epochs=0"],
        ["embed", "encoder", "photos", "features", "--part", "64"],
        ["data", "import", "features", "features", "gzsl", "--classes", "classes.csv"],
        ["pretrain", "ce_gzsl/flo-small", "--run", "run", *small,
         *(f"data.{name}=gzsl/{name}" for name in ("train", "test", "classes"))],
        ["embed", "run", "gzsl/test", "h"],
    ):  # fmt: skip
        assert command(monkeypatch, *arguments) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "features: 180 samples of 64 features in 3 files" in shown
    assert "h: 84 samples of 32 features in 1 files" in shown
    train = Shards("gzsl/train")
    assert (np.bincount(train.column("label"), minlength=6) == [24, 0, 0, 24, 24, 24]).all()
    assert command(monkeypatch, "evaluate", "run", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    of_run = [row for row in rows if row["representation"] == "trained encoder"]
    found = {row["metric"]: row["score"] for row in of_run if row["protocol"] == "zero_shot"}
    assert found.keys() >= {"S, last", "U, last", "H, last", "H, best", "unseen alone, last"}
    assert found["S, last"] > 0.7  # of six classes; so few updates teach nothing of the unseen ones
