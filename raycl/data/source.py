"""Ray Data's side of the plan: a Datasource whose read tasks are the bundles of an epoch.

`PlannedData` is where the plan is cut: Ray Train calls `configure` when a worker group has started
and its size is known, and there the cursor is read from the run's own checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import Datasource, ExecutionOptions, ReadTask
from ray.data.block import BlockMetadata

from raycl.data.plan import Bundle, Plan, open_shards, read_bundle

Cursor = tuple[int, int]  # epoch, step within it


class PlanSource(Datasource):
    """Encoded samples of one epoch after another, from a cursor on.

    Which execution this is shows only in the data context's execution index. It is private to Ray,
    so nothing relies on it silently: every row carries its epoch and the loader checks it.
    """

    def __init__(self, plan: Plan, cursor: Cursor = (0, 0)) -> None:
        super().__init__()
        self.plan = plan
        self.cursor = cursor

    def estimate_inmemory_data_size(self) -> int:
        return sum(
            path.stat().st_size for s in self.plan.sources.values() for path in s.shards.paths
        )

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        execution = data_context._execution_idx if data_context is not None else 0
        epoch = self.cursor[0] + execution
        start = self.cursor[1] if execution == 0 else 0
        rows = self.plan.room * self.plan.batch
        size = self.estimate_inmemory_data_size() * rows // len(self.plan.first.shards)
        metadata = BlockMetadata(num_rows=rows, size_bytes=size, input_files=None, exec_stats=None)
        sources = {
            name: (tuple(map(str, source.shards.paths)), source.fields)
            for name, source in self.plan.sources.items()
        }
        return [
            ReadTask(
                _reader(bundle, self.plan.ids(bundle), sources, self.plan.batch),
                metadata,
                per_task_row_limit=per_task_row_limit,
            )
            for bundle in self.plan.bundles(epoch, start)
        ]


def _reader(
    bundle: Bundle,
    ids: dict[str, np.ndarray],
    sources: dict[str, tuple[tuple[str, ...], tuple[str, ...]]],
    batch: int,
) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        opened = {name: (open_shards(paths), fields) for name, (paths, fields) in sources.items()}
        yield read_bundle(bundle, ids, opened, batch)

    return read


def dataset(plan: Plan, cursor: Cursor = (0, 0), read_cpus: float = 1.0) -> ray.data.Dataset:
    """The plan as a Ray Data set; each of its executions is the next epoch."""
    source = PlanSource(plan, cursor)
    tasks = len(plan.bundles(*cursor))
    return ray.data.read_datasource(source, override_num_blocks=tasks, num_cpus=read_cpus)


class PlannedData(ray.train.DataConfig):
    """Splits the plan's bundles over the ranks of the group that has just started.

    Args:
        plan: what is delivered under the name "train".
        cursor: finds where the newest complete checkpoint left off; called per group.
        read_cpus: logical CPUs of a read task.
    """

    def __init__(self, plan: Plan, cursor: Callable[[], Cursor], read_cpus: float) -> None:
        # The splitter deals bundles out in turns only if they arrive in the planned order.
        super().__init__(execution_options={"train": ExecutionOptions(preserve_order=True)})
        self.plan = plan
        self.cursor = cursor
        self.read_cpus = read_cpus

    def configure(self, datasets: Any, world_size: int, *args: Any, **kwargs: Any) -> Any:
        data = dataset(self.plan, self.cursor(), self.read_cpus)
        data.context.enable_progress_bars = False
        return super().configure({"train": data}, world_size, *args, **kwargs)
