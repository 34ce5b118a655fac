"""Runs on graphs from end to end, at both levels, and the protocols that score them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from raycl.data.sink import import_dataset
from raycl.errors import RayclError
from raycl.recipe import load
from raycl.report.page import write_report
from raycl.train import checkpoint
from raycl.train.evaluation import evaluate
from raycl.train.run import plan_of
from raycl.train.trainer import pretrain
from tests.conftest import Cluster
from tests.train.test_trainer import series
from tests.views.graphs import gin, path, ring

FEATURES, NODES, CLASSES = 60, 540, 3
UNKNOWN = np.arange(530, NODES)  # without a class
Rows = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Places of a graph whose classes tell who is linked, and what nodes have less well."""
    folder, draw = tmp_path_factory.mktemp("nodes"), np.random.default_rng(0)
    y = np.arange(NODES) % CLASSES
    ends = draw.integers(0, NODES, (2, 12 * NODES))
    edges = ends[:, (y[ends[0]] == y[ends[1]]) | (draw.random(ends.shape[1]) < 0.1)]
    own = np.arange(FEATURES) % CLASSES == y[:, None]
    x = (draw.random((NODES, FEATURES)) < np.where(own, 0.3, 0.15)).astype(float)
    at = draw.permutation(UNKNOWN[0])
    train = np.concatenate([at[y[at] == label][:20] for label in range(CLASSES)])
    test = np.concatenate([np.setdiff1d(at, train)[:200], UNKNOWN[:5]])
    y[UNKNOWN] = -1
    splits = {"train_idx": train, "test_idx": test}
    np.savez(folder / "blocks.npz", edges=edges, x=x, y=y, **splits)
    import_dataset("graph", folder / "blocks.npz", folder / "whole")
    import_dataset("graph", folder / "blocks.npz", folder / "windows", window=100)
    return [f"data.{name}={folder / 'whole'}" for name in ("train", "test")]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Places of twelve rings and as many paths."""
    folder = tmp_path_factory.mktemp("shapes")
    drawn = [(shape(n), label) for n in range(6, 18) for label, shape in enumerate((ring, path))]
    import_dataset("graph", gin(folder / "shapes.txt", drawn), folder / "set")
    return [f"data.{name}={folder / 'set'}" for name in ("train", "test")]


def of_nodes(nodes: list[str], *changes: str) -> list[str]:
    return [
        *nodes, "trainer.workers=1", f"method.features={FEATURES}", "method.dim=32",
        "optimizer.lr=0.01", "trainer.stop.epochs=20", "trainer.log_every=5",
        "trainer.checkpoint.every_epochs=10", "evaluation.nodes.runs=5", *changes,
    ]  # fmt: skip


def of_graphs(shapes: list[str], *changes: str) -> list[str]:
    return [
        *shapes, "trainer.workers=1", "method.features=2", "method.dim=8", "method.layers=2",
        "trainer.batch=8", "trainer.stop.epochs=4", "trainer.log_every=1",
        "trainer.checkpoint.every_epochs=2", *changes,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def node_run(nodes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(load("mvgrl/cora", of_nodes(nodes)), tmp_path_factory.mktemp("runs") / "nodes")


@pytest.fixture(scope="module")
def graph_run(shapes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(
        load("mvgrl/mutag", of_graphs(shapes)), tmp_path_factory.mktemp("runs") / "graphs"
    )


def scored(run: Path, *changes: str, metric: str = "accuracy") -> Rows:
    """Scores by encoder and protocol."""
    rows = evaluate(run, changes, baselines=True)["rows"]
    return {(r["representation"], r["protocol"]): r["score"] for r in rows if r["metric"] == metric}


def test_nodes_are_told_apart_better_than_by_what_they_have(node_run: Path) -> None:
    found = scored(node_run, "evaluation.protocols=[nodes]")
    plain, untrained, trained = (
        found[f"{who}", "nodes"]
        for who in ("node features", "untrained encoder", "trained encoder")
    )
    assert 0.5 < plain < untrained < trained and trained > 0.9
    losses = series(node_run, "loss")
    assert losses[-1] < losses[0]


def test_a_probe_is_fitted_to_the_split_that_was_asked_for(node_run: Path) -> None:
    stored, paper = (
        evaluate(node_run, ["evaluation.protocols=[nodes]", f"evaluation.nodes.split={split}"])[
            "rows"
        ]
        for split in ("stored", "paper")
    )
    assert [(row["metric"], row["train"], row["runs"]) for row in (*stored, *paper)] == [
        ("accuracy", 60, 5),
        ("accuracy, first 140 nodes", 140, 5),
    ]


def test_clusters_of_nodes_are_their_classes(node_run: Path, cluster: Cluster) -> None:
    rows = evaluate(node_run, ["evaluation.protocols=[clusters]"])["rows"]
    assert {row["metric"] for row in rows} == {"nmi", "ari"}
    assert all(row["score"] > 0.3 and row["runs"] == 50 for row in rows)
    assert {(row["train"], row["labels"]) for row in rows} == {(UNKNOWN[0], "no labels")}
    (names,) = (node_run / "tensorboard" / "projector").rglob("metadata.tsv")
    assert names.read_text().split("\n").count("no class") == len(UNKNOWN)


def test_graphs_are_told_apart(graph_run: Path, cluster: Cluster) -> None:
    protocols = "evaluation.protocols=[graphs, clusters, knn]"
    found = scored(graph_run, protocols, "evaluation.knn.k=3")
    encoders = ("node features", "untrained encoder", "trained encoder")
    assert set(found) == {(who, name) for who in encoders for name in ("graphs", "knn")}
    assert found["trained encoder", "graphs"] > 0.8
    with np.load(graph_run / "embedding.npz") as embedding:
        assert embedding["features"].shape == (24, 8)
        assert np.bincount(embedding["labels"]).tolist() == [12, 12]
    page = write_report(graph_run).read_text()
    assert "node features" in page and "trained encoder" in page


@pytest.mark.parametrize("level", ["node", "graph"])
def test_the_baseline_of_one_view_is_trained_by_the_same_recipes(
    level: str, nodes: list[str], shapes: list[str], tmp_path: Path, cluster: Cluster
) -> None:
    if level == "node":
        recipe = load("mvgrl/cora", of_nodes(nodes, "method.name=dgi"))
    else:
        recipe = load("mvgrl/mutag", of_graphs(shapes, "method.name=dgi"))
    run = pretrain(recipe, tmp_path / "run")
    losses = series(run, "loss")
    assert losses[-1] < losses[0]
    (row,) = evaluate(run, [f"evaluation.protocols=[{level}s]"])["rows"]
    assert row["score"] > 0.85


def test_windows_of_a_graph_are_trained_on_and_the_whole_is_scored(
    nodes: list[str], tmp_path: Path
) -> None:
    windows = nodes[0].replace("whole", "windows")
    changes = of_nodes([windows, nodes[1]], "trainer.batch=2", "trainer.lanes=2")
    run = pretrain(load("mvgrl/cora", changes), tmp_path / "run")
    (row,) = evaluate(run, ["evaluation.protocols=[nodes]"])["rows"]
    assert row["score"] > 0.8 and row["test"] == 1
    # The same nodes, from their windows: labels and splits have come along.
    changes = ["evaluation.protocols=[nodes]", windows.replace("train", "test")]
    (row,) = evaluate(run, changes)["rows"]
    assert row["train"] == 60 and row["test"] == 6 and row["score"] > 0.6


def test_two_ray_workers_are_one_worker(
    shapes: list[str], tmp_path: Path, cluster: Cluster
) -> None:
    """Graphs travel through Ray Data, and those of the other rank are negatives."""
    changes = of_graphs(shapes, "trainer.lanes=2", "trainer.batch=4", "trainer.stop.epochs=2")
    runs = [
        pretrain(load("mvgrl/mutag", [*changes, f"trainer.workers={n}"]), tmp_path / f"{n}")
        for n in (1, 2)
    ]
    one, two = (series(run, "loss") for run in runs)
    assert len(one) >= 6 and two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("run", ["node_run", "graph_run"])
def test_a_resumed_run_is_the_uninterrupted_one(
    run: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From the checkpoint in its middle."""
    whole: Path = request.getfixturevalue(run)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed, ignore=shutil.ignore_patterns("tensorboard"))
    checkpoint.require(resumed).clear()
    (resumed / "encoder.safetensors").unlink()
    assert 0 < checkpoint.cursor(checkpoint.require(resumed))[0] < load(whole).trainer.stop.epochs
    pretrain(load(whole), resumed)
    one, two = (load_file(r / "encoder.safetensors") for r in (whole, resumed))
    assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)
    assert series(resumed, "loss") == series(whole, "loss")


