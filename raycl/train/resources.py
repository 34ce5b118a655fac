"""Who gets how much of a machine, decided in this one place so that Ray Data never starves.

With as many CPUs asked for by workers as there are, no read task is ever scheduled and the run
hangs. So a share is set aside for reading first, and the workers divide the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Logical CPUs of one worker and of one read task, and GPUs of one worker."""

    worker_cpus: float
    read_cpus: float
    worker_gpus: int


def decide(cpus: float, gpus: float, workers: int, device: str, hosts: int = 1) -> Resources:
    """Divides a cluster.

    Args:
        cpus, gpus: what the cluster has in all.
        workers: the most that there will be.
        device: of the recipe: "auto" takes a GPU for every worker where there are enough.
        hosts: of the cluster. Where there are several, some may go: beside every worker that fits
            on a host, reading has to fit too.
    """
    reading = min(1.0, cpus / 2) if hosts == 1 else 0.1 * min(1.0, cpus / workers)
    left = cpus - reading if hosts == 1 else 0.9 * cpus
    share = math.floor(min(1.0 if hosts == 1 else 0.9, left / workers) * 1000) / 1000
    use_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
    return Resources(share, reading, int(use_gpu))
