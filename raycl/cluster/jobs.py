"""Jobs of a cluster's job server: what is sent with one, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import base64
import gzip
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raycl import __version__
from raycl.errors import RayclError

# Beside what .gitignore and .rayignore name, and Ray's own .git and .venv.
EXCLUDES = ["runs/", "sweeps/", "*.beton", "*.safetensors", "*.ckpt", "*.pt"]
# `ray job stop` kills what is left after so many seconds: a last checkpoint may take 20 of them.
STOPPING = 30
UPLOAD = 100 << 20  # bytes that a job server takes at most, zipped
BEGIN = "raycl report: "


class Jobs:
    """The job server at an address such as http://127.0.0.1:8265, asked with this user's token.

    Args:
        folder: uploaded with each job, which starts in it.
        install: a requirements.txt of what the cluster's image lacks.

    Raises:
        RayclError: the folder is too large, or the server does not answer, or refuses.
    """

    def __init__(self, address: str, folder: Path, install: Path | None = None) -> None:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        _check_size(folder)
        self.address, self.folder = address, folder
        self.environment: dict[str, Any] = {
            "working_dir": str(folder),
            "excludes": EXCLUDES,
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOPPING)},
        }
        if install is not None:
            lines = (line.partition("#")[0].strip() for line in install.read_text().splitlines())
            self.environment["uv"] = {"packages": [line for line in lines if line]}
        try:
            self.client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise RayclError(
                f"{address}: no job server of Ray answers there, or not to this token: {error}; "
                "`ray dashboard CLUSTER.yaml` opens a tunnel to http://127.0.0.1:8265, and the "
                "cluster's token belongs into ~/.ray/auth_token"
            ) from error
        logging.getLogger("ray").setLevel(logging.WARNING)  # it tells of every ignored file

    def submit(self, words: list[str]) -> str:
        """Starts `raycl WORDS` on the head and returns the job's id."""
        return self._submit(shlex.join(["python", "-m", "raycl", *words]))

    def _submit(self, entrypoint: str) -> str:
        try:
            return self.client.submit_job(
                entrypoint=entrypoint,
                runtime_env=self.environment,
                metadata={"raycl": __version__},
            )
        except (RuntimeError, ValueError) as error:
            raise RayclError(f"{self.address}: {self.folder} was not taken: {error}") from error

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Hands on what a job prints until it ends; returns its exit status."""

        async def tail() -> None:
            async for text in self.client.tail_job_logs(job):
                show(text)

        asyncio.run(tail())
        info = self.client.get_job_info(job)
        if info.status == "SUCCEEDED":
            return 0
        if info.driver_exit_code is None:  # it never started, or its host has gone
            raise RayclError(f"job {job}: {str(info.status).lower()}: {info.message}")
        return info.driver_exit_code

    def report(self, place: str) -> bytes:
        """The page of a run or a sweep, made on the cluster."""
        job = self._submit(shlex.join(["python", "-m", "raycl.cluster.send", place]))
        printed: list[str] = []
        status = self.follow(job, printed.append)
        found = [line for line in "".join(printed).splitlines() if line.startswith(BEGIN)]
        if status or not found:
            raise RayclError(f"{place}: no report was made there; `ray job logs {job}` tells why")
        return gzip.decompress(base64.b64decode(found[-1].removeprefix(BEGIN)))


def _check_size(folder: Path) -> None:
    """Refuses what no job server takes, before it is zipped: that can take minutes."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    found: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = path.stat().st_size

    names = [*ray_constants.get_runtime_env_default_excludes(), *EXCLUDES]
    silent = logging.getLogger(f"{__name__}.ignored")
    packaging._dir_travel(folder, [packaging._get_excludes(folder, names)], add, True, silent)
    total = sum(found.values())
    if total > UPLOAD:
        largest = sorted(found, key=found.__getitem__, reverse=True)[:3]
        shown = ", ".join(f"{name} ({found[name] / 2**20:.0f} MiB)" for name in largest)
        raise RayclError(
            f"{folder}: {total / 2**20:,.0f} MiB would be uploaded, and a job server takes "
            f"{UPLOAD >> 20}; name what the job does not need in .rayignore, or stand in another "
            f"folder. The largest: {shown}"
        )
