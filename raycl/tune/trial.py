"""One trial of a sweep: a run of raycl, an epoch's measurement at a time.

Training goes on in a thread of its own, for Ray Tune asks for one result after the other and may
save, stop or replace the trial in between. The thread waits at the first logged step after a
measurement until the next one is asked for, so that nothing is trained that Tune does not want.
"""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from raycl.data.folder import Folder
from raycl.errors import RayclError
from raycl.recipe import Recipe
from raycl.train import checkpoint as checkpoints
from raycl.train.run import absolute, open_run
from raycl.train.trainer import Stopped, pretrain
from raycl.tune import hparams
from raycl.tune.space import Space, as_drawn

UNMEASURED = 2  # epochs after which a metric that ought to be there is missed
SAVING = 120.0  # seconds that a checkpoint of the epoch just measured may take


@dataclass(frozen=True)
class Sweep:
    """What all trials share.

    Attributes:
        space: the recipe and what is searched in it.
        place: directory of the sweep.
        part: of the cluster that one trial has.
        threads: of a trial that trains in its own process.
    """

    space: Space
    place: Path
    part: float
    threads: int

    def recipe(self, drawn: Mapping[str, Any], name: str, seed: int | None = None) -> Recipe:
        """That of one run; its checkpoints go beside those of the others."""
        recipe = self.space.with_values(self.space.values(drawn))
        storage = recipe.trainer.storage
        own = {
            "seed": recipe.trainer.seed if seed is None else seed,
            "storage": (Folder(storage) / "trials" / name).where if storage else None,
        }
        return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update=own)})


class Trial(tune.Trainable):
    """A run in SWEEP/trials, of the trial's id; with pbt and pb2 one for each set of its values."""

    def setup(self, config: dict[str, Any], sweep: Sweep) -> None:  # type: ignore[override]
        self.sweep = sweep
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._thread: threading.Thread | None = None
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self._wanted = threading.Event()
        self._stopped = self._restored = False
        self._step = 0  # of the run, at the latest measurement
        self._again = as_drawn(config)
        # pbt gives a trial new values, and a killed sweep may draw others for the same trial.
        values = hashlib.sha256(json.dumps(self._again, sort_keys=True).encode()).hexdigest()
        self._run = self.sweep.place / "trials" / f"{self.trial_id}-{values[:6]}"

    def step(self) -> dict[str, Any]:
        """The next measurement; the last one says that the trial is done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._train, daemon=True)
            self._thread.start()
        self._wanted.set()
        result = self._heard.get()
        if "error" in result:
            raise result["error"]
        self._step = result.get("record", {}).get("step", self._step)
        return result | {"run": self._run.name}

    def _train(self) -> None:
        """In the thread; whatever happens is heard, or `step` would wait for ever."""
        try:
            self._heard.put(self._trained() | {"done": True, "ended": True})
        except Stopped:
            pass
        except RayclError as error:  # the same values would fail again
            self._heard.put({"done": True, "failed": str(error)})
        except BaseException as error:
            self._heard.put({"error": error})

    def _trained(self) -> dict[str, Any]:
        """Trains to the end and gives the last measurement; those before it are heard on the way.

        Raises:
            Stopped: as Ray Tune wants it.
        """
        recipe = absolute(self._recipe())
        torch.set_num_threads(self.sweep.threads)
        metric, every = self.sweep.space.tune.metric, recipe.evaluation.every_epochs
        measured: dict[str, Any] = {}
        names: set[str] = set()
        first: list[float] = []

        def hear(record: dict[str, Any]) -> None:
            self._wanted.wait()
            if self._stopped:
                raise Stopped
            names.update(record)
            epoch = record["epoch"]
            first.append(epoch)
            if epoch - first[0] > every + UNMEASURED and metric not in names:
                raise _unmeasured(metric, names)
            if metric not in record or not float(epoch).is_integer():
                return
            if not math.isfinite(record[metric]):
                raise RayclError(f"{metric} is {record[metric]} after epoch {epoch:g}")
            measured.update(record)
            if epoch < recipe.trainer.stop.epochs:
                self._wanted.clear()
                self._heard.put(_result(record, metric))

        open_run(self._run, recipe)
        space = self.sweep.space
        hparams.begin(self._run, space, space.values(self._again["drawn"]))
        # Of a trial that begins anew Ray Tune has forgotten what it heard; its run has not.
        for record in [] if self._restored else _records(self._run):
            hear(record)
        try:
            pretrain(recipe, self._run, hear, self.sweep.part)
        finally:
            hparams.end(self._run)
        done = [record for record in _records(self._run) if metric in record]
        if not (measured or done):
            raise _unmeasured(metric, names)
        return _result(measured or done[-1], metric)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copies the run's checkpoint of the latest measurement, once it is complete."""
        place, deadline = self._checkpoints(), time.monotonic() + SAVING
        while (found := checkpoints.latest(place)) is None or _step_of(found) < self._step:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{place}: no checkpoint of step {self._step} in {SAVING:g} s")
            time.sleep(0.05)
        _copy(found, Folder(checkpoint_dir) / found.name)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from what this or another trial has saved, unless the run has come as far."""
        self._restored = True
        saved, place = Folder(checkpoint), self._checkpoints()
        (name,) = saved.names()
        own = checkpoints.latest(place)
        if own is None or _step_of(own) < _step_of(saved / name):
            open_run(self._run, absolute(self._recipe()))
            _copy(saved / name, place / name)

    def _checkpoints(self) -> Folder:
        return checkpoints.folder(self._run, self._recipe().trainer.storage)

    def _recipe(self) -> Recipe:
        return self.sweep.recipe(self._again["drawn"], self._run.name, self._again.get("seed"))

    def cleanup(self) -> None:
        self._stopped = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # another trial may share the GPU


def _result(record: dict[str, Any], metric: str) -> dict[str, Any]:
    return {"epoch": round(record["epoch"]), metric: record[metric], "record": record}


def _step_of(found: Folder) -> int:
    return int(found.name.removeprefix("step-"))


def _copy(source: Folder, target: Folder) -> None:
    for name in sorted(source.names(), key="COMPLETE".__eq__):  # that one last
        target.write(name, source.read(name))


def _records(run: Path) -> list[dict[str, Any]]:
    """What a run has logged so far; a line that was cut off as it was written is left out."""
    path = run / "metrics.jsonl"
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.is_file() else ""
    return [json.loads(line) for line in whole.splitlines()]


def _unmeasured(metric: str, names: set[str]) -> RayclError:
    needs = "; knn needs evaluation.every_epochs" if metric == "knn" else ""
    return RayclError(
        f"tune.metric: {metric!r} is not measured at the end of an epoch; measured are: "
        f"{', '.join(sorted(names))}{needs}"
    )
