"""The driver: one function that pretrains a recipe, in this process or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from raycl.data import ffcv_engine
from raycl.data.folder import Folder
from raycl.data.plan import Columns, Plan, from_table, local_bundles
from raycl.errors import RayclError
from raycl.recipe import Recipe
from raycl.train import checkpoint, signals
from raycl.train.board import Board
from raycl.train.hosts import check_storage, wait_for_room
from raycl.train.loop import Loop, Place
from raycl.train.mirror import Mirror
from raycl.train.observers.services import Prometheus, require
from raycl.train.resources import Resources, decide
from raycl.train.run import absolute, open_run, plan_of
from raycl.train.worker import (
    Ears,
    build,
    online_knn,
    stop_on_interrupt,
    threads_of,
    train,
    training_corpus,
)

# Seconds that a worker group may take to find its places. Ray notices a lost worker before its
# host's loss and reserves places there again: a group of another size should not wait for long.
START_TIMEOUT, START_TIMEOUT_ELASTIC = 30, 8
RESIZE = 15.0  # seconds between two looks whether the group could be larger

_log = logging.getLogger(__name__)

Listen = Callable[[dict[str, Any]], None]


class Stopped(Exception):
    """What a listener raises to end a run, which goes on from its newest checkpoint if resumed."""


def pretrain(
    recipe: Recipe,
    run: Path,
    listen: Listen = lambda record: None,
    part: float | None = None,
) -> Path:
    """Trains a recipe in a run directory, or goes on where the directory's run left off.

    One worker without a cluster runs in this process; its storage, resume and observers are those
    of every other run.

    Args:
        listen: hears every logged record of metrics; notes are logged as warnings instead. It ends
            the run by raising `Stopped`.
        part: of the cluster that a trial may take, where several share it; one worker then runs in
            this process.

    Raises:
        RayclError: anything about recipe, data or directory that the user can mend, before
            anything is written.
        Stopped: as the listener did.
    """
    recipe, run, listen = absolute(recipe), run.absolute(), _without_notes(listen)
    for name in recipe.trainer.watch:
        require(name)
    mirror = Mirror(run, recipe.trainer.storage)
    if not (run / "recipe.yaml").exists():
        mirror.pull()  # the run may have begun on another machine
    plan = checked(recipe, run)
    alone = recipe.trainer.workers == 1 and (part is not None or not _cluster(recipe))
    if alone and recipe.data.decode_on != "cluster":
        _here(recipe, run, plan, listen)
    else:
        _on_ray(recipe, run, plan, listen, part or 1.0)
        mirror.pull()
    return run


def checked(recipe: Recipe, run: Path) -> Plan:
    """A run's plan, if data, networks, first weights and online kNN are what they should be."""
    plan = plan_of(recipe, run)
    if recipe.data.engine == "ffcv":
        views = {name: stream.cut for name, stream in recipe.streams.items()}
        ffcv_engine.check(plan, views, recipe.data.corrupt)
    build(recipe, plan.first.shards)
    online_knn(recipe, training_corpus(recipe, plan.first.shards, torch.device("cpu")))
    return plan


def _without_notes(listen: Listen) -> Listen:
    """Keeps from a listener what is for people, and logs it."""

    def hear(record: dict[str, Any]) -> None:
        if "note" in record:
            _log.warning(record["note"])
        else:
            listen(record)

    return hear


def _here(recipe: Recipe, run: Path, plan: Plan, listen: Listen) -> None:
    lanes = range(recipe.trainer.lanes)
    place = Place(_device(recipe), lanes)
    open_run(run, recipe)
    ears = Ears(metrics=listen)
    if signals.in_main_thread():
        ears.loop = stop_on_interrupt
    with signals.kept():
        train(recipe, run, plan, place, lambda e, s: local_bundles(plan, lanes, e, s), ears)


def _device(recipe: Recipe) -> torch.device:
    if recipe.trainer.device == "cuda" and not torch.cuda.is_available():
        raise RayclError("trainer.device: cuda was asked for, torch sees none; use auto or cpu")
    use_gpu = recipe.trainer.device != "cpu" and torch.cuda.is_available()
    _check_decoding(recipe, use_gpu)
    return torch.device("cuda" if use_gpu else "cpu")


