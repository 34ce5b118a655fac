"""What features look like as points: alignment, uniformity, and how alike two encoders are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.errors import RayclError

CHUNK = 1 << 24  # similarities held at once: 64 MiB of float32


def alignment(x: Tensor, y: Tensor, alpha: float = 2) -> float:
    """Mean distance of positive pairs, to the power of alpha, on the unit sphere; 0 is best.

    Wang & Isola 2020 ("Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", arXiv 2005.10242), equation 1.

    Args:
        x, y: (N, D) features of two views of each sample; normalised here.
    """
    distance = (F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)).norm(dim=1)
    return float(distance.double().pow(alpha).mean())


def uniformity(x: Tensor, t: float = 2) -> float:
    """Log of the mean Gaussian potential of all pairs on the unit sphere (ibid., equation 2).

    0 is a collapse; evenly spread features of many dimensions reach -2 t.

    Args:
        x: (N, D) features, two at least; normalised here.
    """
    if len(x) < 2:
        raise RayclError("uniformity: pairs are needed, and there is one sample; give two or more")
    x = F.normalize(x.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), max(1, CHUNK // len(x))):
        part = x[start : start + max(1, CHUNK // len(x))]
        potential = (2 * t * (part @ x.T - 1)).exp()
        potential.diagonal(start).zero_()  # a sample and itself are no pair
        total += potential.sum(dtype=torch.float64)
    return float((total / (len(x) * (len(x) - 1))).log())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity of two encoders' features: 1 up to rotation and scale, 0 without correlation.

    Kornblith et al. 2019 ("Similarity of Neural Network Representations Revisited", arXiv
    1905.00414): |Y'X|^2 / (|X'X| |Y'Y|) of centred features and Frobenius norms. It is computed
    from (D, D) matrices or, where samples are fewer than features, the same from (N, N) ones.

    Args:
        x, y: (N, D) and (N, E) features of the same samples in the same order.

    Raises:
        RayclError: the numbers of samples differ, or features do not vary.
    """
    if len(x) != len(y):
        raise RayclError(
            f"CKA: features of {len(x)} and {len(y)} samples were given; take the same samples"
        )
    x, y = (part.double() - part.double().mean(dim=0) for part in (x, y))
    if len(x) < max(x.shape[1], y.shape[1]):
        k, m = x @ x.T, y @ y.T
        shared, norms = (k * m).sum(), k.norm() * m.norm()
    else:
        shared, norms = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    if not norms > 0:
        raise RayclError("CKA: all samples have the same features; the encoder has collapsed")
    return float(shared / norms)
