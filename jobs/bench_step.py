"""Steps per second of raycl's loop against a bare PyTorch loop, and what the data path adds.

    python jobs/bench_step.py [--workers 1 2] [--rounds 7] [--steps 20] [--json FILE]

Same model, batch, optimizer and random data; with two workers two processes on this machine, the
bare loop with DistributedDataParallel. Neither side loads data. A third side is raycl's loop fed by
its loader from a shard of raw images, decoded, cut and augmented as the recipe says. The sides run
in turns, so that a drift of the machine's speed meets all; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raycl.beton.fields import IntField, RGBImageField
from raycl.beton.writer import Writer
from raycl.data.host import Waits
from raycl.data.loader import Loader
from raycl.data.plan import local_bundles
from raycl.methods.base import Batch, Method, Step
from raycl.nn import collectives
from raycl.recipe import Recipe, load
from raycl.report.machine import write_figures
from raycl.train.loop import Loop, Place
from raycl.train.observers.measure import Embeddings, Throughput
from raycl.train.run import plan_of

IMAGE = 32  # side of the raw images


class RandomBatches:
    """The same random batch for ever; as a loader it never lets the step wait."""

    waits, substituted = Waits(), 0

    def __init__(self, rows: int, size: int, steps: int, device: torch.device) -> None:
        self.steps = steps
        views = torch.rand(2, rows, 3, size, size, device=device)
        self.batch: Batch = {
            "id": torch.arange(rows, device=device),
            "view1": views[0].contiguous(memory_format=torch.channels_last),
            "view2": views[1].contiguous(memory_format=torch.channels_last),
        }

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for _ in range(start, self.steps):
            yield self.batch


class Bare(nn.Module):
    """A method as DistributedDataParallel wants it: one call from batch to loss."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, step: Step) -> Tensor:
        return self.method.objective(self.method.embed(batch), step).loss


class Sides:
    """What is compared, on one rank; each side returns steps per second."""

    def __init__(self, workers: int, batch: int, steps: int, shard: Path) -> None:
        self.recipe = recipe_of(workers, batch, steps, shard)
        self.steps, self.rank, self.world = steps, collectives.rank(), workers
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.views = {name: stream.views for name, stream in self.recipe.streams.items()}
        size = self.views["images"]["view1"].size
        self.batches = RandomBatches(batch, size, steps, self.device)

    def bare(self) -> float:
        """A loop as one writes it by hand."""
        model: nn.Module = Bare(self.recipe.build()).to(
            self.device, memory_format=torch.channels_last
        )
        if self.world > 1:
            model = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4, fused=True)
        model.train()

        def run() -> None:
            for index in range(self.steps):
                loss = model(self.batches.batch, Step(index, 0, self.steps))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return self._timed(run)

    def raycl(self) -> float:
        """The loop with the observers of a real run."""
        return self._loop(self.batches)

    def raycl_with_data(self) -> float:
        plan, lanes = plan_of(self.recipe, Path()), [self.rank]
        return self._loop(
            Loader(
                plan, self.views, lanes, lambda e, s: local_bundles(plan, lanes, e, s), self.device,
                self.recipe.trainer.seed, 1, "error", 0.0, False,
            )
        )  # fmt: skip

    def _loop(self, batches: RandomBatches | Loader) -> float:
        rows = self.recipe.trainer.batch * self.world
        observers = [Throughput(batches, rows), Embeddings()]
        place = Place(self.device, [self.rank], self.rank, self.world)
        loop = Loop(self.recipe, self.recipe.build(), batches, place, observers=observers)
        return self._timed(loop.fit)

    def _timed(self, run: Callable[[], object]) -> float:
        collectives.barrier()
        begin = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        collectives.barrier()
        return self.steps / (time.perf_counter() - begin)


def recipe_of(workers: int, batch: int, steps: int, shard: Path) -> Recipe:
    return load(
        "simclr/digits",
        [f"trainer.lanes={workers}", f"trainer.workers={workers}", f"trainer.batch={batch}",
         f"trainer.stop={{epochs: 1, steps: {steps}}}", "optimizer.warmup_epochs=0",
         "evaluation.every_epochs=0", f"data.train={shard}"],
    )  # fmt: skip


def rank(
    index: int, workers: int, arguments: argparse.Namespace, shard: Path, folder: str
) -> dict[str, list[float]]:
    """All rounds on one rank; rank 0 prints them."""
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        dist.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", rank=index, world_size=workers,
            init_method=f"file://{folder}/rendezvous{workers}", timeout=timedelta(seconds=120),
        )  # fmt: skip
    sides = Sides(workers, arguments.batch, arguments.steps, shard)
    turns = {"bare": sides.bare, "raycl": sides.raycl, "with data": sides.raycl_with_data}
    for side in turns.values():  # warm up
        side()
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(arguments.rounds):
        for name in list(turns) if number % 2 else list(turns)[::-1]:
            rates[name].append(turns[name]())
        if index == 0:
            shown = ", ".join(f"{name} {values[-1]:.2f}" for name, values in rates.items())
            print(f"{workers} workers, round {number}: {shown} steps/s", flush=True)
    if workers > 1:
        dist.destroy_process_group()
    if index == 0:
        torch.save(rates, f"{folder}/{workers}.pt")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    arguments = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "raw.beton"
        generator = np.random.default_rng(0)
        with Writer(shard, {"image": RGBImageField("raw"), "label": IntField()}) as writer:
            for index in range(arguments.steps * arguments.batch * max(arguments.workers)):
                pixels = generator.integers(0, 256, (IMAGE, IMAGE, 3), np.uint8)
                writer.write({"image": pixels, "label": index % 10})
        for workers in arguments.workers:
            if workers == 1:
                rates = rank(0, 1, arguments, shard, folder)
            else:
                torch.multiprocessing.spawn(
                    rank, (workers, arguments, shard, folder), nprocs=workers
                )
                rates = torch.load(f"{folder}/{workers}.pt")
            for name, one, two in (
                ("raycl / bare", "raycl", "bare"), ("with data / from memory", "with data", "raycl")
            ):  # fmt: skip
                ratios = [a / b for a, b in zip(rates[one], rates[two], strict=True)]
                spread = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
                figures[f"{workers} workers: {name}"] = {
                    "median": statistics.median(ratios), "deviation": spread, "rounds": ratios,
                }  # fmt: skip
                print(f"{workers} workers: {name}: {statistics.median(ratios):.3f} ± {spread:.3f}")
    if arguments.json:
        write_figures(arguments.json, figures, ["raycl", "torch", "numpy"])


if __name__ == "__main__":
    main()
