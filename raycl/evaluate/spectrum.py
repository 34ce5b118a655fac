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
def alpha_req(x: Tensor, first: int = 3, last: int = 100) -> float:
    """Decay of the spectrum of embeddings (alpha-ReQ, Agrawal et al. 2022, section 2).

    The exponent alpha of a power law lambda_j ~ j^-alpha, fitted to the eigenvalues of the
    covariance in double logarithms with weights 1/j, as published. Representations that transfer
    well have it near 1: above, few directions carry all; below, noise fills the others.

    Args:
        x: (N, D) embeddings.
        first, last: ranks j of the eigenvalues that are fitted, from 1.

    Returns:
        The exponent, NaN where `x` is not finite or has no three such eigenvalues above zero.
    """
    if not x.isfinite().all():
        return float("nan")
    centred = x.double() - x.double().mean(0)
    eigenvalues = torch.linalg.svdvals(centred).square() / max(len(x) - 1, 1)
    ranks = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64, device=x.device)
    floor = eigenvalues.max() * torch.finfo(x.dtype).eps  # rounding, from there on
    kept = (ranks >= first) & (ranks <= last) & (eigenvalues > floor)
    if kept.sum() < 3:
        return float("nan")
    j, log_j, log_value = ranks[kept], ranks[kept].log(), eigenvalues[kept].log()
    weights = 1 / j / (1 / j).sum()
    slope, level = log_j - (weights * log_j).sum(), log_value - (weights * log_value).sum()
    return -float((weights * slope * level).sum() / (weights * slope.square()).sum())


@torch.no_grad()
def embedding_std(x: Tensor) -> float:
    """Mean over dimensions of the standard deviation of L2-normalised rows of (N, D) embeddings.

    Near 1/sqrt(D) for embeddings spread over the sphere, near 0 after a collapse to one point
    (SimSiam, Chen & He 2021, section 4.1).
    """
    return float(F.normalize(x.float(), dim=1).std(dim=0, correction=0).mean())
