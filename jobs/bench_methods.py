"""Steps and losses of methods against lightly's, and what DenseCL costs beside MoCo v2.

    python jobs/bench_methods.py [--rounds 7] [--batch 64] [--size 64] [--json FILE]

Both sides take the same images, encoder, optimizer and sizes of heads; lightly's side is put
together as its documentation does. A step is forward, backward, optimizer and momentum; a loss is
forward and backward on equal tensors. The sides run in turns, and ratios are taken round by round.
lightly comes with the extra `dev`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models import utils
from lightly.models.modules import heads
from torch import Tensor, nn

from raycl.methods import BYOL, DataInfo, DenseCL, Method, MoCo, SimCLR, Step
from raycl.methods.densecl import matches
from raycl.nn import losses
from raycl.nn.backbones import ResNet
from raycl.report.machine import write_figures

WIDTH, HIDDEN, DIM, QUEUE, STEPS = 32, 512, 128, 4096, 5
ENCODER = {"depth": 18, "width": WIDTH}
Run = Callable[[], object]


def ours(method: Method, views: tuple[Tensor, Tensor]) -> Run:
    """Steps of a method as the loop makes them; boxes are those of whole images."""
    method = method.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows, size = len(views[0]), views[0].shape[2]
    batch = {"id": torch.arange(rows), "view1": views[0], "view2": views[1]}
    for name in ("view1", "view2"):
        batch[f"{name}.box"] = torch.tensor([[0, 0, size, size]] * rows)
        batch[f"{name}.flip"] = torch.zeros(rows, dtype=torch.bool)
    optimizer = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad], 1e-3, fused=True
    )
    step = Step(1, 0, 100)

    def run() -> None:
        for output in method.training_step(batch, step):
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        method.after_step(step)

    return run


class Theirs(nn.Module):
    """Networks of lightly's examples, on raycl's encoder; `forward` is from two views to a loss."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.online = nn.ModuleList([ResNet(18, width=WIDTH), *modules])
        self.slow = copy.deepcopy(self.online)
        utils.deactivate_requires_grad(self.slow)

    def follow(self) -> None:
        for fast, slow in zip(self.online, self.slow, strict=True):
            utils.update_momentum(fast, slow, m=0.99)

    def maps(self, networks: nn.ModuleList, x: Tensor) -> Tensor:
        encoder: Any = networks[0]
        found: Tensor = list(encoder.maps(x).values())[-1]
        return found


class TheirSimCLR(Theirs):
    def __init__(self) -> None:
        super().__init__(heads.SimCLRProjectionHead(8 * WIDTH, HIDDEN, DIM))
        self.loss = NTXentLoss(temperature=0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        encoder, head = self.online
        return self.loss(head(encoder(x)), head(encoder(y)))  # type: ignore[no-any-return]


class TheirMoCo(Theirs):
    def __init__(self) -> None:
        super().__init__(heads.MoCoProjectionHead(8 * WIDTH, HIDDEN, DIM))
        self.loss = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, DIM))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.follow()
        encoder, head = self.online
        query = head(encoder(x))
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(y)
            key = utils.batch_unshuffle(self.slow[1](self.slow[0](shuffled)), order)
        return self.loss(query, key)  # type: ignore[no-any-return]


class TheirBYOL(Theirs):
    def __init__(self) -> None:
        super().__init__(heads.BYOLProjectionHead(8 * WIDTH, HIDDEN, DIM))
        self.predictor = heads.BYOLPredictionHead(DIM, HIDDEN, DIM)
        self.loss = NegativeCosineSimilarity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.follow()
        encoder, head = self.online
        p = [self.predictor(head(encoder(view))) for view in (x, y)]
        with torch.no_grad():
            z = [self.slow[1](self.slow[0](view)) for view in (x, y)]
        return (self.loss(p[0], z[1]) + self.loss(p[1], z[0])) / 2  # type: ignore[no-any-return]


class TheirDenseCL(Theirs):
    def __init__(self) -> None:
        head = heads.DenseCLProjectionHead
        super().__init__(head(8 * WIDTH, HIDDEN, DIM), head(8 * WIDTH, HIDDEN, DIM))
        self.of_images = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, DIM))
        self.of_cells = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, DIM))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.follow()
        maps, single, cells = self._heads(self.online, x)
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(y)
            keys = self._heads(self.slow, shuffled)
            key_maps, key, key_cells = (utils.batch_unshuffle(k, order) for k in keys)
        key_cells = utils.select_most_similar(maps, key_maps, key_cells)
        dense = self.of_cells(cells.flatten(end_dim=1), key_cells.flatten(end_dim=1))
        return 0.5 * self.of_images(single, key) + 0.5 * dense  # type: ignore[no-any-return]

    def _heads(self, networks: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.maps(networks, x)
        cells = found.flatten(2).permute(0, 2, 1)
        return cells, networks[1](found.mean((2, 3))), networks[2](cells)


def theirs(model: nn.Module, views: tuple[Tensor, Tensor]) -> Run:
    model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], 1e-3, fused=True
    )

    def run() -> None:
        optimizer.zero_grad()
        model(*views).backward()
        optimizer.step()

    return run


