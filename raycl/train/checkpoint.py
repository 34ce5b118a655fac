"""Checkpoints, written by raycl itself and the same on every path: one worker, a group, a trial.

    RUN/checkpoints/step-0000001200/
        encoder.safetensors                 the encoder's weights under their own names
        rank-0.pt  rank-1.pt  ...           what each rank wrote, for torch.load(weights_only=True)
        manifest-0.json  manifest-1.json    its files with sizes and SHA-256, the cursor, metrics
        COMPLETE                            world size and the hashes of all manifests

The tensors of `method` and the states of `optimizers` are shared out over the ranks: together, the
dicts of all rank files are the whole. Each rank writes its files and then its manifest; when all
manifests are there rank 0 writes COMPLETE. Without COMPLETE a checkpoint does not exist. Nothing is
renamed, because object stores cannot.

Torch is imported where tensors are read or written: the process that plans the data asks for the
cursor alone, and should not wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycl.data import storage as stores
from raycl.data.folder import Folder
from raycl.errors import RayclError

if TYPE_CHECKING:
    from raycl.sections import Checkpoint

TRIES = 4  # checkpoints that fail one after the other before the run ends
PEERS = 300.0  # seconds that rank 0 waits for the parts of the others
AT_ONCE = 8  # files that are read at the same time

_log = logging.getLogger(__name__)


def folder(run: Path, storage: str | None = None) -> Folder:
    """Where a run's checkpoints are.

    Args:
        storage: the recipe's `trainer.storage`.
    """
    return Folder(storage or str(run)) / "checkpoints"


class Writer:
    """Writes one rank's part of each checkpoint in a thread of its own, while training goes on.

    A checkpoint that cannot be written is told and the next one tried; the run goes on with what is
    there, and ends only when `TRIES` have failed in a row.

    Args:
        place: folder of the run's checkpoints.
        settings: how many are kept, and the best by which metric.
        warn: hears of a checkpoint that could not be written.
        before_complete: called by rank 0 before a checkpoint begins to exist.
    """

    def __init__(
        self,
        place: Folder,
        settings: Checkpoint,
        rank: int = 0,
        world: int = 1,
        *,
        warn: Callable[[str], None] = _log.warning,
        before_complete: Callable[[], None] = lambda: None,
    ) -> None:
        self.place, self.settings, self.rank, self.world = place, settings, rank, world
        self.warn, self.before_complete = warn, before_complete
        self.newest: Folder | None = None  # complete; rank 0 alone knows
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failures = 0

    def save(
        self,
        step: int,
        state: dict[str, Any],
        cursor: tuple[int, int],
        *,
        encoder: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        token: int = 0,
    ) -> None:
        """Copies what has state and begins to write it. To be called on all ranks alike.

        Args:
            state: tensors and plain data; of `method` and `optimizers` all ranks hold the same.
            cursor: (epoch, step within it) of the next batch.
            encoder: tensors that rank 0 also writes as a safetensors file.
            metrics: the latest values; non-finite ones are left out.
            token: the same on all ranks, and another for each call: what tells this checkpoint's
                files from those of an attempt before it.
        """
        self.wait()
        manifest = {
            "token": token,
            "step": step,
            "cursor": list(cursor),
            "metrics": {k: v for k, v in (metrics or {}).items() if math.isfinite(v)},
        }
        part = share(state, self.rank, self.world)
        weights = {k: _copied(v) for k, v in _gathered(encoder or {}) if self.rank == 0}
        arguments = (self.place / f"step-{step:010d}", part, weights, manifest)
        self._thread = threading.Thread(target=self._try, args=arguments, daemon=True)
        self._thread.start()

    def wait(self, must: bool = False) -> bool:
        """Returns when what was begun is written, or has failed; says whether anything was begun.

        Raises:
            RayclError: it failed and `must` not, or too many have failed in a row.
        """
        if self._thread is None:
            return False
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        self._failures = self._failures + 1 if error else 0
        if error is None:
            return True
        text = f"no checkpoint could be written to {self.place}: {error}"
        if must or self._failures >= TRIES:
            left = self.newest.name if self.newest else "what was there when this run began"
            raise RayclError(
                f"{text}; the newest is {left}; make room or mend the storage, then resume the run"
            ) from error
        self.warn(f"{text}; training goes on, and the next one is tried in its turn")
        return True

    def _try(self, target: Folder, *arguments: Any) -> None:
        try:
            self._write(target, *arguments)
        except Exception as error:  # told by wait()
            self._error = error
            own = ["encoder.safetensors"] if self.rank == 0 else []
            with contextlib.suppress(OSError, RayclError):  # what is half-written takes room
                for name in [*own, f"rank-{self.rank}.pt", f"manifest-{self.rank}.json"]:
                    target.remove(name)

    def _write(
        self,
        target: Folder,
        part: dict[str, Any],
        weights: dict[str, Any],
        manifest: dict[str, Any],
    ) -> None:
        import torch
        from safetensors.torch import save

        if self.rank == 0:
            target.remove("COMPLETE")  # of an attempt before this one
        buffer = io.BytesIO()
        torch.save(part, buffer)
        files: dict[str, Any] = {f"rank-{self.rank}.pt": buffer.getbuffer()}
        if weights:
            plain = {name: weight.contiguous() for name, weight in weights.items()}
            files["encoder.safetensors"] = save(plain, metadata={"format": "pt"})
        facts = {
            name: {"bytes": len(content), "sha256": _sha256(content)}
            for name, content in files.items()
        }
        for name, content in files.items():
            target.write(name, content)
        text = json.dumps(manifest | {"files": facts}, indent=1).encode()
        target.write(f"manifest-{self.rank}.json", text)
        if self.rank:
            return
        hashes = self._manifests(target, manifest["token"])
        self.before_complete()
        complete = {"world_size": self.world, "manifests": hashes}
        target.write("COMPLETE", json.dumps(complete, indent=1).encode())
        self.newest = target
        try:
            self._retire()
        except (OSError, RayclError) as error:
            self.warn(f"checkpoints that are no longer needed stay in {self.place}: {error}")

    def _manifests(self, target: Folder, token: int) -> dict[str, str]:
        """The hash of every rank's manifest, when all have written theirs."""
        hashes: dict[str, str] = {}
        deadline = time.monotonic() + PEERS
        while True:
            new = [n for n in target.names() if n.startswith("manifest-") and n not in hashes]
            for name, text in zip(new, _read(target, new), strict=True):
                with contextlib.suppress(ValueError):  # it is still being written
                    if json.loads(text)["token"] == token:
                        hashes[name] = _sha256(text)
            if len(hashes) == self.world:
                return hashes
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.world - len(hashes)} of {self.world} ranks have not written their part"
                )
            time.sleep(0.1)

    def _retire(self) -> None:
        """Removes all but the newest, the best, and what is newer than the newest."""
        complete = _complete(self.place)
        kept: set[Folder | None] = set(complete[: self.settings.keep])
        if rule := self.settings.best:
            kept.add(best(self.place, rule.metric, rule.mode))
        for name in self.place.names():
            old = self.place / name
            if name.startswith("step-") and old not in kept and name < complete[0].name:
                old.remove("COMPLETE")  # first, so that a half-deleted one does not exist
                old.clear()


