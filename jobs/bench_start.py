"""Seconds from a cold command to the first training step.

    python jobs/bench_start.py [--rounds 3] [--json FILE]

Sides, in turns, each a process of its own that starts its own local Ray where it needs one: a bare
TorchTrainer of two workers whose function imports torch and ends (the clock stops in it), `raycl
pretrain` with two workers, which read for themselves or are fed by Ray Data, and with one (the
clock stops when the first step is logged).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from raycl.data.sink import import_dataset
from raycl.report.machine import write_figures

BARE = """
import sys
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def work(config):
    import torch, ray.train
    if ray.train.get_context().get_world_rank() == 0:
        open(config["mark"], "w").close()

TorchTrainer(
    work,
    train_loop_config={"mark": sys.argv[1]},
    scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
    run_config=RunConfig(storage_path=sys.argv[2]),
).fit()
"""


def seconds_until(mark: Path, command: list[str]) -> float:
    """Runs a command to its end; returns when the file came to be."""
    begin = time.time()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        came = 0.0
        while process.poll() is None:
            if not came and mark.exists() and (mark.name == "mark" or mark.stat().st_size):
                came = time.time()
            time.sleep(0.02)
        output.seek(0)
        if process.returncode or not came:
            raise SystemExit(output.read().decode()[-3000:])
    return came - begin


def raycl(run: Path, data: Path, workers: int, *changes: str) -> float:
    command = [
        str(Path(sys.executable).with_name("raycl")), "pretrain", "simclr/digits",
        "--run", str(run), f"data.train={data / 'train'}", f"data.test={data / 'test'}",
        f"trainer.workers={workers}",
        "trainer.log_every=1", "trainer.stop={epochs: 1, steps: 3}", "evaluation.every_epochs=0",
        *changes,
    ]  # fmt: skip
    return seconds_until(run / "metrics.jsonl", command)


def bare(folder: Path) -> float:
    folder.mkdir()
    mark = folder / "mark"
    return seconds_until(mark, [sys.executable, "-c", BARE, str(mark), str(folder)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write figures, versions, machine and commit")
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "digits"
        import_dataset("digits", None, data)
        for number in range(arguments.rounds):
            sides: dict[str, Callable[[Path], float]] = {
                "bare TorchTrainer, 2 workers": bare,
                "raycl, 2 workers": lambda run: raycl(run, data, 2),
                "raycl, 2 workers fed by Ray Data": lambda run: raycl(
                    run, data, 2, "data.read_on=cluster"
                ),
                "raycl, 1 worker": lambda run: raycl(run, data, 1),
            }
            for index, (side, work) in enumerate(sides.items()):
                taken.setdefault(side, []).append(work(folder / f"{number}-{index}"))
                print(f"round {number}: {side}: {taken[side][-1]:.1f} s", flush=True)
    for side, times in taken.items():
        print(f"{side}: median {statistics.median(times):.1f} s of {len(times)}")
    if arguments.json:
        write_figures(arguments.json, taken, ["raycl", "torch", "ray"])


if __name__ == "__main__":
    main()
