"""Steps per second of raycl's loop against a bare PyTorch loop.

    python jobs/bench_step.py [--rounds 7] [--steps 20] [--json FILE]

Same model, batch, optimizer and random data; one process, no data loading in either. The two run in
turns, so that a drift of the machine's speed meets both; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from raycl.data.host import Waits
from raycl.methods.base import Batch, Step
from raycl.recipe import Recipe, load
from raycl.report.machine import write_figures
from raycl.train.loop import Loop, Place
from raycl.train.observers.measure import Embeddings, Throughput


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


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def bare(recipe: Recipe, batches: RandomBatches, device: torch.device) -> float:
    """A loop as one writes it by hand; returns steps per second."""
    method = recipe.build().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=1e-4)
    method.train()
    begin = time.perf_counter()
    for index in range(batches.steps):
        batch = batches.batch
        output = method.objective(method.embed(batch), Step(index, 0, batches.steps))
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
    synchronise(device)
    return batches.steps / (time.perf_counter() - begin)


def raycl(recipe: Recipe, batches: RandomBatches, device: torch.device) -> float:
    """raycl's loop with the observers of a real run; returns steps per second."""
    rows = len(batches.batch["id"])
    observers = [Throughput(batches, rows), Embeddings()]
    loop = Loop(recipe, recipe.build(), batches, Place(device, [0]), observers=observers)
    begin = time.perf_counter()
    loop.fit()
    synchronise(device)
    return batches.steps / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = load(
        "simclr/digits",
        ["trainer.lanes=1", "trainer.workers=1", f"trainer.batch={arguments.batch}",
         "trainer.stop.epochs=1", "optimizer.warmup_epochs=0", "evaluation.every_epochs=0"],
    )  # fmt: skip
    size = next(iter(recipe.streams["images"].views.values())).size
    batches = RandomBatches(arguments.batch, size, arguments.steps, device)
    bare(recipe, batches, device), raycl(recipe, batches, device)  # warm up
    ratios = []
    for index in range(arguments.rounds):
        pair = [(bare, bare(recipe, batches, device))] if index % 2 else []
        ours = raycl(recipe, batches, device)
        theirs = pair[0][1] if pair else bare(recipe, batches, device)
        ratios.append(ours / theirs)
        print(f"round {index}: raycl {ours:.2f}, bare {theirs:.2f} steps/s, ratio {ratios[-1]:.3f}")
    spread = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    print(f"median ratio {statistics.median(ratios):.3f}, deviation {spread:.3f}, on {device}")
    if arguments.json:
        figures = {"raycl / bare": statistics.median(ratios), "deviation": spread, "rounds": ratios}
        write_figures(arguments.json, figures, ["raycl", "torch", "numpy"])


if __name__ == "__main__":
    main()
