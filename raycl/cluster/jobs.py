"""Jobs of a cluster's job server: what is sent with one, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import base64
import gzip
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
BEGIN = "raycl report: "


class Jobs:
    """The job server at an address such as http://127.0.0.1:8265, asked with this user's token.

    Args:
        folder: uploaded with each job, which starts in it.
        install: a requirements.txt of what the cluster's image lacks.

    Raises:
        RayclError: the server does not answer, or refuses.
    """

    def __init__(self, address: str, folder: Path, install: Path | None = None) -> None:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

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
