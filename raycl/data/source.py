"""Ray Data's side of the plan: a Datasource whose read tasks are the bundles of an epoch.

`PlannedData` is where the plan is cut: Ray Train calls `configure` when a worker group has started
and its size is known, and there the cursor is read from the run's own checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data import Datasource, ExecutionOptions, ReadTask
from ray.data.block import BlockMetadata

from raycl.data.plan import Bundle, Plan, to_table

if TYPE_CHECKING:
    from raycl.data.streams import Views

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
        return sum(source.shards.bytes for source in self.plan.sources.values())

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
        return [
            ReadTask(_reader(bundle, self.shared), metadata, per_task_row_limit=per_task_row_limit)
            for bundle in self.plan.bundles(epoch, start)
        ]

    @cached_property
    def shared(self) -> ray.ObjectRef[Plan]:
        """The plan in the object store: one copy for all tasks, which may be many thousands."""
        return ray.put(self.plan)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "shared"}


def _reader(bundle: Bundle, plan: ray.ObjectRef[Plan]) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        yield to_table(_opened(plan).read(bundle))

    return read


@lru_cache(maxsize=4)
def _opened(plan: ray.ObjectRef[Plan]) -> Plan:
    """The plan in this process, whose shards stay open from one task to the next."""
    opened: Plan = ray.get(plan)
    return opened


@dataclass(frozen=True)
class ClusterDecoding:
    """Decoding in a pool of Ray Data actors.

    Attributes:
        actors: the most that are started.
        threads: decoding threads of each.
        nodes: labels of the nodes that they run on.
    """

    views: Views
    seed: int
    corrupt: str
    actors: int = 4
    threads: int = 1
    nodes: dict[str, str] | None = None


def dataset(
    plan: Plan,
    cursor: Cursor = (0, 0),
    read_cpus: float = 1.0,
    decoding: ClusterDecoding | None = None,
) -> ray.data.Dataset:
    """The plan as a Ray Data set; each of its executions is the next epoch.

    Args:
        read_cpus: logical CPUs of a read task; a decoding actor takes half of them as well.
    """
    source = PlanSource(plan, cursor)
    tasks = len(plan.bundles(*cursor))
    share = read_cpus / 2 if decoding else read_cpus
    data = ray.data.read_datasource(source, override_num_blocks=tasks, num_cpus=share)
    # A bundle is never split: the splitter deals out whole ones in turns.
    data.context.target_max_block_size = None
    data.context.enable_progress_bars = False
    if decoding is None:
        return data

    from raycl.data.pool import Cutter  # it brings torch, which a read task has no use for

    d = decoding
    return data.map_batches(
        Cutter,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=d.actors),
        fn_constructor_args=(source.shared, d.views, d.seed, d.corrupt, d.threads),
        num_cpus=share * d.threads,
        label_selector=d.nodes,
        udf_modifying_row_count=False,
    )


def warm_dataset(plan: Plan) -> ray.data.Dataset:
    """`dataset` for Ray Train to call when a group starts: Ray Data comes up meanwhile.

    Its statistics actor and the processes that read take seconds to start, one after the other, and
    would be started only when the group asks for its first batch.
    """
    threading.Thread(target=touch_nodes, daemon=True).start()
    return dataset(plan)


def touch_nodes() -> ray.data.Dataset:
    """Runs one small task of Ray Data on every node, which starts what it needs there."""
    nodes = sum(node["Alive"] for node in ray.nodes())
    items = ray.data.from_items([{"node": 0}] * nodes, override_num_blocks=nodes)
    data = items.map_batches(_same, num_cpus=0.01)
    data.context.enable_progress_bars = False
    return data.materialize()


def _same(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch


class PlannedData(ray.train.DataConfig):
    """Splits the plan's bundles over the ranks of the group that has just started.

    Args:
        plan: what is delivered under the name "train".
        cursor: finds where the newest complete checkpoint left off; called per group.
        read_cpus: logical CPUs of a read task.
    """

    def __init__(
        self,
        plan: Plan,
        cursor: Callable[[], Cursor],
        read_cpus: float,
        decoding: ClusterDecoding | None = None,
    ) -> None:
        # The splitter deals bundles out in turns only if they arrive in the planned order.
        super().__init__(execution_options={"train": ExecutionOptions(preserve_order=True)})
        self.plan = plan
        self.cursor = cursor
        self.read_cpus = read_cpus
        self.decoding = decoding

    def configure(self, datasets: Any, world_size: int, *args: Any, **kwargs: Any) -> Any:
        data = dataset(self.plan, self.cursor(), self.read_cpus, self.decoding)
        return super().configure({"train": data}, world_size, *args, **kwargs)
