"""Objectives as pure functions: embeddings in, a scalar out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from raycl.nn.collectives import (
    all_reduce_mean,
    all_reduce_sum,
    concat,
    gather,
    rank,
    world_size,
)


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


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Contrast of queries with their keys against a queue (MoCo, He et al. 2020, equation 1).

    In single precision at least, also under autocast. Its value by chance is log(1 + K).

    Args:
        q: queries (N, D), not normalised.
        k: keys (N, D), not normalised, without gradient; row i is the positive of row i of q.
        negatives: (K, D) of unit length.
        temperature: what cosine similarities are divided by.

    Returns:
        The mean over this rank's rows, a scalar.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k = unit(q), unit(k.detach())
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ negatives.to(q.dtype).T], 1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Minus the cosine of predictions (N, D) and targets (N, D) without gradient, mean over rows.

    SimSiam's distance (Chen and He 2021, equation 1); BYOL's is 2 more than twice it.
    """
    return -F.cosine_similarity(_precise(p), _precise(z.detach())).mean()


def barlow_twins(z1: Tensor, z2: Tensor, off_diagonal: float) -> Tensor:
    """Redundancy reduction (Zbontar et al. 2021, equation 1) over the rows of all ranks.

    Args:
        z1, z2: projections of both views (N, D); as many rows on every rank.
        off_diagonal: lambda, the weight of what is off the diagonal.

    Returns:
        The loss of the global batch, a scalar, on every rank.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = (_standardised(_precise(z)) for z in (z1, z2))
        correlation = all_reduce_sum(z1.T @ z2) / (len(z1) * world_size())
        diagonal = correlation.diagonal()
        rest = correlation.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + off_diagonal * rest


def vicreg(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Invariance, variance and covariance (Bardes et al. 2022, equations 1 to 5), all ranks' rows.

    The variance term is the mean of both views', as in the released code; the paper adds them.

    Args:
        z1, z2: projections of both views (N, D); as many rows on every rank.

    Returns:
        The three terms, scalars without weights; the first is this rank's mean.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = _precise(z1), _precise(z2)
        invariance = F.mse_loss(z1, z2)
        rows = len(z1) * world_size()
        variance = covariance = z1.new_zeros(())
        for z in (z1, z2):
            z = z - all_reduce_sum(z.sum(0)) / rows
            products = all_reduce_sum(z.T @ z) / (rows - 1)
            diagonal = products.diagonal()
            variance = variance + F.relu(1 - (diagonal + 1e-4).sqrt()).mean() / 2
            off = products.square().sum() - diagonal.square().sum()
            covariance = covariance + off / len(diagonal)
        return invariance, variance, covariance


def in_batch(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Contrast of queries with their keys against the other keys of all ranks.

    MoCo v3's (Chen, Xie, He 2021, section 3) without its factor 2 * temperature; NNCLR's (Dwibedi
    et al. 2021, equation 5) with nearest neighbours for queries.

    Args:
        q: queries (N, D), not normalised.
        k: keys (N, D), not normalised; row i is the positive of row i of q.
        temperature: what cosine similarities are divided by.

    Returns:
        The mean over this rank's rows, a scalar.
    """
    with torch.autocast(q.device.type, enabled=False):
        logits = unit(q) @ gather(unit(k)).T / temperature
        own = torch.arange(len(q), device=q.device) + rank() * len(q)
        return F.cross_entropy(logits, own)


def supervised_contrast(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss, L_out (Khosla et al. 2020, equation 2), over all ranks' rows.

    Rows without another of their label are left out of the mean, as anchors.

    Args:
        z: projections (N, D), not normalised; as many rows on every rank.
        labels: (N,) integers. Two views of a sample are two rows with its label.

    Returns:
        This rank's share of the mean over the anchors of all ranks, a scalar: the ranks' mean is
        the loss of one process with all rows.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = unit(z)
        keys, every = gather(z), concat(labels)
        itself = torch.arange(len(z), device=z.device)[:, None] + rank() * len(z)
        logits = (z @ keys.T / temperature).scatter(1, itself, float("-inf"))
        same = (labels[:, None] == every).scatter(1, itself, False)
        count = same.sum(1)
        chosen = logits.log_softmax(1).masked_fill(~same, 0).sum(1) / count.clamp(min=1)
        anchors = all_reduce_mean((count > 0).sum().to(z.dtype))
        return -chosen.sum() / anchors.clamp(min=1)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, rounds: int = 3) -> Tensor:
    """Assignments of rows to prototypes that are used equally (Caron et al. 2020, equation 5).

    Args:
        scores: (N, K), rows of this rank; as many on every rank.
        epsilon: weight of the entropy; the smaller, the harder the assignment.
        rounds: of normalising columns, then rows.

    Returns:
        (N, K), rows that add up to 1.
    """
    scores = _precise(scores) / epsilon
    # What all ranks take away from all scores cancels; without it exp() would overflow.
    q = (scores - concat(scores.amax()[None]).amax()).exp()
    total = len(q) * world_size()
    for _ in range(rounds):
        q = q / (all_reduce_sum(q.sum(0)) * q.shape[1])
        q = q / (q.sum(1, keepdim=True) * total)
    return q * total


def swapped(
    codes: Mapping[str, Tensor], scores: Mapping[str, Tensor], temperature: float
) -> Tensor:
    """Cross-entropy between what one view is and what another predicts (SwAV, equation 2; DINO).

    Args:
        codes: by view, distributions (N, K) without gradient.
        scores: by view, those with codes among them, (N, K) before the softmax.
        temperature: of the softmax.

    Returns:
        The mean over all pairs of different views and over rows, a scalar.
    """
    losses = []
    for name, values in scores.items():
        with torch.autocast(values.device.type, enabled=False):
            predicted = F.log_softmax(_precise(values) / temperature, 1)
            losses += [
                -(code * predicted).sum(1).mean() for other, code in codes.items() if other != name
            ]
    return torch.stack(losses).mean()


def _precise(z: Tensor) -> Tensor:
    return z if z.dtype.itemsize >= 4 else z.float()


def unit(z: Tensor) -> Tensor:
    """Rows (N, D) of unit length, in single precision at least."""
    return F.normalize(_precise(z), dim=1)


def _standardised(z: Tensor) -> Tensor:
    """Columns with mean 0 and (biased) variance 1 over the rows of all ranks."""
    rows = len(z) * world_size()
    z = z - all_reduce_sum(z.sum(0)) / rows
    variance = all_reduce_sum(z.square().sum(0)) / rows
    return z / (variance + 1e-5).sqrt()
