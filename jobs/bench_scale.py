"""What a step, a plan, its delivery, a checkpoint and a start cost as the ranks grow to 1,000.

    python jobs/bench_scale.py [--only step plan delivery checkpoint start] [--json FILE]

Measured with raycl's own code on this one machine: `plan`, `checkpoint` (a thread for each rank)
and the loss and bookkeeping of `step` (torch's fake process group, which exchanges nothing) at any
number of ranks; `delivery` and `start` on a real Ray, and the exchange of `step` over gloo, at 1, 2
and 3. Figures in brackets are modelled: an exchange as a ring over the network that the arguments
describe, and the share of its time that Ray Data's one splitter needs, from its CPU time a bundle.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from raycl.beton import IntField, Writer
from raycl.data.folder import Folder
from raycl.data.order import Order
from raycl.data.plan import Plan, Source
from raycl.data.shards import Shards
from raycl.nn.losses import nt_xent
from raycl.report.machine import write_figures
from raycl.sections import Checkpoint
from raycl.train import checkpoint
from raycl.train.gradients import GradientAverager

HERE, BEYOND = (1, 2, 3), (10, 100, 1000)
SAMPLES, BATCH, ROW = 1_281_167, 256, 110_000  # ImageNet: samples, of a rank's step, bytes of one
WEIGHTS, TENSORS = 28_000_000, 170  # of a ResNet-50 with its projection head
WIDTH = 128  # of an embedding
BUNDLES = 120  # of an epoch whose delivery is timed


@dataclass(frozen=True)
class Row:
    """One figure at a number of ranks."""

    section: str
    what: str
    ranks: int
    value: float
    unit: str
    measured: bool = True


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# A step


def step(settings: argparse.Namespace) -> Iterator[Row]:
    for ranks in (*HERE, *BEYOND):
        seconds, bytes_ = alone(loss_of, ranks)
        yield Row("step", "NT-Xent, forward and backward", ranks, seconds * 1e3, "ms")
        yield Row("step", "memory that it takes", ranks, bytes_ / 1e6, "MB")
        yield Row("step", "averager's own work", ranks, alone(bookkeeping, ranks) * 1e3, "ms")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in HERE[1:]:
            torch.multiprocessing.spawn(exchange, (ranks, folder), nprocs=ranks)
            seconds = float(Path(folder, str(ranks)).read_text())
            yield Row("step", "all-reduce of the gradients, gloo here", ranks, seconds * 1e3, "ms")
    for ranks in (*HERE, *BEYOND):
        gathered = 2 * BATCH * WIDTH * 4 * ranks
        for what, seconds in {
            "all-reduce of the gradients": ring(2 * 4 * WEIGHTS, ranks, 2 * (ranks - 1), settings),
            "all-gather of the keys and its backward": ring(
                2 * gathered, ranks, 2 * (ranks - 1), settings
            ),
        }.items():
            yield Row("step", what, ranks, seconds * 1e3, "ms", measured=False)


def ring(bytes_: float, ranks: int, hops: int, settings: argparse.Namespace) -> float:
    """Seconds of a ring in which every rank sends (ranks - 1) / ranks of the bytes in some hops."""
    sent = bytes_ * (ranks - 1) / ranks
    return sent / (settings.gbit * 1e9 / 8) + hops * settings.hop_us * 1e-6


def pretend(ranks: int) -> None:
    """Makes this process rank 0 of a group that exchanges nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)


def loss_of(ranks: int) -> tuple[float, int]:
    """Seconds of a rank's part of the loss, and bytes that it takes at the peak."""
    pretend(ranks)
    process, peak, done = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    z1, z2 = torch.randn(2, BATCH, WIDTH).requires_grad_().unbind()
    begin = time.perf_counter()
    nt_xent(z1, z2, 0.1).backward()
    seconds = time.perf_counter() - begin
    done.set()
    thread.join()
    return seconds, peak


