"""What a cluster must have before a group starts: room for it, and storage that its hosts share."""

from __future__ import annotations

import contextlib
import logging
import secrets
from pathlib import Path
from typing import Any

from raycl.data.folder import Folder
from raycl.data.storage import is_uri
from raycl.errors import RayclError
from raycl.sections import Trainer

LATE = 60.0  # seconds after which a host that does not answer is left out

_log = logging.getLogger(__name__)


def wait_for_room(trainer: Trainer, workers: int) -> None:
    """Has an autoscaling cluster grow until so many workers have room at once.

    Their places are set aside for as long as that takes: an autoscaler goes by that. Without
    `wait_minutes` nothing is waited for.

    Raises:
        RayclError: there is no room after so many minutes.
    """
    from ray.util import placement_group, remove_placement_group

    if not trainer.wait_minutes:
        return
    if trainer.device == "auto":
        raise RayclError(
            "trainer.wait_minutes: a cluster that grows cannot know what trainer.device=auto "
            "will take; give cuda or cpu"
        )
    gpu = {"GPU": 1.0} if trainer.device == "cuda" else {}
    group = placement_group([{"CPU": 1.0} | gpu] * workers)
    room = f"room for {workers} workers of a {'GPU and a ' if gpu else ''}CPU each"
    try:
        if group.wait(2):
            return
        _log.warning(f"waiting up to {trainer.wait_minutes:g} minutes for {room} in the cluster")
        if not group.wait(60 * trainer.wait_minutes):
            raise RayclError(
                f"trainer.wait_minutes: after {trainer.wait_minutes:g} minutes the cluster has no "
                f"{room}; `ray status` tells why, `raycl cluster check` whether it ever can"
            )
    finally:
        remove_placement_group(group)


def check_storage(storage: str | None, run: Path) -> None:
    """Has every host of the cluster write where checkpoints will be, and read what this one wrote.

    Raises:
        RayclError: one cannot, by its address; nothing is left behind.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    nodes.pop(here, None)
    if not nodes:
        return
    place, name = Folder(storage or str(run)), f".raycl-{secrets.token_hex(8)}"
    field = f"trainer.storage: {place}" if storage else f"trainer.storage: none given, and {run}"
    new = not is_uri(place.where) and not Path(place.where).exists()
    try:
        place.write(name, name.encode())
    except (OSError, RayclError) as error:
        raise RayclError(f"{field} cannot be written to: {error}") from error
    try:
        asked: dict[Any, str] = {}
        for node, address in nodes.items():
            there: Any = NodeAffinitySchedulingStrategy(node, soft=False)
            task: Any = ray.remote(num_cpus=0, scheduling_strategy=there)(_probe)
            asked[task.remote(place, name)] = address
        ready, late = ray.wait([*asked], num_returns=len(asked), timeout=LATE)
        found = [(asked[ref], ray.get(ref)) for ref in ready]
    finally:
        place.remove(name)
        if new:
            with contextlib.suppress(OSError):
                Path(place.where).rmdir()
    for ref in late:
        _log.warning(f"host {asked[ref]} has not said whether it can write to {place}")
    problems = [f"  {address}: {problem}" for address, problem in found if problem]
    if problems:
        raise RayclError(
            f"{field} is not shared by all hosts of the cluster:\n"
            + "\n".join(sorted(problems))
            + "\ngive trainer.storage a URI (s3://...) or a directory that every host mounts"
        )


def _probe(place: Folder, name: str) -> str:
    """What is wrong with a folder on the host where this runs; nothing if it is empty."""
    mine = f"{name}-{secrets.token_hex(8)}"
    try:
        if place.read(name) != name.encode():
            return "reads something else than was written"
        place.write(mine, b"")
        place.remove(mine)
    except FileNotFoundError:
        return "does not see what the run's host writes there"
    except (OSError, RayclError) as error:
        return f"cannot use it: {error}"
    return ""