def steps(views: tuple[Tensor, Tensor]) -> dict[str, tuple[Run, Run]]:
    head = {"hidden": HIDDEN, "dim": DIM}
    queued = {"queue": QUEUE, "key_groups": 1, "projector": head}

    def made(kind: type[Method], **settings: Any) -> Run:
        config = kind.Config.model_validate({"encoder": ENCODER, **settings})
        return ours(kind(config, DataInfo(1)), views)

    return {
        "SimCLR step": (made(SimCLR, projector=head), theirs(TheirSimCLR(), views)),
        "MoCo v2 step": (made(MoCo, **queued), theirs(TheirMoCo(), views)),
        "BYOL step": (made(BYOL, batch_norm="lane", head=head), theirs(TheirBYOL(), views)),
        "DenseCL step": (
            made(DenseCL, warmup_steps=0, **queued),
            theirs(TheirDenseCL(), views),
        ),
    }


def loss_runs(rows: int, cells: int) -> dict[str, tuple[Run, Run]]:
    """Losses forward and backward, on rows (N, D) and, for DenseCL, on maps of so many cells."""
    q, k = (torch.randn(rows, DIM, requires_grad=grad) for grad in (True, False))
    both = torch.randn(2, rows, DIM, requires_grad=True)
    negatives = losses.unit(torch.randn(QUEUE, DIM))
    maps = torch.randn(2, rows, 8 * WIDTH, cells)
    dense = torch.randn(rows, DIM, cells, requires_grad=True)
    dense_keys = torch.randn(rows, DIM, cells)
    pair, bank, many = (
        NTXentLoss(temperature=0.2, memory_bank_size=size)
        for size in (0, (QUEUE, DIM), (QUEUE, DIM))
    )
    cosine = NegativeCosineSimilarity()

    def our_dense() -> Tensor:
        match = matches(maps[0], maps[1])
        keys = dense_keys.gather(2, match[:, None].expand_as(dense))
        flat = (x.transpose(1, 2).flatten(0, 1) for x in (dense, keys))
        return losses.info_nce(*flat, negatives, 0.2)

    def their_dense() -> Tensor:
        x, y, values = (part.transpose(1, 2) for part in (maps[0], maps[1], dense_keys))
        keys = utils.select_most_similar(x, y, values).flatten(end_dim=1)
        return many(dense.transpose(1, 2).flatten(end_dim=1), keys)  # type: ignore[no-any-return]

    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "NT-Xent": (lambda: losses.nt_xent(both[0], both[1], 0.2), lambda: pair(both[0], both[1])),
        "InfoNCE": (lambda: losses.info_nce(q, k, negatives, 0.2), lambda: bank(q, k)),
        "BYOL's": (lambda: losses.negative_cosine(q, k), lambda: cosine(q, k)),
        "DenseCL's": (our_dense, their_dense),
    }
    return {
        f"{name} loss": (lambda f=f: f().backward(), lambda g=g: g().backward())  # type: ignore[misc]
        for name, (f, g) in pairs.items()
    }


def seconds(run: Run) -> float:
    begin = time.perf_counter()
    for _ in range(STEPS):
        run()
    return (time.perf_counter() - begin) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    one, two = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2))
    sides = steps((one, two)) | loss_runs(arguments.batch, (arguments.size // 32) ** 2)
    for run, rival in sides.values():  # warm up
        run(), rival()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name, (run, rival) in sides.items():
            if number % 2:
                times[name].append((seconds(run), seconds(rival)))
            else:
                other, own = seconds(rival), seconds(run)
                times[name].append((own, other))
    figures: dict[str, Any] = {}
    for name, found in times.items():
        ratios = [rival / own for own, rival in found]
        figures[name] = {
            "raycl_ms": 1e3 * statistics.median(own for own, _ in found),
            "lightly_ms": 1e3 * statistics.median(rival for _, rival in found),
            "lightly / raycl": statistics.median(ratios),
            "rounds": ratios,
        }
        shown = {k: round(v, 2) for k, v in figures[name].items() if k != "rounds"}
        print(f"{name}: {shown}, deviation {statistics.stdev(ratios):.2f}")
    pairs = zip(times["DenseCL step"], times["MoCo v2 step"], strict=True)
    figures["DenseCL / MoCo v2"] = [dense / plain for (dense, _), (plain, _) in pairs]
    over = figures["DenseCL / MoCo v2"]
    print(f"DenseCL / MoCo v2: {statistics.median(over):.3f} ± {statistics.stdev(over):.3f}")
    if arguments.json:
        write_figures(arguments.json, figures, ["raycl", "torch", "lightly"])


if __name__ == "__main__":
    main()
