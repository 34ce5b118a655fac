"""Shuffle-BN: keys are normalised beside other samples than their queries (MoCo, section 3.3).

Otherwise a batch norm's statistics would tell which rows belong together, and the task be trivial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raycl.errors import RayclError
from raycl.nn import collectives
from raycl.nn.lanes import Layout, in_order, use


@torch.no_grad()
def shuffled(
    network: Callable[[Tensor], dict[str, Tensor]],
    x: Tensor,
    lanes: Sequence[int],
    generator: torch.Generator,
    groups: int,
) -> dict[str, Tensor]:
    """What a network makes of a batch whose samples were dealt out anew to the lanes of all ranks.

    A run of one lane has nobody to exchange samples with. There, in place of the published way, the
    shuffled batch is normalised in groups.

    Args:
        network: (N, ...) -> tensors (N, ...) by name; called without gradient.
        x: (N, ...), the rows of this rank's lanes.
        lanes: which these are.
        generator: in the same state on every rank.
        groups: of a run of one lane, a divisor of N.

    Returns:
        The network's outputs for the rows of `x`, in their order.
    """
    here, rows = len(lanes), len(x) // len(lanes)
    layout = Layout(here, rows)
    total = len(x) * collectives.world_size()
    if total == rows:
        if rows % groups:
            raise RayclError(f"method.key_groups: {groups} does not divide the batch of {rows}")
        layout = Layout(groups, rows // groups)
    order = torch.randperm(total, generator=generator)
    places = (torch.tensor(lanes)[:, None] * rows + torch.arange(rows)).flatten()
    taken, back = (each[places].to(x.device) for each in (order, order.argsort()))
    with use(layout):
        found = network(in_order(collectives.concat(x), here)[taken])
    return {k: in_order(collectives.concat(v), here)[back] for k, v in found.items()}
