"""MVGRL on graphs of up to a million nodes, and beside the published way of computing.

    python jobs/bench_graphs.py [--nodes 10000 100000 1000000] [--steps 300] [--json FILE]
    python jobs/bench_graphs.py --nodes --data CORA [--seeds 1] [--json FILE]

First, what an epoch costs: random graphs with degrees of a power law, 10 edges and 64 features a
node, are imported in windows of 2,000 nodes and trained by the recipe mvgrl/cora with dim=128 and
four windows a step. Import and training are processes of their own, so that each has its own peak
of memory, mapped pages of files included. Seconds come from the steps that were made, which need
not be whole epochs; the first ten are not counted. Those of the processor are of all its threads,
and other work beside it changes them little.

Then, with Cora as shards, the time to train a seed until the loss has not fallen for 20 steps: the
recipe as it is, and the same model in plain torch on dense matrices, four random windows of 2,000
nodes a step, as the released code has it. They run in turns; accuracies are those of the recipe's
probe on the public split.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from raycl.data.shards import Shards
from raycl.data.sink import import_dataset
from raycl.evaluate.graphs import node_probe
from raycl.recipe import load
from raycl.report.machine import write_figures
from raycl.train.evaluation import evaluate
from raycl.train.trainer import pretrain
from raycl.views.graph import adjacency, normalised, ppr, row_normalised
from raycl.views.packing import Graph

FEATURES, DIM, EDGES, WINDOW, WINDOWS = 64, 128, 10, 2000, 4
WARM, EVERY = 10, 10  # steps that are not counted, and steps between two times


@dataclass(frozen=True)
class Cost:
    """What a graph of so many nodes costs; seconds, and megabytes.

    Attributes:
        kept: share of the edges that lie within a window.
        steps: that were made; an epoch has `epoch_steps`.
        thousand, processor: of a thousand nodes.
        before: of `peak`, what the process had when training began.
    """

    nodes: int
    kept: float
    import_seconds: float
    import_peak: float
    steps: int
    epoch_steps: int
    epoch: float
    thousand: float
    processor: float
    before: float
    peak: float


def power_law(nodes: int, edges: int, seed: int = 0) -> np.ndarray:
    """Edges (2, edges) of a random graph whose expected degrees fall off with exponent 2.5."""
    draw = np.random.default_rng(seed)
    weight = np.cumsum(np.arange(1, nodes + 1) ** (-1 / 1.5))
    ends = np.searchsorted(weight / weight[-1], draw.random((2, edges)))
    return draw.permutation(nodes)[ends]


def cost(nodes: int, steps: int, folder: Path) -> Cost:
    imported = alone(make, nodes, folder)
    trained = alone(train, folder, steps)
    windows = -(-nodes // WINDOW) // WINDOWS  # a last step that is not full is left out
    thousands = WINDOW * WINDOWS / 1000
    return Cost(
        nodes=nodes,
        kept=imported["kept"],
        import_seconds=imported["seconds"],
        import_peak=imported["peak"],
        steps=trained["steps"],
        epoch_steps=windows,
        epoch=trained["seconds"] * windows,
        thousand=trained["seconds"] / thousands,
        processor=trained["processor"] / thousands,
        before=trained["before"],
        peak=trained["peak"],
    )


def make(nodes: int, folder: Path) -> dict[str, float]:
    """Imports a graph into FOLDER/shards."""
    edges = power_law(nodes, EDGES * nodes)
    x = np.random.default_rng(1).random((nodes, FEATURES), np.float32)
    np.savez(folder / "graph.npz", edges=edges, x=x)
    distinct = adjacency(edges, nodes).nnz / 2
    del edges, x
    begin = time.perf_counter()
    import_dataset("graph", folder / "graph.npz", folder / "shards", window=WINDOW)
    seconds, shards = time.perf_counter() - begin, Shards(folder / "shards")
    within = sum(Graph.of(shards.read(i)["graph"]).edges.shape[1] for i in range(len(shards)))
    return {"seconds": seconds, "peak": memory("VmHWM"), "kept": within / distinct}


def train(folder: Path, steps: int) -> dict[str, float]:
    """Steps of the recipe: their number, seconds of one, and memory."""
    changes = [
        f"data.train={folder / 'shards'}", f"method.features={FEATURES}", f"method.dim={DIM}",
        "views.entries=none", f"trainer.batch={WINDOWS}", "trainer.workers=1",
        f"trainer.log_every={EVERY}", f"trainer.stop={{epochs: {steps}, steps: {steps}}}",
        "trainer.device=cpu",
    ]  # fmt: skip
    before, times = memory("VmRSS"), dict[int, tuple[float, float]]()

    def hear(record: dict[str, Any]) -> None:
        times[record["step"]] = time.perf_counter(), time.process_time()

    pretrain(load("mvgrl/cora", changes), folder / "run", hear)
    first, last = min(step for step in times if step >= WARM), max(times)
    wall, cpu = ((b - a) / (last - first) for a, b in zip(times[first], times[last], strict=True))
    found = {"seconds": wall, "processor": cpu, "steps": last}
    return found | {"before": before, "peak": memory("VmHWM")}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory(name: str) -> float:
    """A figure of this process in MB: VmRSS, what is resident, or VmHWM, the most that was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1000


