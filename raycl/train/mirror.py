"""The files of a run beside its checkpoints, copied to and from the storage of its recipe."""

from __future__ import annotations

from pathlib import Path

from raycl.data.folder import Folder


class Mirror:
    """Keeps RUN's own files (recipe, metrics, TensorBoard, pictures, encoder) in a storage folder.

    Object stores cannot append, so a file that has changed since it was last pushed is written
    whole again. Checkpoints are written there directly and are none of this class's business.

    Args:
        storage: the recipe's `trainer.storage`; None makes every call do nothing.
    """

    def __init__(self, run: Path, storage: str | None) -> None:
        self.run, self.folder = run, Folder(storage) if storage else None
        self._pushed: dict[Path, tuple[int, int]] = {}

    def push(self) -> None:
        """Writes what has changed since the last push."""
        if self.folder is None:
            return
        for path in [*self.run.glob("*"), *self.run.glob("tensorboard/*")]:
            if not path.is_file() or path.name.startswith("."):
                continue
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            if self._pushed.get(path) != state:
                parent = self.folder if path.parent == self.run else self.folder / "tensorboard"
                parent.write(path.name, path.read_bytes())
                self._pushed[path] = state

    def pull(self) -> None:
        """Writes what the storage holds over what lies here."""
        if self.folder is None:
            return
        self._pull(self.folder, self.run)
        self._pull(self.folder / "tensorboard", self.run / "tensorboard")

    def _pull(self, source: Folder, target: Path) -> None:
        for name in source.names():
            if "." not in name.lstrip("."):  # a directory
                continue
            target.mkdir(parents=True, exist_ok=True)
            partial = target / f".{name}.partial"
            partial.write_bytes(source.read(name))
            partial.replace(target / name)
