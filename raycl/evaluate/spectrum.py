"""What the spread of embeddings tells without labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def rank_me(x: Tensor, eps: float = 1e-7) -> float:
    """Effective rank of embeddings (RankMe, Garrido et al. 2023, equation 1).

    The exponential of the entropy of the singular values, normalised to sum one: 1 when all rows
    are multiples of one vector, min(N, D) when all directions carry the same. The paper uses
    25,600 samples; the value cannot exceed N.

    Args:
        x: (N, D) embeddings, not centred.
        eps: added to every normalised singular value, as published.

    Returns:
        The rank, NaN where `x` holds NaN or infinity.
    """
    if not x.isfinite().all():
        return float("nan")
    singular = torch.linalg.svdvals(x.float())
    p = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny) + eps
    return float((-(p * p.log()).sum()).exp())


@torch.no_grad()
def embedding_std(x: Tensor) -> float:
    """Mean over dimensions of the standard deviation of L2-normalised rows of (N, D) embeddings.

    Near 1/sqrt(D) for embeddings spread over the sphere, near 0 after a collapse to one point
    (SimSiam, Chen & He 2021, section 4.1).
    """
    return float(F.normalize(x.float(), dim=1).std(dim=0, correction=0).mean())