def test_a_wrong_number_of_features_is_told_with_the_right_one(
    nodes: list[str], shapes: list[str], tmp_path: Path
) -> None:
    for name, changes, number in (
        ("mvgrl/cora", of_nodes(nodes, "method.features=9"), FEATURES),
        ("mvgrl/mutag", of_graphs(shapes, "method.features=9"), 2),
    ):
        with pytest.raises(RayclError, match=f"set method.features={number}$"):
            pretrain(load(name, changes), tmp_path / name)


@pytest.mark.parametrize("change", ["data.decode_on=cluster", "data.engine=ffcv"])
def test_graphs_are_packed_by_the_workers_alone(
    shapes: list[str], tmp_path: Path, change: str
) -> None:
    with pytest.raises(RayclError, match="data.decode_on, data.engine: graphs are packed"):
        plan_of(load("mvgrl/mutag", of_graphs(shapes, change)), tmp_path)


@pytest.mark.parametrize("protocol", ["dense", "geometry", "linear-sgd", "localization"])
def test_protocols_of_images_refuse_graphs(graph_run: Path, protocol: str) -> None:
    with pytest.raises(RayclError, match=f"{protocol} looks at images, and .* nodes, graphs, clus"):
        evaluate(graph_run, [f"evaluation.protocols=[{protocol}]"])


def test_protocols_of_graphs_refuse_what_they_cannot_score(
    node_run: Path, graph_run: Path, whole: Path
) -> None:
    for run, protocol, message in (
        (graph_run, "nodes", "no nodes with a class in its splits train and test"),
        (node_run, "graphs", "no classes of graphs, .*for nodes it is called nodes"),
        (whole, "graphs", "graphs scores graphs, and the samples of .* are none"),
    ):
        with pytest.raises(RayclError, match=message):
            evaluate(run, [f"evaluation.protocols=[{protocol}]"])
