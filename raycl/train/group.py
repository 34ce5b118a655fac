"""When Ray Train starts the worker group again, and with how many workers.

Its two policies are private to Ray; what is replaced here is small, and tests/train/test_group.py
and tests/cluster run it.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import ray
import ray.exceptions
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)
from ray.train.v2._internal.execution.scaling_policy import (
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from raycl.data.folder import Folder
from raycl.errors import RayclError
from raycl.train import checkpoint
from raycl.train.signals import STOPS

# What a lost process, host, link or storage looks like to those that are left.
PASSING = (RuntimeError, OSError, RayTrainError, ray.exceptions.RayError)
TRIES = 4  # starts from one checkpoint before a run is given up
GRACE = 20.0  # seconds for a last checkpoint: of the 30 that clusters give a process to end


class GroupTrainer(TorchTrainer):
    """A TorchTrainer whose group outlives failures for as long as it makes progress.

    Args:
        place: folder of the run's checkpoints, which tell progress.
        sizes: numbers of workers that the group may have, ascending.
        board: actor that tells the driver of failures, and asks workers for a checkpoint.
    """

    def __init__(
        self, *args: Any, place: Folder, sizes: list[int], board: Any, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.place, self.board = place, board
        self._signals = 0
        self._policies: dict[str, Any] = {"failure_policy": Restart(place, board)}
        if len(sizes) > 1:
            config: Any = self.scaling_config
            self._policies["scaling_policy"] = Elastic(config, place, sizes, board)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**settings | self._policies)

    def _register_sigint_handler(self, controller: Any) -> None:
        """The first Ctrl-C or SIGTERM saves and ends the run, the second ends it at once."""

        def stop(number: int, frame: Any) -> None:
            self._signals += 1
            if self._signals == 2:
                return
            if self._signals == 1:
                self._save()
            with contextlib.suppress(ray.exceptions.RayError):  # it ends, as it is told to
                ray.get(controller.abort.remote(), timeout=GRACE)
            raise KeyboardInterrupt

        for number in STOPS:
            signal.signal(number, stop)

    def _save(self) -> None:
        """Returns when there is a new checkpoint, nobody to write one, or no time left."""
        before, deadline = checkpoint.latest(self.place), time.monotonic() + GRACE
        if not ray.get(self.board.ask.remote()):
            return
        while self._signals == 1 and time.monotonic() < deadline:
            time.sleep(0.2)
            if checkpoint.latest(self.place) != before:
                return


class Restart(DefaultFailurePolicy):
    """Starts the group again after whatever may pass, until that has stopped helping.

    A count over the whole run, as Ray Train's own, would end a long run on nodes that come and go.
    """

    def __init__(self, place: Folder, board: Any) -> None:
        super().__init__(FailureConfig(max_failures=-1))
        self.place, self.board = place, board
        self._newest: Folder | None = None
        self._tries = 0

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {}).values()
        if not all(isinstance(failure, PASSING) for failure in failures):
            return FailureDecision.RAISE
        newest = self._newest
        with contextlib.suppress(RayclError):  # storage is gone: the group may still find it back
            newest = checkpoint.newest(self.place)
        self._tries = self._tries + 1 if newest == self._newest else 1
        self._newest = newest
        if failures and self._tries >= TRIES:
            return FailureDecision.RAISE
        where = f"checkpoint {newest.name}" if newest else "the beginning"
        what = [line for line in str(training_failed_error).splitlines() if line.strip()]
        note = f"the worker group failed and starts again from {where}: {what[-1].strip()}"
        self.board.put.remote({"note": note})
        return super().make_decision(training_failed_error)


class Elastic(ElasticScalingPolicy):
    """Lets the group have the sizes that divide the lanes, and saves before it grows."""

    def __init__(self, config: ScalingConfig, place: Folder, sizes: list[int], board: Any) -> None:
        super().__init__(config)
        self.place, self.sizes, self.board = place, sizes, board
        self._resize: ResizeDecision | None = None
        self._before: Folder | None = None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # What is reserved may lie on a host that has just gone.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        reserved = {node: its for node, its in reserved_resources.items() if node in alive}
        possible = super()._count_possible_workers(reserved)
        return max((size for size in self.sizes if size <= possible), default=0)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._resize = None
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if isinstance(decision, ResizeDecision):
            with contextlib.suppress(RayclError):
                self._before = checkpoint.latest(self.place)
                self._resize = decision
                self.board.ask.remote()
        with contextlib.suppress(RayclError):  # storage is gone: no checkpoint, no growth
            if self._resize and checkpoint.latest(self.place) != self._before:
                decision, self._resize = self._resize, None  # once, not again when it has grown
                return decision
        return NoopDecision()
