"""Linear probes: a linear classifier on frozen features (SimCLR, Chen et al. 2020, appendix B)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate.labels import check_pair, folds

L2 = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4)  # strongest first: each fit starts from the one before
FEW = 1000  # fewer training samples than this: every fold is held out once


@dataclass(frozen=True)
class Probe:
    """A linear classifier of standardised features.

    Attributes:
        mean, scale: (D,) that standardise.
        weight: (classes, D + 1); the last column is the bias.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Features (..., D) -> (..., classes)."""
        return _logits(self.weight, (x.to(self.mean) - self.mean) / self.scale)


def linear_lbfgs(
    train_x: Tensor,
    train_y: Tensor | None,
    test_x: Tensor,
    test_y: Tensor | None,
    *,
    seed: int = 0,
) -> float:
    """Test accuracy of a `linear_probe`.

    Args:
        train_x: (N, D) features.
        train_y: (N,) labels >= 0, two classes at least.
        test_x: (M, D) features.
        test_y: (M,) labels.
        seed: decides which samples are held out.

    Returns:
        Accuracy in [0, 1].
    """
    test_y = check_pair(test_x, test_y, "test", classes=1)
    return _accuracy(linear_probe(train_x, train_y, seed=seed).logits(test_x), test_y)


def linear_probe(train_x: Tensor, train_y: Tensor | None, *, seed: int = 0) -> Probe:
    """Multinomial logistic regression on standardised features (N, D) and labels (N,).

    The L2 strength is the one that is most often right on a held-out, stratified tenth of the
    training features (ties: lowest cross-entropy); below 1,000 samples, where a tenth decides
    nothing, by cross-validation over all tenths. The final fit uses all training features.
    """
    train_y = check_pair(train_x, train_y, "training")
    classes = int(train_y.max()) + 1
    mean, scale = _moments(train_x)
    x = (train_x.float() - mean) / scale

    tenths = folds(train_y, min(10, len(x)), seed)
    scores = torch.zeros(len(L2), 2, dtype=torch.float64)
    for kept, held_out in tenths if len(x) < FEW else tenths[:1]:
        for score, weight in zip(scores, _fits(x[kept], train_y[kept], classes, L2), strict=True):
            logits = _logits(weight, x[held_out])
            labels = train_y[held_out]
            score[0] += (logits.argmax(dim=1) == labels).sum().cpu()
            score[1] -= F.cross_entropy(logits, labels, reduction="sum").cpu()
    best = max(range(len(L2)), key=lambda index: tuple(scores[index].tolist()))

    (weight,) = _fits(x, train_y, classes, [L2[best]])
    return Probe(mean, scale, weight)


def linear_sgd(
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    test_x: Tensor,
    test_y: Tensor | None,
    *,
    samples: int,
    classes: int,
    epochs: int = 90,
    rate: float = 0.1,
) -> float:
    """Test accuracy after the published schedule of SimCLR's linear evaluation.

    SGD with Nesterov momentum 0.9, learning rate `rate` * B / 256 with a cosine to 0 and no
    warm-up, no weight decay, classifier starting at zero. B is the size of the first batch
    (published: 4,096). Features go in as they are; the caller renders each epoch's training
    images with random crop and flip, and the test images with the centre crop.

    Args:
        batches: epoch -> batches of features (B, D) and labels (B,) of that epoch.
        test_x: (M, D) features.
        test_y: (M,) labels.
        samples: samples in one epoch; the cosine runs over `epochs * samples`.
        classes: number of classes, at least 2.
        epochs: passes over the training data.
        rate: learning rate per 256 samples of a batch.

    Returns:
        Accuracy in [0, 1].
    """
    test_y = check_pair(test_x, test_y, "test", classes=1)
    if classes < 2:
        raise RayclError(
            f"linear probe: the data holds {classes} class(es); a classifier needs at least two, so"
            " check the label field or add samples of another class"
        )
    head = nn.Linear(test_x.shape[1], classes, device=test_x.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9, nesterov=True)
    seen, peak = 0, 0.0
    for epoch in range(epochs):
        for h, y in batches(epoch):
            peak = peak or rate * len(h) / 256
            progress = min(1.0, seen / (epochs * samples))
            optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * progress)) / 2
            # Cloned, because features that were made in inference mode refuse autograd.
            logits = head(h.to(head.weight, copy=True))
            loss = F.cross_entropy(logits, y.to(test_y, copy=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(h)
    if seen == 0:
        raise RayclError("linear probe: the training data is empty; no batch of features came")
    if not head.weight.isfinite().all():
        raise RayclError(
            f"linear probe: SGD diverged at learning rate {peak:g}; lower it (now {rate:g} per 256"
            " samples), or use the L-BFGS probe, which standardises the features"
        )
    with torch.no_grad():
        return _accuracy(head(test_x.to(head.weight)), test_y)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale (D,) that standardise x (N, D); dimensions without spread are left alone."""
    std, mean = torch.std_mean(x.float(), dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, torch.ones_like(std))


def _fits(x: Tensor, y: Tensor, classes: int, strengths: Iterable[float]) -> list[Tensor]:
    """Minimises mean cross-entropy + l2 / 2 * |W|^2 for each strength, in turn.

    SciPy leads the search; loss and gradient are computed where the features are. W is a sum of
    rows of x, so where there are fewer of these than features the search is for W in the basis that
    they span: the same minimum in N dimensions, of which D = 27,648 raw pixels of 2,040 images need
    a thirteenth of the time.

    Args:
        x: (N, D) standardised features.
        y: (N,) labels, or (N, classes) weights of each class, whose sum is N.

    Returns:
        A (classes, D + 1) matrix per strength; the last column is the bias, which is not penalised.
    """
    from scipy.optimize import minimize  # a second or two, which a run that only trains can spare

    basis = None
    if x.shape[1] > x.shape[0]:
        basis, coordinates = torch.linalg.qr(x.T)
        x = coordinates.T
    shape = (classes, x.shape[1] + 1)

    def objective(flat: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat).to(x).view(shape).requires_grad_()
        penalty = l2 / 2 * weight[:, :-1].square().sum()
        loss = F.cross_entropy(_logits(weight, x), y) + penalty
        (gradient,) = torch.autograd.grad(loss, weight)
        return loss.item(), gradient.flatten().double().cpu().numpy()

    options = {"maxiter": 500, "gtol": 1e-4, "ftol": 1e-7}
    flat, fitted = np.zeros(shape[0] * shape[1]), []
    # SciPy's vectors are short: threads of its BLAS would only wait for each other and for torch's.
    with threadpool_limits(1, "blas"):
        for l2 in strengths:
            found = minimize(objective, flat, (l2,), "L-BFGS-B", jac=True, options=options)
            flat = found.x
            weight = torch.from_numpy(flat).to(x).view(shape)
            if basis is not None:
                weight = torch.cat([weight[:, :-1] @ basis.T, weight[:, -1:]], 1)
            fitted.append(weight)
    return fitted


def _logits(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight[:, :-1], weight[:, -1])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).float().mean())