def _check_decoding(recipe: Recipe, use_gpu: bool) -> None:
    if recipe.data.decode_on == "gpu" and not use_gpu:
        raise RayclError(
            "data.decode_on: gpu was asked for, and this run's workers have none; use worker or "
            "cluster"
        )


def _cluster(recipe: Recipe) -> str | None:
    """The address of the cluster that was asked for, by the recipe or by a submitted job."""
    return recipe.trainer.address or os.environ.get("RAY_ADDRESS")


def _on_ray(recipe: Recipe, run: Path, plan: Plan, listen: Listen, part: float) -> None:
    # Must stand before Ray Train is imported by anyone in this process.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    timeout = START_TIMEOUT_ELASTIC if len(recipe.trainer.group_sizes) > 1 else START_TIMEOUT
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(timeout))
    import ray
    import ray.train
    import ray.train.torch
    from ray.train.v2.api.config import RunConfig, ScalingConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raycl.data.connect import connected
    from raycl.train.backend import NodeTorchConfig
    from raycl.train.group import GroupTrainer

    # raycl watches for nodes that will be taken away itself, without another actor's imports.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    place = checkpoint.folder(run, recipe.trainer.storage)
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    # A user's own method lies where the user stands; workers of this machine find it there.
    environment = {"env_vars": {"PYTHONPATH": path}}
    sizes = recipe.trainer.group_sizes
    with connected(recipe.trainer.address, runtime_env=environment) as local:
        share = _share(recipe, part)
        _check_decoding(recipe, bool(share.worker_gpus))
        check_storage(recipe.trainer.storage, run)
        open_run(run, recipe)
        # The board lives and dies with this driver, on its host, whichever others are lost.
        node = ray.get_runtime_context().get_node_id()
        here: Any = NodeAffinitySchedulingStrategy(node, soft=False)
        board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
        fed: dict[str, Any] = {}
        if through_ray(recipe, local):
            from raycl.data.source import PlannedData, warm_dataset

            fed = {
                "datasets": {"train": lambda: warm_dataset(plan)},
                "dataset_config": PlannedData(
                    plan,
                    lambda: checkpoint.cursor(checkpoint.newest(place)),
                    share.read_cpus,
                    _cluster_decoding(recipe),
                ),
            }
        trainer = GroupTrainer(
            _worker,
            place=place,
            sizes=sizes,
            board=board,
            train_loop_config={"recipe": recipe, "run": run, "plan": plan, "board": board}
            | {"through_ray": bool(fed)},
            torch_config=NodeTorchConfig(nccl=recipe.trainer.nccl),
            scaling_config=ScalingConfig(
                num_workers=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]),
                elastic_resize_monitor_interval_s=RESIZE,
                use_gpu=bool(share.worker_gpus),
                resources_per_worker={"CPU": share.worker_cpus}
                | ({"GPU": share.worker_gpus} if share.worker_gpus else {}),
            ),
            run_config=RunConfig(
                # A name of its own for every start: raycl resumes from its own checkpoints.
                name=f"train-{time.time_ns()}",
                storage_path=(Folder(recipe.trainer.storage or str(run)) / "ray").where,
            ),
            **fed,
        )
        with _relay(board, listen), signals.kept():
            try:
                trainer.fit()
            except SystemExit as error:  # how Ray Train ends a run on Ctrl-C
                raise KeyboardInterrupt from error
            except ray.train.TrainingFailedError as error:
                for failure in getattr(error, "worker_failures", {}).values():
                    if isinstance(failure, RayclError):
                        raise failure from error
                raise


