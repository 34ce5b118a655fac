"""Features of a data set as Parquet: whose they are, going on, and what is refused."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from pyarrow import parquet

from raycl.beton import FloatField, IntField, RGBImageField, Writer
from raycl.data.folder import Folder
from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.train.corpus import ShardCorpus
from raycl.train.embed import Done, embed
from raycl.train.evaluation import checkpoint_of, evaluate, trained
from raycl.train.run import open_data
from raycl.train.trainer import pretrain
from raycl.train.worker import evaluation_view
from tests.conftest import ROOT, Cluster
from tests.data.conftest import Bucket
from tests.data.test_loader import damage, photos

PART = 100


@pytest.fixture(scope="module")
def done(
    cluster: Cluster, whole: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The digits of the test set, 360, in four files by two actors."""
    out = tmp_path_factory.mktemp("embed") / "out"
    heard: list[tuple[int, int]] = []
    found = embed(
        whole,
        str(digits / "test"),
        str(out),
        part=PART,
        workers=2,
        progress=lambda *n: heard.append(n),
    )
    assert found == Done(360, 4, 64)
    assert heard[0] == (0, 360) and heard[-1] == (360, 360) and len(heard) == 5
    return out


def rows(out: Path) -> pa.Table:
    return pa.concat_tables(parquet.read_table(path) for path in sorted(out.glob("*.parquet")))


def expected(run: Path, data: Path, logits: bool = False) -> np.ndarray:
    """Features or logits (N, D) as evaluation has them."""
    recipe = load(run)
    shards, view = Shards(data), evaluation_view(recipe)
    method = trained(recipe, open_data(recipe, "train"), checkpoint_of(run, recipe, best=False))
    batch, ids = recipe.evaluation.batch, np.arange(len(shards))
    corpus = ShardCorpus(shards, ids, view, batch, torch.device("cpu"))
    if logits:
        with torch.no_grad():
            parts = [method.eval().logits(batch["view"]) for batch in corpus.batches()]
            return torch.cat(parts).numpy()
    return corpus.embed(method.encoder)[1].numpy()


def features(table: pa.Table) -> np.ndarray:
    return np.stack(table["features"].to_numpy())


def test_features_are_those_of_evaluation_in_the_order_of_ids(
    done: Path, whole: Path, digits: Path
) -> None:
    table = rows(done)
    assert table.column_names == ["id", "features", "label"]
    assert table["id"].to_pylist() == list(range(360))
    assert (table["label"].to_numpy() == Shards(digits / "test").column("label")).all()
    np.testing.assert_allclose(features(table), expected(whole, digits / "test"), 1e-5, 1e-6)
    sizes = [parquet.read_metadata(path).num_rows for path in sorted(done.glob("*.parquet"))]
    assert sizes == [100, 100, 100, 60]


def test_every_number_travels_and_none_takes_the_place_of_the_features(
    cluster: Cluster, whole: Path, tmp_path: Path
) -> None:
    kinds = {"image": RGBImageField("raw"), "features": IntField(), "weight": FloatField()}
    with Writer(tmp_path / "x.beton", kinds) as writer:
        for i in range(5):
            image = np.full((16, 16, 3), 40 * i, np.uint8)
            writer.write({"image": image, "features": 7, "weight": i / 2})
    assert embed(whole, str(tmp_path / "x.beton"), str(tmp_path / "out")) == Done(5, 1, 64)
    table = rows(tmp_path / "out")
    assert table.column_names == ["id", "features", "weight"]
    assert table["weight"].to_pylist() == [0, 0.5, 1, 1.5, 2]
    assert features(table).shape == (5, 64)


