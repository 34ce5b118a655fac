"""Where the bytes of a `.beton` file come from."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Protocol

import numpy as np

from raycl.beton.layout import BetonError


class Source(Protocol):
    """The bytes of one file. Sources may be shared by threads and pickled.

    Attributes:
        name: path or URI for messages, without credentials.
        size: of the file, in bytes.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, start: int, size: int) -> memoryview:
        """The bytes [start, start + size) of the file, read-only and never fewer."""
        ...

    def gather(self, starts: np.ndarray, sizes: np.ndarray, page_size: int) -> list[memoryview]:
        """Many parts at once, in the order asked for; no part crosses a multiple of `page_size`.

        Args:
            starts, sizes: (n,) int64, in bytes.
        """
        ...


class MappedFile:
    """A local file in a memory map: nothing is read before it is looked at, nothing is copied.

    Raises:
        BetonError: the file is missing or cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        # Absolute, because it may be pickled into a process with another working directory.
        self.name = str(Path(path).absolute())
        try:
            with open(self.name, "rb") as file:
                self.size = file.seek(0, 2)
                content: mmap.mmap | bytes = b""  # an empty file cannot be mapped
                if self.size:
                    content = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise BetonError(f"{self.name}: there is no such file") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BetonError(f"{self.name}: cannot be read: {reason}") from error
        self._bytes = memoryview(content)

    def __reduce__(self) -> tuple[type[MappedFile], tuple[str]]:
        return MappedFile, (self.name,)

    def read(self, start: int, size: int) -> memoryview:
        return self._bytes[start : start + size]

    def gather(self, starts: np.ndarray, sizes: np.ndarray, page_size: int) -> list[memoryview]:
        content = self._bytes
        ends = starts + sizes
        return [content[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