def newest(place: Folder) -> Folder | None:
    """The newest checkpoint that is complete and whose every file has the hash that it should.

    Data plan and ranks come to the same answer, also where the newest checkpoint is damaged.
    """
    return next((found for found in _complete(place) if _sound(found)), None)


def latest(place: Folder) -> Folder | None:
    """The newest checkpoint that is complete, whatever became of its files since."""
    return next(iter(_complete(place)), None)


def best(place: Folder, metric: str, mode: str) -> Folder | None:
    """The complete checkpoint with the highest ("max") or lowest ("min") metric, if any has it.

    Of equals the newest.
    """
    sign = 1 if mode == "max" else -1
    values: dict[Folder, float] = {}
    for found in _complete(place):
        with contextlib.suppress(OSError, ValueError, KeyError, stores.Unavailable):  # damaged
            values[found] = sign * json.loads(found.read("manifest-0.json"))["metrics"][metric]
    return max(values, key=values.__getitem__, default=None)


def cursor(found: Folder | None) -> tuple[int, int]:
    """(epoch, step within it) of the next batch; the start where there is no checkpoint."""
    if found is None:
        return (0, 0)
    epoch, step = json.loads(found.read("manifest-0.json"))["cursor"]
    return (epoch, step)


def load(found: Folder, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """State of a rank: rank 0's with the shares of all ranks, and the rank's own parts.

    Of `world` ranks that call this together, each reads some files and hands them to the others.
    """
    import torch

    from raycl.nn.collectives import handed_on

    written = json.loads(found.read("COMPLETE"))["world_size"]
    state: dict[str, Any] = {}
    for other in range(written):
        part: dict[str, Any] = {}
        if world == 1 or other % world == rank:
            content = io.BytesIO(found.read(f"rank-{other}.pt"))
            part = torch.load(content, map_location="cpu", weights_only=True)
        if world > 1:
            part = handed_on(part, other % world)
        own = {key: part.pop(key) for key in list(part) if key not in _SHARED}
        state = _merged(state, part)
        if other in (0, rank):
            state |= own
    return state


def require(run: Path, storage: str | None = None) -> Folder:
    """The newest sound checkpoint of a run, or a clear error."""
    found = newest(folder(run, storage))
    if found is None:
        raise RayclError(
            f"{run}: this run holds no complete checkpoint; start it with `raycl pretrain`"
        )
    return found


_SHARED = ("method", "optimizers")


def share(state: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """A copy of what a rank writes: of `method` and the optimizers' `state` a share, by bytes.

    All else is rank 0's, and of the other ranks what stands beside the two. Where a tensor is
    sharded itself, all ranks must call this together.
    """
    sections = [state.get("method", {})]
    sections += [optimizer["state"] for optimizer in state.get("optimizers", {}).values()]
    sizes = [(_bytes(v), i, key) for i, s in enumerate(sections) for key, v in s.items()]
    loads, owned = [0] * world, [set() for _ in sections]  # type: tuple[list[int], list[set[Any]]]
    for size, section, key in sorted(sizes, key=lambda entry: -entry[0]):
        owner = loads.index(min(loads))
        loads[owner] += size
        if owner == rank:
            owned[section].add(key)
    mine = [
        {k: _copied(v) for k, v in _gathered(section) if k in keys}
        for section, keys in zip(sections, owned, strict=True)
    ]
    part = {key: _copied(value) for key, value in state.items() if key not in _SHARED}
    part["method"] = mine[0]
    part["optimizers"] = {
        name: (optimizer if rank == 0 else {}) | {"state": entries}
        for (name, optimizer), entries in zip(
            state.get("optimizers", {}).items(), mine[1:], strict=True
        )
    }
    return part


def _gathered(section: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Entries with the whole of each tensor, one by one: all of them have no room on one device."""
    from raycl.train.sharding import whole

    return ((key, whole(value)) for key, value in section.items())


def _merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(one[k], two[k]) for k in one.keys() & two.keys() if isinstance(two[k], dict)}
    return one | two | both


def _bytes(value: Any) -> int:
    import torch

    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value.values())) if isinstance(value, dict) else 0


def _copied(value: Any) -> Any:
    """Tensors in memory of their own on the host: training changes the ones at hand."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)
    return value


def _complete(place: Folder) -> list[Folder]:
    """Newest first."""
    steps = [place / name for name in place.names() if name.startswith("step-")]
    return [step for step in reversed(steps) if "COMPLETE" in step.names()]


def _sound(found: Folder) -> bool:
    try:
        expected: dict[str, str] = json.loads(found.read("COMPLETE"))["manifests"]
        files: dict[str, Any] = {}
        for text, known in zip(_read(found, expected), expected.values(), strict=True):
            if _sha256(text) != known:
                return False
            files |= json.loads(text)["files"]
        for content, facts in zip(_read(found, files), files.values(), strict=True):
            if len(content) != facts["bytes"] or _sha256(content) != facts["sha256"]:
                return False
    except (OSError, ValueError, KeyError, stores.Unavailable):
        return False
    return True


def _read(place: Folder, names: Iterable[str]) -> Iterator[bytes]:
    """Files in the order of their names, some at once: of many ranks there are many small ones."""
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name in names:
            waiting.append(pool.submit(place.read, name))
            if len(waiting) == AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