class Dense(nn.Module):
    """MVGRL of nodes as released, on matrices (B, n, n) and features (B, n, F) that are dense."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(features, dim, bias=False) for _ in range(2))
        self.biases = nn.ParameterList(torch.zeros(dim) for _ in range(2))
        self.acts = nn.ModuleList(nn.PReLU() for _ in range(2))
        bound = (6 / (dim * dim + dim)) ** 0.5
        self.score = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.shift = nn.Parameter(torch.zeros(1))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)

    def views(self, matrices: tuple[Tensor, Tensor], x: Tensor) -> list[Tensor]:
        """H of both views, (B, n, dim)."""
        parts = zip(self.layers, self.biases, self.acts, matrices, strict=True)
        return [act(matrix @ layer(x) + bias) for layer, bias, act, matrix in parts]

    def forward(self, matrices: tuple[Tensor, Tensor], x: Tensor, order: Tensor) -> Tensor:
        """The loss; rows x[:, order] are those of the false graph."""
        h1, h2 = self.views(matrices, x)
        f1, f2 = self.views(matrices, x[:, order])
        c1, c2 = (h.mean(1, keepdim=True).sigmoid() @ self.score.T for h in (h1, h2))
        true, false = (
            torch.cat([(a * c1).sum(2), (b * c2).sum(2)]) + self.shift
            for a, b in ((h2, h1), (f2, f1))
        )
        return (F.softplus(-true).mean() + F.softplus(false).mean()) / 2


@dataclass(frozen=True)
class Trained:
    """How long a seed took, in all and of the processor, and the accuracy of the probe."""

    seconds: float
    processor: float
    steps: int
    accuracy: float


def sparse(data: Path, seed: int) -> Trained:
    """The recipe as it is, its checkpoints and metrics included."""
    changes = [f"data.train={data}", f"data.test={data}", "trainer.workers=1"]
    changes += [f"trainer.seed={seed}", "trainer.device=cpu", "evaluation.protocols=[nodes]"]
    with tempfile.TemporaryDirectory() as folder:
        begin, cpu = time.perf_counter(), time.process_time()
        run = pretrain(load("mvgrl/cora", changes), Path(folder) / "run")
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        steps = max(record["step"] for record in records)
        return Trained(seconds, cpu, steps, evaluate(run)["rows"][0]["score"])


def dense(data: Path, seed: int) -> Trained:
    """As released; A_hat and S are made once, and cut for every step."""
    torch.manual_seed(seed)
    recipe = load("mvgrl/cora")
    graph = Graph.of(Shards(data).read(0)["graph"])
    begin, cpu = time.perf_counter(), time.process_time()
    edges, features = adjacency(graph.edges, graph.nodes), row_normalised(graph.x)
    whole = tuple(torch.from_numpy(m).float() for m in (normalised(edges).toarray(), ppr(edges)))
    x = torch.from_numpy(features.toarray()).float()
    model = Dense(x.shape[1], recipe.method_config.dim)
    optimizer = torch.optim.Adam(model.parameters(), recipe.optimizer.lr)
    patience, best, since, step = recipe.trainer.stop.patience, float("inf"), 0, 0
    while since < patience.epochs and step < recipe.trainer.stop.epochs:
        starts = torch.randint(graph.nodes - WINDOW + 1, (WINDOWS,)).tolist()
        cuts = tuple(
            torch.stack([m[s : s + WINDOW, s : s + WINDOW] for s in starts]) for m in whole
        )
        rows = torch.stack([x[s : s + WINDOW] for s in starts])
        loss = model(cuts, rows, torch.randperm(WINDOW))
        optimizer.zero_grad()
        loss.backward()
        # The loss is that of the weights before the update, which are the ones to restore.
        if loss.item() < best:
            best, since, kept = loss.item(), 0, copy.deepcopy(model.state_dict())
        else:
            since += 1
        optimizer.step()
        step += 1
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    model.load_state_dict(kept)
    with torch.no_grad():
        h1, h2 = model.views(tuple(m[None] for m in whole), x[None])
    y, h = torch.from_numpy(graph.labels).long(), (h1 + h2)[0]
    train_, test = (torch.from_numpy(graph.splits[name]) for name in ("train", "test"))
    found = node_probe(h[train_], y[train_], h[test], y[test], seed=seed)
    return Trained(seconds, cpu, step, found.mean)


RIVALS: dict[str, Callable[[Path, int], Trained]] = {"mvgrl/cora": sparse, "dense, released": dense}


def show_costs(costs: list[Cost]) -> None:
    table = Table(
        "nodes", "edges kept", "import", "its peak", "steps (of an epoch)", "an epoch",
        "1,000 nodes", "of the processor", "peak (at the start)",
    )  # fmt: skip
    for c in costs:
        table.add_row(
            f"{c.nodes:,}", f"{c.kept:.1%}", f"{c.import_seconds:.1f} s", f"{c.import_peak:.0f} MB",
            f"{c.steps} ({c.epoch_steps})", f"{c.epoch:.2f} s", f"{c.thousand * 1e3:.1f} ms",
            f"{c.processor * 1e3:.1f} ms", f"{c.peak:.0f} ({c.before:.0f}) MB",
        )  # fmt: skip
    Console(width=150).print(table)


def show_rivals(found: dict[str, list[Trained]]) -> None:
    table = Table("way", "a seed", "of the processor", "steps", "accuracy of each seed")
    for way, seeds in found.items():
        seconds, cpu, steps = (
            statistics.mean(getattr(seed, name) for seed in seeds)
            for name in ("seconds", "processor", "steps")
        )
        accuracies = " ".join(f"{seed.accuracy:.1%}" for seed in seeds)
        table.add_row(way, f"{seconds:.1f} s", f"{cpu:.1f} s", f"{steps:.0f}", accuracies)
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300, help="of training, of each size")
    parser.add_argument("--data", type=Path, help="Cora, imported by `raycl data import graph`")
    parser.add_argument("--seeds", type=int, default=1, help="of the comparison on Cora")
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    arguments = parser.parse_args()
    costs = []
    for nodes in arguments.nodes:
        with tempfile.TemporaryDirectory() as folder:
            costs.append(cost(nodes, arguments.steps, Path(folder)))
        print(costs[-1], flush=True)
    if costs:
        show_costs(costs)
    found: dict[str, list[Trained]] = {way: [] for way in RIVALS}
    for seed in range(arguments.seeds if arguments.data else 0):
        for way in list(RIVALS)[:: -1 if seed % 2 else 1]:
            found[way].append(RIVALS[way](arguments.data, seed))
            print(way, found[way][-1], flush=True)
    if arguments.data:
        show_rivals(found)
    if arguments.json:
        figures = {"costs": [asdict(c) for c in costs]}
        figures |= {way: [asdict(s) for s in seeds] for way, seeds in found.items()}
        write_figures(arguments.json, figures, ["raycl", "torch", "numpy", "scipy"])


if __name__ == "__main__":
    main()