def test_parts_that_are_cut_off_or_missing_are_made_again_and_no_others(
    done: Path, whole: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(done)
    (done / "part-00000.parquet").unlink()
    os.truncate(done / "part-00002.parquet", 5000)
    stamps = {n: (done / f"part-0000{n}.parquet").stat().st_mtime_ns for n in (1, 3)}
    heard: list[int] = []
    monkeypatch.chdir(digits.parent)  # a relative path is the same data
    embed(whole, "digits/test", str(done), part=PART, progress=lambda made, _: heard.append(made))
    assert heard[0] == 160 and heard[-1] == 360 and len(heard) == 3
    assert {n: (done / f"part-0000{n}.parquet").stat().st_mtime_ns for n in stamps} == stamps
    assert rows(done).equals(before)


def test_a_stopped_command_goes_on_when_it_is_run_again(
    cluster: Cluster, whole: Path, digits: Path, tmp_path: Path
) -> None:
    """By Ctrl-C, which a terminal sends to Ray's processes, too, and then by a kill."""
    out = tmp_path / "out"
    command = ["embed", str(whole), str(digits / "train"), str(out), "--part", "10"]
    for by in (signal.SIGINT, signal.SIGKILL):
        before = len(list(out.glob("part-*")))
        process = started("-c", BEGIN, *command, "--workers", "1")
        deadline = time.monotonic() + 300
        while len(list(out.glob("part-*"))) < before + 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        if by is signal.SIGKILL:
            process.kill()
            process.communicate(timeout=60)
            continue
        os.killpg(process.pid, by)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130
        (line,) = [line for line in said.splitlines() if "interrupted" in line]
        assert f"kept in {out}: the same command goes on" in line
        assert "Traceback" not in said
    time.sleep(2)  # what was left of a killed Ray has ended
    whole_parts = {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))[:-1]}
    assert 5 <= len(whole_parts) < 144
    embed(whole, str(digits / "train"), str(out), part=10)
    assert {name: (out / name).stat().st_mtime_ns for name in whole_parts} == whole_parts
    table = rows(out)
    assert table["id"].to_pylist() == list(range(1437))
    np.testing.assert_allclose(features(table), expected(whole, digits / "train"), 1e-4, 1e-5)


BEGIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from raycl.cli import main; main()"
)