def bookkeeping(ranks: int) -> float:
    """Seconds of averaging gradients that are there, without their exchange."""
    pretend(ranks)
    weights = [torch.zeros(WEIGHTS // TENSORS, requires_grad=True) for _ in range(TENSORS)]
    averager, taken = GradientAverager(weights), []
    for _ in range(7):
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        begin = time.perf_counter()
        averager.finish()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[2:])


def exchange(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{ranks}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    gradient, taken = torch.zeros(WEIGHTS), []
    for _ in range(5):
        begin = time.perf_counter()
        dist.all_reduce(gradient)
        taken.append(time.perf_counter() - begin)
    if rank == 0:
        Path(folder, str(ranks)).write_text(str(statistics.median(taken)))
    dist.destroy_process_group()


# The plan, and its way through Ray


def labels(folder: Path) -> Shards:
    with Writer(folder / "labels.beton", {"label": IntField()}) as writer:
        for index in range(1000):
            writer.write({"label": index})
    return Shards(folder / "labels.beton")


def plan(settings: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        shards = labels(Path(folder))
        for ranks in (*HERE, *BEYOND):
            order = Order(SAMPLES, ranks, BATCH)
            planned = Plan({"images": Source(shards, order, ("label",))}, row_bytes=ROW)
            begin = time.perf_counter()
            bundles = planned.bundles(0)
            listed = time.perf_counter()
            planned.ids(bundles[-1])
            drawn = time.perf_counter()
            yield Row("plan", "bundles of an epoch", ranks, len(bundles), "")
            yield Row("plan", "to list them", ranks, (listed - begin) * 1e3, "ms")
            yield Row("plan", "to draw the samples of one", ranks, (drawn - listed) * 1e3, "ms")


def delivery(settings: argparse.Namespace) -> Iterator[Row]:
    found = {ranks: alone(deliver, ranks) for ranks in HERE}
    for ranks, its in found.items():
        for what, seconds in its.items():
            yield Row("delivery", what, ranks, seconds * 1e3, "ms")
    busiest = max(its["splitter's CPU a bundle"] for its in found.values())
    for ranks in (*HERE, *BEYOND):
        needed = ranks * settings.rate * ROW / (16 << 20)  # bundles a second
        share = needed * busiest * 100
        yield Row("delivery", "of the splitter's time", ranks, share, "%", measured=False)


def deliver(ranks: int) -> dict[str, float]:
    """CPU seconds a bundle of what there is one of, however many ranks there are."""
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    import ray

    from raycl.data.source import PlannedData, dataset

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        shards = labels(Path(folder))
        order = Order(BUNDLES // ranks * ranks, ranks, 1)
        planned = Plan({"images": Source(shards, order, ("label",))}, row_bytes=16 << 20)
        data = PlannedData(planned, lambda: (0, 0), 1.0)
        splits = data.configure({"train": dataset(planned)}, ranks, None, None)
        consumers = [ray.remote(num_cpus=0)(Consumer).remote(its["train"]) for its in splits]
        ray.get([consumer.epoch.remote() for consumer in consumers])  # starts what is needed
        before = singles()
        seen = ray.get([consumer.epoch.remote() for consumer in consumers])
        after = singles()
        assert sum(seen) == len(planned.bundles(1))
    return {f"{name}'s CPU a bundle": (after[name] - before[name]) / sum(seen) for name in before}


class Consumer:
    """A rank that takes what comes."""

    def __init__(self, shard: Any) -> None:
        self.shard = shard

    def epoch(self) -> int:
        tables = self.shard.iter_batches(batch_size=None, batch_format="pyarrow")
        return sum(1 for _ in tables)


SINGLES = {"splitter": "SplitCoordinator", "control store": "gcs_server"}


def singles() -> dict[str, float]:
    """CPU seconds so far of the processes that a cluster has one of."""
    used = dict.fromkeys(SINGLES, 0.0)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            for name, part in SINGLES.items():
                if part in command:
                    used[name] += sum(process.cpu_times()[:2])
    return used


# A checkpoint


def saved(settings: argparse.Namespace) -> Iterator[Row]:
    for ranks in (*HERE, *BEYOND):
        with tempfile.TemporaryDirectory() as folder:
            for what, seconds in alone(save_and_load, ranks, folder).items():
                yield Row("checkpoint", what, ranks, seconds, "s")


def save_and_load(ranks: int, folder: str) -> dict[str, float]:
    """All ranks' writers as threads of this process; what one rank takes to find and read it."""
    torch.set_num_threads(1)
    place = Folder(folder) / "checkpoints"
    weights = {f"w{i}": torch.randn(WEIGHTS // TENSORS) for i in range(TENSORS)}
    state = {"method": weights, "optimizers": {}, "statistics": [torch.zeros(10)]}
    settings = Checkpoint()
    writers = [checkpoint.Writer(place, settings, rank, ranks) for rank in range(ranks)]
    begin = time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda writer: writer.save(1, state, (0, 1)), writers))
        copied = time.perf_counter()
        list(pool.map(lambda writer: writer.wait(must=True), writers))
    complete = time.perf_counter()
    found = checkpoint.newest(place)
    assert found is not None
    checked = time.perf_counter()
    checkpoint.load(found)
    return {
        "all ranks' copies of their shares": copied - begin,
        "until it is complete": complete - copied,
        "to check it": checked - complete,
        "to read it": time.perf_counter() - checked,
    }


# A start


def start(settings: argparse.Namespace) -> Iterator[Row]:
    for ranks in HERE:
        for what, seconds in alone(start_group, ranks).items():
            yield Row("start", what, ranks, seconds, "s")


def start_group(ranks: int) -> dict[str, float]:
    """Seconds until a group trains, and CPU seconds of what a cluster has one of."""
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raycl.train.backend import NodeTorchConfig

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    SINGLES.pop("splitter")
    SINGLES["controller"] = "TrainController"
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "mark")

        def work(config: Any) -> None:
            import ray.train

            dist.barrier()
            if ray.train.get_context().get_world_rank() == 0:
                mark.touch()
                time.sleep(2)  # the parent looks at what was used

        before, begin = singles(), time.time()
        taken: dict[str, float] = {}

        def watch() -> None:
            while not mark.exists():
                time.sleep(0.05)
            taken["until all ranks meet"] = mark.stat().st_mtime - begin
            after = singles()
            taken.update({f"{n}'s CPU until then": after[n] - before.get(n, 0.0) for n in after})

        thread = threading.Thread(target=watch)
        thread.start()
        TorchTrainer(
            work,
            torch_config=NodeTorchConfig(),
            scaling_config=ScalingConfig(num_workers=ranks, resources_per_worker={"CPU": 0.1}),
            run_config=RunConfig(storage_path=folder),
        ).fit()
        thread.join()
    return taken


SECTIONS = {
    "step": step,
    "plan": plan,
    "delivery": delivery,
    "checkpoint": saved,
    "start": start,
}


def show(rows: list[Row]) -> None:
    """A line for each figure, a column for each number of ranks; what is modelled stands in ()."""
    counts = (*HERE, *BEYOND)
    table = Table("section", "figure", *(f"{ranks:,}" for ranks in counts))
    lines: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        text = f"{row.value:.3g}" if row.value < 1000 else f"{row.value:.0f}"
        key = row.section, f"{row.what}, {row.unit}".rstrip(", ")
        lines.setdefault(key, {})[row.ranks] = text if row.measured else f"({text})"
    for key, values in lines.items():
        table.add_row(*key, *(values.get(ranks, "") for ranks in counts))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--gbit", type=float, default=100.0, help="of the network, for each rank")
    parser.add_argument("--hop-us", type=float, default=10.0, help="of one hop of a ring")
    parser.add_argument("--rate", type=float, default=1250.0, help="samples/s of a rank")
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    settings = parser.parse_args()
    rows = [row for name in settings.only for row in SECTIONS[name](settings)]
    show(rows)
    if settings.json:
        network = {"gbit": settings.gbit, "hop_us": settings.hop_us, "rate": settings.rate}
        figures = {"settings": network, "rows": [asdict(row) for row in rows]}
        write_figures(settings.json, figures, ["raycl", "torch", "ray"])


if __name__ == "__main__":
    main()
