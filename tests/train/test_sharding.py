"""Sharded networks train as whole ones do, and their checkpoints are those of any run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raycl.errors import RayclError
from raycl.nn import collectives
from raycl.nn.backbones import ResNet
from raycl.recipe import Recipe, load
from raycl.train import checkpoint, sharding
from raycl.train.loop import Loop, Place
from tests.nn.distributed import run
from tests.train.test_exact import Losses
from tests.train.toys import Fixed

STEPS = 6


def recipe(steps: int, *changes: str) -> Recipe:
    return load(
        "simclr/digits",
        [
            "method.encoder.width=8", "method.batch_norm=global",
            "method.projector={hidden: 8, dim: 4}", "evaluation.every_epochs=0",
            "optimizer={name: adamw, lr: 0.001, lr_scaling: none, warmup_epochs: 0}",
            "trainer={workers: 1, lanes: 4, batch: 4, log_every: 1, channels_last: false}",
            "trainer.checkpoint.every_epochs=1",
            f"trainer.stop={{epochs: 99, steps: {steps}}}", *changes, "optimizer.schedule=constant",
        ],
    )  # fmt: skip


def part(folder: str, stop: int, *changes: str) -> dict[str, Any]:
    """Trains up to a step, on as many ranks as call it; sharded where there are several."""
    torch.set_num_threads(1)
    rank, world = collectives.rank(), collectives.world_size()
    made = recipe(STEPS, "trainer.sharded=true", *changes)
    torch.manual_seed(0)
    method, lanes = made.build().double(), list(range(rank, 4, world))
    place, losses = checkpoint.folder(Path(folder)), Losses(stop % STEPS)
    loop = Loop(
        made, method, Fixed(lanes, 4, 3), Place(torch.device("cpu"), lanes, rank, world),
        writer=checkpoint.Writer(place, made.trainer.checkpoint, rank, world),
        observers=[losses],
    )  # fmt: skip
    losses.loop = loop
    if found := checkpoint.newest(place):
        loop.load(checkpoint.load(found, rank, world))
    with contextlib.suppress(KeyboardInterrupt):
        loop.fit()
    assert loop.step == stop
    held = sum(sharding.local(p).numel() for p in method.parameters())
    return {"weights": sharding.whole(method.state_dict()), "held": held}


KINDS: dict[str, list[str]] = {
    "adamw": [],
    "clip": ["optimizer.clip=0.01"],
    "lars": ["optimizer={name: lars, lr: 0.1, lr_scaling: none, weight_decay: 0.01}"],
    "recompute": [
        "optimizer={name: sgd, lr: 0.1, lr_scaling: none}", "method.encoder.recompute=true"
    ],
    "two passes": ["trainer.lanes_at_once=1", "method.batch_norm=lane"],
}  # fmt: skip


def all_parts(folder: str) -> dict[str, dict[str, Any]]:
    return {kind: part(f"{folder}/{kind}", STEPS, *changes) for kind, changes in KINDS.items()}


def test_sharded_networks_train_as_whole_ones(tmp_path: Path) -> None:
    """Two ranks against one, in float64."""
    ranks = run(2, all_parts, str(tmp_path / "two"))
    for kind, changes in KINDS.items():
        whole = part(str(tmp_path / "whole" / kind), STEPS, *changes)
        assert max(each[kind]["held"] for each in ranks) < 0.6 * whole["held"]
        for each in ranks:
            equal(each[kind]["weights"], whole["weights"], kind)
        found = checkpoint.newest(checkpoint.folder(tmp_path / "two" / kind))
        assert found is not None
        encoder = load_file(Path(found.where) / "encoder.safetensors")
        equal(encoder, {name: whole["weights"][f"encoder.{name}"] for name in encoder}, kind)


def test_a_checkpoint_does_not_know_who_was_sharded(tmp_path: Path) -> None:
    """Two ranks, then one, then two, against one from the start; AdamW has state to hand over."""
    whole = part(str(tmp_path / "whole"), STEPS)
    folder = str(tmp_path / "changing")
    run(2, part, folder, STEPS // 3)
    part(folder, 2 * STEPS // 3)
    for each in run(2, part, folder, STEPS):
        equal(each["weights"], whole["weights"])


def equal(one: dict[str, Tensor], two: dict[str, Tensor], kind: str = "") -> None:
    assert one.keys() == two.keys()
    for name, value in two.items():
        if name.endswith("num_batches_tracked"):  # of forward passes, which parts of a batch are
            continue
        torch.testing.assert_close(one[name], value, rtol=1e-8, atol=1e-10, msg=f"{kind} {name}")


class Loose(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet(18, 8)
        self.temperature = torch.nn.Parameter(torch.ones(()))


def test_parameters_outside_of_networks_are_refused() -> None:
    with pytest.raises(RayclError, match=r"trainer\.sharded: Loose has .* \(temperature\)"):
        sharding.shard(Loose(), torch.device("cpu"))


def test_blocks_are_the_members_of_the_outermost_sequences() -> None:
    encoder = ResNet(18, 8)
    assert len(list(sharding.blocks(encoder))) == 8
