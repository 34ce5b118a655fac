"""When Ray Train starts the worker group again, and with how many workers.

Its two policies are private to Ray; what is replaced here is small, and tests/train/test_group.py
and tests/cluster run it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

from raycl.train import checkpoint

# What a lost process, host, link or storage looks like to those that are left.
PASSING = (RuntimeError, OSError, RayTrainError, ray.exceptions.RayError)
TRIES = 4  # starts from one checkpoint before a run is given up


class GroupTrainer(TorchTrainer):
    """A TorchTrainer whose group outlives failures for as long as it makes progress.

    Args:
        run: run directory, whose checkpoints tell progress.
        sizes: numbers of workers that the group may have, ascending.
        board: actor that tells the driver of failures, and asks workers for a checkpoint.
    """

    def __init__(self, *args: Any, run: Path, sizes: list[int], board: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._policies: dict[str, Any] = {"failure_policy": Restart(run, board)}
        if len(sizes) > 1:
            config: Any = self.scaling_config
            self._policies["scaling_policy"] = Elastic(config, run, sizes, board)

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**settings | self._policies)


class Restart(DefaultFailurePolicy):
    """Starts the group again after whatever may pass, until that has stopped helping.

    A count over the whole run, as Ray Train's own, would end a long run on nodes that come and go.
    """

    def __init__(self, run: Path, board: Any) -> None:
        super().__init__(FailureConfig(max_failures=-1))
        self.run, self.board = run, board
        self._newest: Path | None = None
        self._tries = 0

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {}).values()
        if not all(isinstance(failure, PASSING) for failure in failures):
            return FailureDecision.RAISE
        newest = checkpoint.newest(self.run)
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

    def __init__(self, config: ScalingConfig, run: Path, sizes: list[int], board: Any) -> None:
        super().__init__(config)
        self.run, self.sizes, self.board = run, sizes, board
        self._resize: ResizeDecision | None = None
        self._before: Path | None = None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
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
            self._resize, self._before = decision, checkpoint.latest(self.run)
            self.board.ask.remote()
        if self._resize and checkpoint.latest(self.run) != self._before:
            return self._resize
        return NoopDecision()
