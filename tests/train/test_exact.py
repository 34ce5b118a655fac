"""One recipe of six lanes as 1, 2 and 3 ranks, interrupted and gone on with by another number."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from raycl.nn import collectives
from raycl.recipe import Recipe, load
from raycl.train import checkpoint
from raycl.train.loop import Loop, Place
from raycl.train.observers import Event, Observer
from tests.nn.distributed import run
from tests.train.toys import Fixed, Queued

AFTER = 50  # steps after the change
STEPS = 7  # of an epoch


def recipe(total: int) -> Recipe:
    return load(
        "simclr/digits",
        [
            "method.encoder.width=8",
            "method.batch_norm=global",
            "method.projector={hidden: 8, dim: 4}",
            "evaluation.every_epochs=0",
            "optimizer={name: sgd, lr: 0.001, lr_scaling: none, warmup_epochs: 1}",
            "trainer={workers: 1, lanes: 6, batch: 4, log_every: 1}",
            "trainer.checkpoint.every_epochs=99",
            f"trainer.stop={{epochs: 99, steps: {total}}}",
        ],
    )


class Losses(Observer):
    def __init__(self, stop: int) -> None:
        self.stop, self.values = stop, dict[int, float]()
        self.loop: Loop

    def after_step(self, event: Event) -> None:
        self.values[event.step.index] = event.metrics["loss"]
        self.loop.interrupted = event.step.index + 1 == self.stop


def part(kind: str, folder: str, stop: int, total: int) -> dict[str, object]:
    """Trains from the newest checkpoint to a step; on as many ranks as call it."""
    torch.set_num_threads(1)
    rank, world = collectives.rank(), collectives.world_size()
    made = recipe(total)
    torch.manual_seed(0)
    method = (Queued() if kind == "queue" else made.build()).double()
    lanes = list(range(rank, 6, world))
    place = checkpoint.folder(Path(folder))
    writer = checkpoint.Writer(place, made.trainer.checkpoint, rank, world)
    losses = Losses(stop)
    batches = Fixed(lanes, 4, STEPS)
    device = torch.device("cpu")
    loop = Loop(
        made, method, batches, Place(device, lanes, rank, world), writer=writer, observers=[losses]
    )
    losses.loop = loop
    if found := checkpoint.newest(place):
        loop.load(checkpoint.load(found, rank, world))
    try:
        loop.fit()
    except KeyboardInterrupt:
        assert loop.step == stop
    return {"losses": losses.values, "weights": method.state_dict()}


def on(world: int, *arguments: object) -> dict[str, dict[object, object]]:
    if world == 1:
        threads = torch.get_num_threads()
        try:
            return part(*arguments)  # type: ignore[arg-type, return-value]
        finally:
            torch.set_num_threads(threads)
    results: list[dict[str, dict[object, object]]] = run(world, part, *arguments)
    return results[0]


@pytest.mark.parametrize("kind", ["nt-xent", "queue"])
def test_any_number_of_ranks_goes_on_where_another_left_off(kind: str, tmp_path: Path) -> None:
    """Losses in float64 to a relative 1e-8; with the same number of ranks, the very same weights.

    The first is NT-Xent with batch norm over the global batch, the second a queue of keys with
    batch norm per lane.
    """
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    at = chance.randrange(2, 3 * STEPS)
    total = at + AFTER
    whole = {world: on(world, kind, str(tmp_path / f"whole{world}"), 0, total) for world in (1, 2)}
    for before, after in ((1, 3), (3, 2), (2, 1), (2, 2)):
        folder = str(tmp_path / f"{before}{after}")
        first = on(before, kind, folder, at, total)
        second = on(after, kind, folder, 0, total)
        losses = first["losses"] | second["losses"]
        assert losses.keys() == whole[1]["losses"].keys() == set(range(total))
        worst = max(abs(losses[k] / v - 1) for k, v in whole[1]["losses"].items())  # type: ignore[operator]
        print(f"{kind}: {before} ranks, then {after} from step {at}: losses differ by {worst:.1e}")
        assert worst < 1e-8
        if before == after:
            assert losses == whole[2]["losses"]
            for name, value in whole[2]["weights"].items():
                assert torch.equal(second["weights"][name], value), name  # type: ignore[arg-type]
