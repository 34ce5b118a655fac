"""How the rows of a rank's batch belong to lanes, the virtual devices of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from raycl.nn import collectives


@dataclass(frozen=True)
class Layout:
    """The order of rows in the tensors that a rank's networks see.

    A rank's batch is lane-major: the rows of its first lane, then those of its second. Several
    views concatenated along the batch are so many such parts, one after the other.

    Attributes:
        lanes: lanes that this rank runs at once.
        batch: rows per lane in one part; None makes the whole tensor one lane.
        update_statistics: whether batch norm moves its running statistics; off in the second
            pass over a batch, which must not count twice.
    """

    lanes: int = 1
    batch: int | None = None
    update_statistics: bool = True

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {self.lanes}")
        if self.batch is None and self.lanes > 1:
            raise ValueError(f"{self.lanes} lanes need the number of rows per lane (batch)")

    def split(self, x: Tensor) -> Tensor:
        """Views rows as lanes: (parts * lanes * batch, ...) -> (parts, lanes, batch, ...)."""
        batch = len(x) if self.batch is None else self.batch
        if batch == 0 or len(x) % (self.lanes * batch):
            raise ValueError(
                f"{len(x)} rows are no whole number of parts of {self.lanes} lanes x {batch} rows"
            )
        return x.unflatten(0, (-1, self.lanes, batch))


# One stack for all threads: activation checkpointing runs the forward again in autograd's thread.
_layouts = [Layout()]


def current() -> Layout:
    """The layout in force; a single lane by default."""
    return _layouts[-1]


@contextmanager
def use(layout: Layout) -> Iterator[None]:
    """Puts a layout in force for the forward passes inside the block."""
    _layouts.append(layout)
    try:
        yield
    finally:
        _layouts.pop()


def in_order(gathered: Tensor, lanes: int) -> Tensor:
    """Rows that were gathered rank by rank, in the order of their lanes; rank r has r, r + W, ...

    Args:
        gathered: (W lanes N, ...), W ranks with so many lanes each.
    """
    ranks = collectives.world_size()
    by_rank = gathered.unflatten(0, (ranks, lanes, -1))
    return by_rank.transpose(0, 1).flatten(0, 2)
