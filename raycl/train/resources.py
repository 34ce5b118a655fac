"""Who gets how much of a machine, decided in this one place so that Ray Data never starves.

With as many CPUs asked for by workers as there are, no read task is ever scheduled and the run
hangs. So a share is set aside for reading first, and the workers divide the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Logical CPUs of one worker and of one read task, and GPUs of one worker."""

    worker_cpus: float
    read_cpus: float
    worker_gpus: int


def decide(cpus: float, gpus: float, sizes: list[int], device: str, hosts: int = 1) -> Resources:
    """Divides a cluster.

    Args:
        cpus, gpus: what the cluster has in all.
        sizes: numbers of workers that there may be, ascending.
        device: of the recipe: "auto" takes a GPU for every worker where there are enough for the
            smallest group.
        hosts: of the cluster. Where there are several, some may go: beside every worker that fits
            on a host, reading has to fit too.
    """
    most = sizes[-1]
    if hosts == 1:
        reading = min(1.0, cpus / 2)
        share = min(1.0, (cpus - reading) / most)
    else:
        share = 0.9 * min(1.0, cpus / most)
        # A host whose every CPU has a worker has this much left.
        reading = share / 9 * min(10.0, cpus / hosts)
    use_gpu = device == "cuda" or (device == "auto" and gpus >= sizes[0])
    return Resources(math.floor(share * 1000) / 1000, reading, int(use_gpu))


def per_trial(
    nodes: Sequence[tuple[float, float]], device: str, cpus: float | None, gpus: float | None
) -> tuple[float, float, int]:
    """CPUs and GPUs of a trial that trains in its own process, and how many have room at a time.

    Args:
        nodes: CPUs and GPUs of each; a trial lies on one.
        device: of the recipe.
        cpus, gpus: asked for; None: a GPU where there are any, with its part of the node's CPUs.
    """
    if gpus is None:
        gpus = float(device != "cpu" and any(there for _, there in nodes))
    if cpus is None:
        parts = [own // there * min(gpus, 1.0) for own, there in nodes if there and gpus]
        cpus = max(1.0, min(parts, default=1.0))
    count = 0
    for own, there in nodes:
        room = [own / cpus, *([there / gpus] if gpus else [])]
        count += math.floor(min(room) + 1e-9)  # ten trials have a tenth each
    return cpus, gpus, count
