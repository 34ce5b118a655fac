"""Observers of services, each with the real client: files of W&B, a database of MLflow, Ray."""

from __future__ import annotations

import json
import struct
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from raycl.errors import RayclError
from raycl.recipe import RecipeError, load
from raycl.train import checkpoint
from raycl.train.observers import Writer
from raycl.train.observers.services import MLflow, Prometheus, Wandb
from raycl.train.observers.write import Metrics
from raycl.train.trainer import pretrain
from tests.conftest import Cluster
from tests.train.test_loop import StopAfter, loop_of, method_of, recipe
from tests.train.test_observers import event, lines


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_told_before_anything_starts(
    name: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a folder of that name, such as W&B leaves behind, looks like a package."""
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(RayclError, match=rf'trainer\.watch: {name} .* "raycl\[{name}\]"'):
        pretrain(load("simclr/digits", [*tiny, f"trainer.watch=[{name}]"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_service_is_a_mistake_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"trainer\.watch\.0: 'wandbb' was given.*'wandb'"):
        load("simclr/digits", ["trainer.watch=[wandbb]"])


def stopped_and_resumed(run: Path, kind: type[Writer]) -> None:
    """Six steps, of which the fourth and fifth are done twice: stopped at 5, resumed from 3."""
    made = recipe("trainer.stop.epochs=2")

    def start(*others: Any) -> Any:
        observers = [kind(run, made), *others, Metrics(run, 3)]  # type: ignore[call-arg]
        loop = loop_of(made, method_of(made), run=run, observers=observers)
        for other in others:
            other.loop = loop
        return loop

    def fit(loop: Any) -> None:
        try:
            loop.fit()
        finally:
            loop.observers[0].close()

    first = start(StopAfter(5))
    first.save = lambda wait=False: type(first).save(first) if first.step == 3 else None
    with pytest.raises(KeyboardInterrupt):
        fit(first)
    second = start()
    second.load(checkpoint.load(checkpoint.require(run), 0))
    fit(second)


def test_wandb_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: raycl[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    stopped_and_resumed(tmp_path, Wandb)
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
    deadline = time.monotonic() + 30
    while len(recorded(first) + recorded(second)) < 8 and time.monotonic() < deadline:
        time.sleep(0.2)  # the process of W&B writes the file, at times after finish() is back
    one, two = recorded(first), recorded(second)
    assert [row["_step"] for row in one] == [1, 2, 3, 4, 5]
    assert [row["_step"] for row in two] == [4, 5, 6]
    losses = {line["step"]: line["loss"] for line in lines(tmp_path) if "loss" in line}
    assert {row["_step"]: row["loss"] for row in [*one, *two]} == losses


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The history in the file of an offline run: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = next(folder.glob("*.wandb")).read_bytes()
    rows, at, parts = [], 7, b""  # 7: the file's own header
    while at < len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of a block
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            items = record.history.item
            if items:
                pairs = [(i.key or ".".join(i.nested_key), json.loads(i.value_json)) for i in items]
                rows.append(dict(pairs))
            parts = b""
    return rows


def test_mlflow_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: raycl[mlflow]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    run = tmp_path / "run"
    run.mkdir()
    stopped_and_resumed(run, MLflow)
    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    assert found.data.params["method.temperature"] == "0.5"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]
    losses = {line["step"]: line["loss"] for line in lines(run) if "loss" in line}
    assert {metric.step: metric.value for metric in history} == pytest.approx(losses)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_mlflow_that_does_not_answer_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: raycl[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RayclError, match=r"trainer\.watch: mlflow at http://127\.0\.0\.1:9: "):
        MLflow(tmp_path, recipe()).after_step(event(1, {"loss": 1.0}))


def test_ray_exports_what_is_logged(cluster: Cluster) -> None:
    """Read where Prometheus reads it: at the metrics port of the node."""
    import ray

    @ray.remote(num_cpus=0)
    class Rank:
        def __init__(self) -> None:
            self.gauges = Prometheus("my-run")

        def log(self, metrics: dict[str, float]) -> None:
            self.gauges.after_step(event(1, metrics))

    rank: Any = Rank.remote()
    logged = {"loss": 1.25, "images_per_second": 640.0, "step_time": 0.1, "wait_share/read": 0.5}
    ray.get(rank.log.remote(logged))
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, found = time.monotonic() + 60, ""
    while "raycl_loss" not in found and time.monotonic() < deadline:
        time.sleep(1)
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {cluster.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = answer.read().decode()
    for name, value in logged.items():
        start = f"ray_raycl_{name.replace('/', '_')}{{"
        (line,) = [line for line in found.splitlines() if line.startswith(start)]
        assert 'run="my-run"' in line and float(line.rpartition(" ")[2]) == value
