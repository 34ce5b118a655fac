"""Protocols of graphs: of their nodes, of sets of them, and of clusters of either."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raycl.data.tasks import each
from raycl.errors import RayclError
from raycl.evaluate.graphs import Scores, clusters, graph_svm, node_probe
from raycl.methods.base import Batch
from raycl.methods.mvgrl import members
from raycl.recipe import Recipe
from raycl.train.corpus import ShardCorpus
from raycl.views.packing import SPLITS, Graph, GraphView

PAPER = {"train": slice(140), "test": slice(500, 1500)}  # of MVGRL on Cora, by place in the file


class NodeFeatures(nn.Module):
    """What nodes have (n, F), or its sums over graphs (G, F): the baseline of encoders."""

    def __init__(self, of_graphs: bool) -> None:
        super().__init__()
        self.of_graphs = of_graphs

    def forward(self, batch: Batch) -> Tensor:
        x = batch.get("x")
        if x is None:
            x = torch.zeros(len(batch["graph"]), int(batch["x.columns"]))
            x = x.to(batch["x.weight"]).index_put(tuple(batch["x.index"]), batch["x.weight"])
        return members(batch) @ x if self.of_graphs else x


def check(recipe: Recipe, protocol: str, test: ShardCorpus) -> None:
    """Refuses data that are no graphs, or lack what a protocol of them scores with."""
    if not isinstance(test.view, GraphView):
        raise RayclError(
            f"evaluation.protocols: {protocol} scores graphs, and the samples of "
            f"{test.shards.place} are none; leave it out"
        )
    if protocol == "graphs" and "label" not in test.shards.fields:
        raise RayclError(
            f"data.test: {test.shards.place} has no classes of graphs, which the protocol graphs "
            f"needs; for nodes it is called nodes"
        )
    if protocol == "nodes":
        _places(recipe, *labels_of_nodes(test))


def scores(
    recipe: Recipe, protocol: str, features: Tensor, test: ShardCorpus
) -> list[dict[str, Any]]:
    """Means and deviations of the runs of a protocol, on features of nodes or graphs (N, D)."""
    ray, seed = partial(each, address=recipe.trainer.address), recipe.trainer.seed
    found: Mapping[str, Scores]
    if protocol == "nodes":
        y, splits = labels_of_nodes(test)
        train, held_out = _places(recipe, y, splits)
        settings, x = recipe.evaluation.nodes, features
        found = {
            "accuracy": node_probe(
                x[train],
                y[train],
                x[held_out],
                y[held_out],
                runs=settings.runs,
                weight_decay=settings.weight_decay,
                seed=seed,
            )
        }
        if settings.split == "paper":
            found = {"accuracy, first 140 nodes": found["accuracy"]}
        rows = len(train)
    elif protocol == "graphs":
        found = {"accuracy": graph_svm(features, test.labels(), seed=seed, each=ray)}
        rows = len(features)
    else:
        y = test.labels() if len(features) == len(test) else labels_of_nodes(test)[0]
        known = y >= 0
        found = clusters(features[known], y[known], seed=seed, each=ray)
        rows = int(known.sum())
    return [
        {
            "labels": "no labels" if protocol == "clusters" else "all",
            "metric": metric,
            "score": runs.mean,
            "deviation": runs.deviation,
            "runs": len(runs.values),
            "train": rows,
        }
        for metric, runs in found.items()
    ]


def labels_of_nodes(test: ShardCorpus) -> tuple[Tensor, dict[str, Tensor]]:
    """Classes (n,) of the nodes of all graphs, -1 for none, and the nodes of each split."""
    view = test.view
    assert isinstance(view, GraphView)
    contents = test.shards.payloads(test.ids, [view.field])[view.field]
    graphs = [Graph.of(content) for content in contents]
    starts = np.cumsum([0, *(graph.nodes for graph in graphs)])
    labels = [np.full(g.nodes, -1) if g.labels is None else g.labels for g in graphs]
    splits = {
        name: torch.from_numpy(
            np.concatenate(
                [
                    g.splits.get(name, np.zeros(0, np.int64)) + start
                    for g, start in zip(graphs, starts, strict=False)
                ]
            )
        )
        for name in SPLITS
    }
    return torch.from_numpy(np.concatenate(labels).astype(np.int64)), splits


def _places(recipe: Recipe, y: Tensor, splits: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The labelled nodes that a probe is fitted to, and those that it is scored on."""
    if recipe.evaluation.nodes.split == "paper":
        splits = {name: torch.arange(len(y))[part] for name, part in PAPER.items()}
    train, test = (splits[name][y[splits[name]] >= 0] for name in ("train", "test"))
    if not len(train) or not len(test):
        raise RayclError(
            "data.test: there are no nodes with a class in its splits train and test, which the "
            "protocol nodes needs; import a graph with train_idx and test_idx"
        )
    return train, test