def _share(recipe: Recipe, part: float) -> Resources:
    """Of the cluster for a worker, once there is room for the fewest of them."""
    import ray

    trainer, sizes = recipe.trainer, recipe.trainer.group_sizes
    wait_for_room(trainer, sizes[0])
    total = ray.cluster_resources()
    cpus, gpus = part * total.get("CPU", 0.0), part * total.get("GPU", 0.0)
    hosts = sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes())
    if trainer.wait_minutes:  # the rest of the largest group comes on hosts not there yet
        cpus = max(cpus, sizes[-1])
    share = decide(cpus, gpus, sizes, trainer.device, max(1, hosts))
    missing = ""
    if not cpus:
        missing = "a CPU is needed, and the cluster has none"
    elif share.worker_gpus * sizes[0] > gpus:
        missing = f"{sizes[0]} workers need a GPU each, the cluster has {gpus:g}"
    if missing:
        raise RayclError(
            f"trainer.device: {missing}; of a cluster that grows, trainer.wait_minutes=30 waits "
            "for it"
        )
    return share


def through_ray(recipe: Recipe, local: bool) -> bool:
    """Whether samples come from Ray Data's tasks, or each worker reads its own.

    On a machine by itself no other node could read for the workers, and Ray Data's processes start
    at their cost: a group's first step came 9 to 11 s later through them (jobs/bench_start.py).
    """
    data = recipe.data
    if data.engine != "raycl" or data.read_on == "worker":
        return False
    return not local or data.read_on == "cluster" or data.decode_on == "cluster"


def _cluster_decoding(recipe: Recipe) -> Any:
    from raycl.data.source import ClusterDecoding

    data = recipe.data
    if data.decode_on != "cluster":
        return None
    views = {name: stream.cut for name, stream in recipe.streams.items()}
    return ClusterDecoding(
        views,
        recipe.trainer.seed,
        data.corrupt,
        data.decode_actors,
        data.threads,
        data.decode_nodes,
    )


def _worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker."""
    import ray
    import ray.train
    import ray.train.torch

    recipe, plan, board = config["recipe"], config["plan"], config["board"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(threads_of(context.get_local_world_size()))
    lanes = range(rank, recipe.trainer.lanes, world)
    shard: Any = ray.train.get_dataset_shard("train") if config["through_ray"] else None

    def bundles(epoch: int, start: int) -> Iterator[Columns]:
        if shard is None:
            return local_bundles(plan, lanes, epoch, start)
        tables = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        return map(from_table, tables)

    def announce(newest: Folder | None) -> None:
        if newest is None:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as pointer:  # Ray Train only hears of checkpoints
            (Path(pointer) / "checkpoint.txt").write_text(newest.where)
            ray.train.report({"checkpoint": newest.name}, ray.train.Checkpoint(pointer))

    ears = Ears(
        metrics=lambda record: board.put.remote(record),
        note=lambda text: board.put.remote({"note": text}),
        checkpoint=announce,
        loop=lambda loop: None if rank else _listen(board, loop),
        writers=[Prometheus(config["run"].name)],
    )
    with suppress(KeyboardInterrupt):  # the run was ended through the board
        train(recipe, config["run"], plan, Place(device, lanes, rank, world), bundles, ears)


def _listen(board: Any, loop: Loop) -> None:
    """Has a checkpoint written when one is asked for, or a node of the cluster is to go away."""
    import ray
    from ray._private.state import state

    def listen(heard: int, known: set[str]) -> None:
        while True:
            time.sleep(1)
            (asked, ended), leaving = ray.get(board.asked.remote()), set(state.get_draining_nodes())
            if leaving - known:
                node = ", ".join(sorted(leaving - known))
                board.put.remote({"note": f"node {node} is to be taken away: saving a checkpoint"})
            loop.asked = loop.asked or asked > heard or bool(leaving - known)
            loop.ending = ended
            heard, known = asked, leaving

    arguments = [ray.get(board.asked.remote())[0], set()]
    threading.Thread(target=listen, args=arguments, daemon=True).start()


@contextmanager
def _relay(board: Any, listen: Listen) -> Iterator[None]:
    """Hands the board's records to a listener in this process, until the block ends."""
    import ray

    finished = threading.Event()
    stopped: list[Stopped] = []

    def hand_on() -> None:
        for record in ray.get(board.take.remote()):
            try:
                listen(record)
            except Stopped as reason:
                stopped.append(reason)
                board.end.remote()
                return

    def relay() -> None:
        while not (stopped or finished.wait(0.5)):
            hand_on()

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        if not stopped:
            hand_on()
    if stopped:
        raise stopped[0]
