"""Objectives as pure functions: embeddings in, a scalar out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.nn.collectives import gather, rank, world_size


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, Chen et al. 2020, equation 1).

    The paper's value: the mean over this rank's 2N anchors, each against the keys of all ranks
    without itself. The published code returns the sum of the two views' means, twice as much.
    Computed in single precision at least, also under autocast.

    Args:
        z1: projections of the first view (N, D), not normalised; as many rows on every rank.
        z2: projections of the second view (N, D); row i is the positive of row i of z1.
        temperature: what cosine similarities are divided by.

    Returns:
        The loss, a scalar. The ranks' mean is the loss of one process with all rows.
    """
    count, total = len(z1), world_size() * len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.stack([z1, z2])
        # The epsilon is the published code's: 1e-12 on the squared norm.
        z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=2, eps=1e-6)
        keys = gather(z.transpose(0, 1)).transpose(0, 1).flatten(0, 1)
        logits = z.flatten(0, 1) @ keys.T / temperature
        own = torch.arange(count, device=z.device) + rank() * count
        itself = torch.cat([own, own + total])
        positive = torch.cat([own + total, own])
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits, positive)