def started(*arguments: str) -> subprocess.Popen[str]:
    """Python in a process group of its own, on a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_another_order_in_the_same_place_is_refused(
    done: Path, whole: Path, digits: Path, tmp_path: Path
) -> None:
    where = str(done)
    for arguments, settings, told in (
        ((str(digits / "train"), where), {"part": PART}, "another data "),
        ((str(digits / "test"), where), {"part": 99}, "another part "),
        ((str(digits / "test"), where, ["evaluation.size=24"]), {"part": PART}, "another view "),
        ((str(digits / "test"), str(whole)), {}, r"is not empty, and holds no _embedding\.json"),
        ((str(digits / "test"), str(whole / "recipe.yaml")), {}, "cannot be written"),
    ):
        with pytest.raises(RayclError, match=told):
            embed(whole, *arguments, **settings)  # type: ignore[arg-type]
    (tmp_path / "_embedding.json").write_text("{")
    with pytest.raises(RayclError, match=r"its _embedding\.json is damaged"):
        embed(whole, str(digits / "test"), str(tmp_path))


def test_other_weights_in_the_same_run_are_another_checkpoint(
    done: Path, whole: Path, digits: Path, tmp_path: Path
) -> None:
    about = json.loads((done / "_embedding.json").read_text())
    about["checkpoint"]["sha256"] = "0" * 64
    (tmp_path / "_embedding.json").write_text(json.dumps(about))
    with pytest.raises(RayclError, match="begun with another checkpoint "):
        embed(whole, str(digits / "test"), str(tmp_path), part=PART)


def test_what_is_missing_is_named(whole: Path, digits: Path, tmp_path: Path) -> None:
    test, out = str(digits / "test"), str(tmp_path / "out")
    with pytest.raises(RayclError, match="unknown recipe '/nowhere'"):
        embed(Path("/nowhere"), test, out)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RayclError, match=r"empty: this directory holds no recipe\.yaml"):
        embed(empty, test, out)
    (empty / "recipe.yaml").write_text((whole / "recipe.yaml").read_text())
    with pytest.raises(RayclError, match="empty: this run holds no complete checkpoint"):
        embed(empty, test, out)
    with pytest.raises(RayclError, match="/nowhere: there is no such"):
        embed(whole, "/nowhere", out)
    with Writer(tmp_path / "x.beton", {"label": IntField()}) as writer:
        writer.write({"label": 1})
    with pytest.raises(RayclError, match=r"has no field 'image', which is read; it has: label"):
        embed(whole, str(tmp_path / "x.beton"), out)
    assert not (tmp_path / "out").exists()


def test_a_classifier_s_predictions_are_what_evaluation_scores(
    cluster: Cluster, digits: Path, tiny: list[str], tmp_path: Path
) -> None:
    small = [*tiny, "trainer.stop.epochs=1", "evaluation.every_epochs=0"]
    run = pretrain(load("supervised/cifar10-small", small), tmp_path / "run")
    out = tmp_path / "out"
    assert embed(run, str(digits / "test"), str(out), predict=True) == Done(360, 1, 10)
    table = rows(out)
    assert table.column_names == ["id", "logits", "class", "probability", "label"]
    logits = np.stack(table["logits"].to_numpy())
    np.testing.assert_allclose(logits, expected(run, digits / "test", logits=True), 1e-5, 1e-6)
    sure = torch.from_numpy(logits).softmax(1).numpy()
    assert (table["class"].to_numpy() == logits.argmax(1)).all()
    np.testing.assert_allclose(table["probability"].to_numpy(), sure.max(1))
    (row,) = evaluate(run, ["evaluation.protocols=[classifier]"])["rows"]
    right = (table["class"].to_numpy() == table["label"].to_numpy()).mean()
    assert right == pytest.approx(row["score"])


def test_predictions_need_a_classifier_of_images(whole: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(RayclError, match="predict: writes what a classifier says .* SimCLR has no"):
        embed(whole, str(digits / "test"), str(tmp_path / "out"), predict=True)
    assert not (tmp_path / "out").exists()


def test_a_damaged_sample_is_named_and_no_actor_stays(
    cluster: Cluster, whole: Path, tmp_path: Path
) -> None:
    path = damage(photos(tmp_path / "set"), 23)
    gc.disable()  # it comes when it likes, and would hide an actor that waits for it
    try:
        with pytest.raises(RayclError, match=rf"^{path}, sample 3: "):
            embed(whole, str(tmp_path / "set"), str(tmp_path / "out"), part=10)
        deadline = time.monotonic() + 120
        while (free := ray.available_resources().get("CPU")) != 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert free == 2
    finally:
        gc.enable()


def test_features_go_to_a_bucket(
    whole: Path, digits: Path, bucket: Bucket, done: Path, tmp_path: Path
) -> None:
    """By the script for jobs and a Ray that has the credentials; a part lies there cut off."""
    bucket.put("features/part-00001.parquet", b"PAR1 and no more")
    bucket.put("features/_embedding.json", (done / "_embedding.json").read_bytes())
    uri = bucket.uri("features")
    job = str(ROOT / "jobs" / "embed.py")
    process = started(job, str(whole), str(digits / "test"), uri, "--part", str(PART))
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    folder = Folder(uri)
    assert folder.names() == ["_embedding.json", *(f"part-0000{i}.parquet" for i in range(4))]
    tables = [folder.opened(name, parquet.read_table) for name in folder.names()[1:]]
    assert pa.concat_tables(tables).equals(rows(done))


def test_graphs(cluster: Cluster, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    import_dataset("graph", shared_data("graphs_tu") / "MUTAG", tmp_path / "data")
    where: dict[str, Any] = {"data": tmp_path / "data"}
    changes = [f"data.train={where['data']}", "trainer.stop.epochs=1", "trainer.workers=1"]
    run = pretrain(load("mvgrl/mutag", [*changes, "evaluation.every_epochs=0"]), tmp_path / "run")
    found = embed(run, str(tmp_path / "data"), str(tmp_path / "out"), part=50)
    assert (found.samples, found.parts) == (188, 4)
    np.testing.assert_allclose(
        features(rows(tmp_path / "out")), expected(run, tmp_path / "data"), 1e-4, 1e-5
    )
