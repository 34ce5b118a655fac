"""A data set that is being written: one shard a task, and nothing that looks whole before it is.

    OUT.partial/order.json          what was asked for; locked while a program writes here
    OUT.partial/00000.beton         a shard; it stands under its name when it is finished
    OUT.partial/dataset.json        written when all shards are finished

Then the directory is renamed to OUT. Whatever ends the work before that, be it Ctrl-C, a full disk,
a damaged image or SIGKILL, leaves the finished shards there, and the same order goes on with the
others. Where none is finished, nothing is left behind (after SIGKILL, the next order cleans up).
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, TypedDict, TypeVar

from raycl.beton import BetonError, Reader
from raycl.data import index
from raycl.data.find import SIDECAR, UNFINISHED
from raycl.data.storage import is_uri, shown
from raycl.errors import RayclError

ORDER = "order.json"
SHARD_BYTES = 256 << 20
_AHEAD = 64  # results of threads that wait to be written

Progress = Callable[[int, int], None]
Advance = Callable[[], None]
A = TypeVar("A")
B = TypeVar("B")


class Task(Protocol):
    """One shard to write. It may be pickled for another machine, so it holds little."""

    @property
    def samples(self) -> int: ...

    def write(self, path: Path, threads: int, advance: Advance) -> None:
        """Writes the shard, which appears under its name at once, or not at all.

        Args:
            advance: called after every sample.
        """
        ...


@dataclass(frozen=True)
class Part:
    """One data set of an order.

    Attributes:
        name: folder below the target; empty: the target itself.
        source: what `dataset.json` says about the origin.
    """

    name: str
    tasks: Sequence[Task]
    classes: list[str] | None
    source: str

    @property
    def extent(self) -> tuple[int, int]:
        """Samples and shards."""
        return sum(task.samples for task in self.tasks), len(self.tasks)


@dataclass(frozen=True)
class Written:
    """One data set that was written."""

    path: Path
    samples: int
    shards: int
    bytes: int
    classes: list[str] | None


@dataclass(frozen=True)
class Job:
    """A task, and where its shard goes."""

    task: Task
    path: Path
    target: Path

    def finished(self) -> bool:
        """Whether the shard is there and whole, and its index too."""
        if not (self.path.exists() and self.path.with_name(self.path.name + index.SUFFIX).exists()):
            return False
        try:
            return len(Reader(self.path)) == self.task.samples
        except BetonError:
            return False

    def run(self, threads: int, advance: Advance) -> None:
        """Writes the shard.

        Raises:
            RayclError: a sample is damaged, or the shard cannot be written.
        """
        try:
            self.task.write(self.path, threads, advance)
            index.write(self.path)
        except (OSError, BetonError) as error:
            cause = error.__cause__ if isinstance(error, BetonError) else error
            if isinstance(cause, OSError):
                raise RayclError(_explained(cause, self.target)) from error
            raise


def checked_target(out: str | Path) -> Path:
    """The absolute path of a directory that is to be made.

    Raises:
        RayclError: it is a URI, a file, not empty, or a mount point.
    """
    if is_uri(out):
        raise RayclError(
            f"{shown(str(out))}: data sets are written into directories; write into one and copy "
            f"it, {SIDECAR} last, with the tool of that store (`aws s3 sync`, `gsutil rsync`)"
        )
    target = Path(out).resolve()
    if target.exists():
        if not target.is_dir():
            raise RayclError(f"{target}: exists and is a file; choose another directory")
        if any(target.iterdir()):
            raise RayclError(
                f"{target}: exists and is not empty; choose another directory, or remove it first"
            )
        if target.is_mount():
            raise RayclError(f"{target}: is a mount point; choose a directory inside it")
    return target


class Writing(TypedDict, total=False):
    """Who writes, and who listens: the options that all commands share; see `write_parts`."""

    workers: int
    address: str | None
    progress: Progress | None


def write_parts(
    target: Path,
    order: dict[str, Any],
    parts: Sequence[Part],
    *,
    workers: int = 1,
    address: str | None = None,
    progress: Progress | None = None,
) -> list[Written]:
    """Writes data sets into a directory, or goes on where the same order was stopped.

    With one worker the shards are written one after the other in this process, in as many threads
    as there are cores. More workers, or an address, put a Ray Data pipeline in its place.

    Args:
        target: the directory, as from `checked_target`.
        order: all that the bytes of the shards depend on; JSON.
        workers: shards that are written at a time.
        address: of a Ray cluster whose machines all see `target`.
        progress: called with the samples done and their total.

    Raises:
        RayclError: another order was stopped here, or is still at work; a sample is damaged; the
            disk is full. Names what is kept.
    """
    if workers < 1:
        raise RayclError(f"workers: {workers} was given, allowed is 1 or more")
    order = json.loads(json.dumps(order | {"parts": {p.name: p.extent for p in parts}}))
    with _staged(target, order) as staging:
        jobs = [
            Job(task, staging / part.name / f"{number:05d}.beton", target)
            for part in parts
            for number, task in enumerate(part.tasks)
        ]
        for part in parts:
            (staging / part.name).mkdir(exist_ok=True)
        total = sum(job.task.samples for job in jobs)
        left = [job for job in jobs if not job.finished()]
        done = total - sum(job.task.samples for job in left)

        def advance(samples: int = 1) -> None:
            nonlocal done
            done += samples
            if progress:
                progress(done, total)

        if workers == 1 and address is None:
            for job in left:
                job.run(os.cpu_count() or 1, advance)
        elif left:
            from raycl.data.fleet import run_on_ray

            run_on_ray(left, workers, address, advance)
        written = [_described(part, target, staging / part.name) for part in parts]
    return written


def in_threads(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Results in the order of the items, some of them computed ahead."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def per_shard(samples: int | None, size: int, sizes: Sequence[int]) -> int:
    """Samples of a shard: as many as were asked for, or as make about `size` bytes.

    Args:
        sizes: bytes that some of the samples take.
    """
    mean = sum(sizes) / max(1, len(sizes))
    return samples or max(1, math.ceil(size / max(1.0, mean)))


def cut(samples: int, each: int) -> list[slice]:
    """Stretches of `each` samples, and a shorter one at the end."""
    return [slice(start, min(start + each, samples)) for start in range(0, samples, each)]


def positive(name: str, value: int | None) -> None:
    """Refuses an option below 1."""
    if value is not None and value < 1:
        raise RayclError(f"{name}: {value} was given, allowed is 1 or more")


@contextmanager
def _staged(target: Path, order: dict[str, Any]) -> Iterator[Path]:
    """The place beside `target` that becomes it at the end; kept or removed on a failure."""
    staging = target.with_name(f"{target.name}{UNFINISHED}")
    made = [path for path in target.parents if not path.exists()]
    if staging.is_dir() and not (staging / ORDER).exists() and any(staging.iterdir()):
        raise RayclError(
            f"{staging}: is in the way: a data set is written there before it becomes "
            f"{target.name}; rename that directory"
        )
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with _locked(staging / ORDER) as file:
            _refuse_another(file, order, staging)
            with _settled(staging, sum(shards for _, shards in order["parts"].values())):
                _start(file, order, staging)
                yield staging
                _sweep(staging)  # a task that Ray repeated has left what its first try wrote
                staging.rename(target)
                (target / ORDER).unlink()
    except OSError as error:
        raise RayclError(_explained(error, target)) from error
    finally:
        for path in made:
            try:
                path.rmdir()
            except OSError:
                break


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """An open file that no other program has locked; the system unlocks it when this one dies."""
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RayclError(
                f"{path.parent}: another program is writing this data set right now; wait for it, "
                f"or choose another directory"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise  # some network file systems know no locks
        yield file


def _refuse_another(file: TextIO, order: dict[str, Any], staging: Path) -> None:
    """Compares the order with the one that was stopped here, unless that one finished nothing."""
    if not any(staging.rglob("*.beton")):
        return
    file.seek(0)
    try:
        before = json.load(file)
    except ValueError:
        before = {}
    if before != order:
        changed = [name for name in order | before if order.get(name) != before.get(name)]
        told = "; ".join(
            f"{name}: was {before.get(name)!r}, is now {order.get(name)!r}" for name in changed
        )
        raise RayclError(
            f"{staging}: holds what is finished of another order ({told}); repeat that one to go "
            f"on with it, or remove the directory to start anew"
        )


def _start(file: TextIO, order: dict[str, Any], staging: Path) -> None:
    """Writes the order down, and removes what a killed program did not finish."""
    _sweep(staging)
    if any(staging.rglob("*.beton")):
        return  # the order stands there already
    file.truncate(0)
    file.write(json.dumps(order, indent=1))
    file.flush()
    os.fsync(file.fileno())


def _sweep(staging: Path) -> None:
    for leftover in staging.rglob("*.partial"):
        leftover.unlink(missing_ok=True)


@contextmanager
def _settled(staging: Path, shards: int) -> Iterator[None]:
    """On a failure says what is kept, or removes the place where no shard is finished."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        finished = len(list(staging.rglob("*.beton")))
        if not finished:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        kept = (
            f"{finished} of {shards} shards are finished and kept in {staging}: the same command "
            f"goes on with the others; remove that directory to give up"
        )
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {kept}") from error
        if isinstance(error, OSError):
            raise RayclError(f"{_explained(error, staging)}; {kept}") from error
        if isinstance(error, RayclError):
            raise RayclError(f"{error}; {kept}") from error
        error.add_note(kept)
        raise


def _described(part: Part, target: Path, folder: Path) -> Written:
    """Writes `dataset.json` beside the finished shards of a part."""
    shards = [folder / f"{number:05d}.beton" for number in range(len(part.tasks))]
    lost = [path.name for path in shards if not path.exists()]
    if lost:
        raise RayclError(
            f"{folder}: {', '.join(lost)} cannot be seen from here; all machines of the cluster "
            f"must see this directory under the same name"
        )
    samples, _ = part.extent
    sizes = [path.stat().st_size for path in shards]
    content = {
        "classes": part.classes,
        "source": part.source,
        "samples": samples,
        "shards": [path.name for path in shards],
        "shard_samples": [task.samples for task in part.tasks],
        "shard_bytes": sizes,
    }
    with (folder / SIDECAR).open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return Written(target / part.name, samples, len(shards), sum(sizes), part.classes)


def _explained(error: OSError, target: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{target}: the disk is full ({error.strerror}); what was not finished was removed. "
            f"Make room, or choose a directory on another disk, a smaller max_resolution, or a "
            f"limit"
        )
    return f"{target}: cannot be written: {error.strerror or error}"
