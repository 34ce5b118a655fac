"""Checkpoints, written by raycl itself and the same on every path: one worker, a group, a trial.

    RUN/checkpoints/step-0000001200/
        rank-0.pt  rank-1.pt  ...           what is everyone's, and what each other rank adds
        manifest-0.json  manifest-1.json    its files with sizes and SHA-256, and the cursor
        COMPLETE                            world size and the hashes of all manifests

Each rank writes its files and then its manifest; after a barrier rank 0 writes COMPLETE. Without
COMPLETE a checkpoint does not exist. Nothing is renamed, because object stores cannot.

Torch is imported where tensors are read or written: the process that plans the data asks for the
cursor alone, and should not wait for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raycl.errors import RayclError

FOLDER = "checkpoints"


def save(
    run: Path,
    step: int,
    state: dict[str, Any],
    cursor: tuple[int, int],
    *,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] = lambda: None,
    keep: int = 2,
) -> Path:
    """Writes a checkpoint and drops all but the newest `keep`.

    Args:
        state: this rank's part; tensors and plain data (it is loaded with `weights_only=True`).
        cursor: (epoch, step within it) of the next batch.
        barrier: returns when all ranks have come to it.
    """
    import torch

    folder = run / FOLDER / f"step-{step:010d}"
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        (folder / "COMPLETE").unlink(missing_ok=True)
    barrier()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    name = f"rank-{rank}.pt"
    (folder / name).write_bytes(buffer.getbuffer())
    manifest = {
        "step": step,
        "cursor": list(cursor),
        "files": {name: {"bytes": buffer.tell(), "sha256": _sha256(buffer.getbuffer())}},
    }
    (folder / f"manifest-{rank}.json").write_text(json.dumps(manifest, indent=1))
    barrier()
    if rank == 0:
        hashes = {
            f"manifest-{r}.json": _sha256((folder / f"manifest-{r}.json").read_bytes())
            for r in range(world)
        }
        complete = {"world_size": world, "manifests": hashes}
        (folder / "COMPLETE").write_text(json.dumps(complete, indent=1))
        for old in _complete_folders(run)[keep:]:
            (old / "COMPLETE").unlink()  # first, so that a half-deleted one does not exist
            shutil.rmtree(old)
    barrier()
    return folder


def newest(run: Path) -> Path | None:
    """The newest checkpoint that is complete and whose every file has the hash that it should.

    Data plan and ranks call this on their own and come to the same answer, also where the newest
    checkpoint is damaged.
    """
    return next((folder for folder in _complete_folders(run) if _sound(folder)), None)


def latest(run: Path) -> Path | None:
    """The newest checkpoint that is complete, whatever became of its files since."""
    return next(iter(_complete_folders(run)), None)


def cursor(folder: Path | None) -> tuple[int, int]:
    """(epoch, step within it) of the next batch; the start where there is no checkpoint."""
    if folder is None:
        return (0, 0)
    epoch, step = json.loads((folder / "manifest-0.json").read_text())["cursor"]
    return (epoch, step)


def load(folder: Path, rank: int) -> dict[str, Any]:
    """State of a rank: rank 0's, which holds what is everyone's, with the rank's own parts."""
    import torch

    state: dict[str, Any] = torch.load(folder / "rank-0.pt", map_location="cpu", weights_only=True)
    own = folder / f"rank-{rank}.pt"
    if rank and own.is_file():
        state |= torch.load(own, map_location="cpu", weights_only=True)
    return state


def require(run: Path) -> Path:
    """The newest sound checkpoint, or a clear error."""
    folder = newest(run)
    if folder is None:
        raise RayclError(
            f"{run}: this run holds no complete checkpoint; start it with `raycl pretrain`"
        )
    return folder


def _complete_folders(run: Path) -> list[Path]:
    """Newest first."""
    return sorted((p.parent for p in (run / FOLDER).glob("step-*/COMPLETE")), reverse=True)


def _sound(folder: Path) -> bool:
    try:
        complete = json.loads((folder / "COMPLETE").read_text())
        for name, expected in complete["manifests"].items():
            text = (folder / name).read_bytes()
            if _sha256(text) != expected:
                return False
            for file, facts in json.loads(text)["files"].items():
                content = (folder / file).read_bytes()
                if len(content) != facts["bytes"] or _sha256(content) != facts["sha256"]:
                    return False
    except (OSError, ValueError, KeyError):
        return False
    return True


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
