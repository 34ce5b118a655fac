"""Runs a function on several real gloo processes."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Children are forked from a server that has imported torch once and holds no threads: they start
# in a fraction of a second, and, unlike forks of the test process, know nothing of its state.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "torchvision"])


def run(world: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """Calls a module-level function on `world` ranks; returns each rank's result.

    Args:
        world: number of processes.
        function: takes `args`; what it returns must be readable by `torch.load`.
        timeout: seconds after which all ranks are killed.
    """
    source = inspect.getfile(function)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _context.Process(
                target=_rank, args=(rank, world, folder, source, function.__name__, args)
            )
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
        failures = [path.read_text() for path in sorted(Path(folder).glob("*.failure"))]
        assert not failures, "\n".join(failures)
        codes = [process.exitcode for process in ranks]
        assert not any(codes), f"ranks ended with {codes} (-9: killed after {timeout} s)"
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def _rank(
    rank: int, world: int, folder: str, source: str, name: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=60),
        )
        # By file, because the name of a test module depends on pytest's import mode.
        spec = importlib.util.spec_from_file_location(f"distributed_{Path(source).stem}", source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        torch.save(getattr(module, name)(*args), f"{folder}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.failure").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise
