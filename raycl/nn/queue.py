"""The keys of the last batches (MoCo, He et al. 2020, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raycl.errors import RayclError
from raycl.nn import collectives
from raycl.nn.lanes import in_order


class Queue(nn.Module):
    """Rows (size, dim), first in, first out; at the start random ones of unit length.

    All ranks hold the same rows, those of a batch in the order of its lanes.

    Args:
        size: rows, a multiple of the global batch.
        dim: values of a row.
    """

    rows: Tensor
    at: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, rows: Tensor, lanes: int) -> None:
        """Replaces the oldest rows by a batch of new ones, from all ranks.

        To be called when nothing needs the old ones any more: after the backward pass.

        Args:
            rows: (N, dim) of this rank's lanes.
            lanes: lanes of this rank.

        Raises:
            RayclError: the queue does not hold a whole number of global batches.
        """
        rows = in_order(collectives.concat(rows), lanes)
        size, count = len(self.rows), len(rows)
        if size % count:
            fits = max(size // count, 1) * count
            raise RayclError(
                f"method.queue: {size} rows are no multiple of the global batch of {count}; "
                f"{fits} would be"
            )
        places = (self.at + torch.arange(count, device=rows.device)) % size
        self.rows[places] = rows.to(self.rows.dtype)
        self.at.add_(count).remainder_(size)
