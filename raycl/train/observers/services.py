"""Observers that tell services of a run: Weights & Biases, MLflow, and Prometheus through Ray.

The first two are extras. Where and as whom they log is said by their own environment variables
(WANDB_PROJECT, WANDB_API_KEY, MLFLOW_TRACKING_URI, ...) in the process of rank 0. A resumed run
goes on in the service's run that its checkpoint names. Neither service takes back a step: what it
has of steps that are done again stays, and they are not logged twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from raycl.errors import RayclError
from raycl.recipe import Recipe
from raycl.train.observers import Event, Writer

_log = logging.getLogger(__name__)


def require(name: str) -> Any:
    """Imports the package of a service.

    Raises:
        RayclError: it is not installed.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # W&B makes folders ./wandb, which are no package
        raise RayclError(
            f'trainer.watch: {name} is not installed; pip install "raycl[{name}]", or leave it out'
        )
    return importlib.import_module(name)


class Wandb(Writer):
    """Logged metrics, and notes as alerts, in a run of Weights & Biases; its files: RUN/wandb.

    Offline (WANDB_MODE=offline) every start leaves a folder of its own for `wandb sync`, all with
    the same id; what was done again after a resume is then in both.
    """

    def __init__(self, run: Path, recipe: Recipe) -> None:
        self.package = require("wandb")
        self.run, self.recipe = run, recipe
        self._id: str | None = None
        self._open: Any = None

    @property
    def service(self) -> Any:
        if self._open is None:
            try:
                self._open = self.package.init(
                    id=self._id,
                    resume="allow",
                    project=os.environ.get("WANDB_PROJECT", "raycl"),
                    name=self.run.name,
                    dir=self.run,
                    config=self.recipe.resolved(),
                    reinit="create_new",
                    settings=self.package.Settings(console="off", silent=True),
                )
            except self.package.Error as error:
                raise RayclError(f"trainer.watch: wandb: {error}") from error
            self._id = self._open.id
        return self._open

    def write(self, event: Event, step: int) -> None:
        if step >= self.service.starting_step:
            self.service.log(event.metrics, step=step)
        for note in event.notes:
            self.service.alert("raycl", note)

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._id = state.get("id")

    def close(self) -> None:
        if self._open is not None:
            self._open.finish(exit_code=0 if sys.exception() is None else 1)


class MLflow(Writer):
    """Logged metrics, the recipe's fields as parameters, and the latest note as a tag, in MLflow.

    Without MLFLOW_TRACKING_URI they go to RUN/mlflow.db. A thread sends them, so that a slow server
    does not hold up the training; what a server does not take is a warning in the log.
    """

    def __init__(self, run: Path, recipe: Recipe) -> None:
        self.package = require("mlflow")
        self.run, self.recipe = run, recipe
        self._id: str | None = None
        self._open: Any = None
        self._thread = ThreadPoolExecutor(1, "mlflow")
        self._resumed = self._refused = False
        self._last: dict[str, int] = {}  # the step of each metric that an earlier start has sent

    @property
    def service(self) -> Any:
        if self._open is None:
            uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.run / 'mlflow.db'}"
            try:
                client = self.package.MlflowClient(uri)
                if self._id is None:
                    self._id = self._create(client)
                else:
                    client.update_run(self._id, status="RUNNING")
            except self.package.MlflowException as error:
                raise RayclError(f"trainer.watch: mlflow at {uri}: {error}") from error
            self._open = client
        return self._open

    def _create(self, client: Any) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "raycl")
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        run: str = client.create_run(experiment, run_name=self.run.name).info.run_id
        fields = [self.package.entities.Param(*field) for field in _flat(self.recipe.resolved())]
        for at in range(0, len(fields), 100):  # as many as one request may hold
            client.log_batch(run, params=fields[at : at + 100])
        return run

    def write(self, event: Event, step: int) -> None:
        now = int(time.time() * 1000)
        self._thread.submit(self._send, self.service, step, now, event.metrics, event.notes)

    def _send(
        self, client: Any, step: int, now: int, metrics: dict[str, float], notes: list[str]
    ) -> None:
        entities = self.package.entities
        try:
            new = [
                entities.Metric(name, value, now, step)
                for name, value in metrics.items()
                if step > self._sent(name)
            ]
            tags = [entities.RunTag("note", note) for note in notes]
            client.log_batch(self._id, metrics=new, tags=tags)
            self._refused = False
        except Exception as error:
            self._refused = True
            _log.warning("mlflow did not take step %d: %s", step, error)

    def _sent(self, name: str) -> int:
        if self._resumed and name not in self._last:
            history = self._open.get_metric_history(self._id, name)
            self._last[name] = max((metric.step for metric in history), default=-1)
        return self._last.get(name, -1)

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._id = state.get("id")
        self._resumed = self._id is not None

    def close(self) -> None:
        if self._open is None:
            return
        # A server that no longer answers is not waited for longer than one request takes.
        self._thread.shutdown(cancel_futures=self._refused)
        error = sys.exception()
        ending = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        try:
            self._open.set_terminated(self._id, ending if error else "FINISHED")
        except Exception as failure:  # the run itself is well
            _log.warning("mlflow was not told of the end of the run: %s", failure)


def _flat(section: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, str]]:
    """Dotted fields and their values, cut to what MLflow stores of one."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", str(value)[:500]


class Prometheus(Writer):
    """Every logged metric as a gauge that Ray exports on each node, tagged with the run's name.

    `loss` is `ray_raycl_loss{run="..."}`, and so are `images_per_second`, `step_time` (seconds),
    `wait_share` (of the time), `wait_share_read` and the others. Needs a connection to Ray.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self._gauges: dict[str, Any] = {}

    def write(self, event: Event, step: int) -> None:
        from ray.util.metrics import Gauge

        for name, value in event.metrics.items():
            if name not in self._gauges:
                title = "raycl_" + re.sub(r"\W", "_", name)
                self._gauges[name] = Gauge(title, name, tag_keys=("run",))
            self._gauges[name].set(value, {"run": self.run})


SERVICES: dict[str, Callable[[Path, Recipe], Writer]] = {"wandb": Wandb, "mlflow": MLflow}
