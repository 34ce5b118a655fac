"""Protocols of graphs: of nodes, of whole graphs, and of clusters (MVGRL, section 4.1).

As in the released code and, for clusters, the paper; features are taken as the encoder gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate.labels import check_pair, folds

Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

COSTS = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


@dataclass(frozen=True)
class Scores:
    """What the runs of a protocol gave, each in [0, 1] (ARI: at most 1)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Standard deviation of the runs, as of a sample of them (n - 1)."""
        return float(np.std(self.values, ddof=1))


def node_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    runs: int = 50,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> Scores:
    """Test accuracies of logistic regressions that start from different weights.

    Each is trained on all rows at once by Adam for 300 iterations at a rate of 0.01. All are one
    computation: neither their gradients nor Adam mix one's weights with another's.

    Args:
        train_x: (N, D) features.
        train_y: (N,) labels >= 0, two classes at least.
        test_x: (M, D) features.
        test_y: (M,) labels.
        runs: regressions.
        weight_decay: of Adam; 0.01 for Citeseer.
        seed: of the weights, which are Xavier-uniform; biases start at 0.
    """
    train_y = check_pair(train_x, train_y, "training")
    test_y = check_pair(test_x, test_y, "test", classes=1)
    classes = int(train_y.max()) + 1
    bound = (6 / (train_x.shape[1] + classes)) ** 0.5
    draw = torch.Generator().manual_seed(seed)
    weight = torch.rand(runs, classes, train_x.shape[1], generator=draw) * 2 * bound - bound
    weight = weight.to(train_x).requires_grad_()
    bias = train_x.new_zeros(runs, 1, classes).requires_grad_()
    # Cloned, because features that were made in inference mode refuse autograd.
    x = train_x.clone()
    optimizer = torch.optim.Adam([weight, bias], lr=0.01, weight_decay=weight_decay)
    for _ in range(300):
        logits = _logits(weight, bias, x)
        optimizer.zero_grad()
        (runs * F.cross_entropy(logits.flatten(0, 1), train_y.repeat(runs))).backward()
        optimizer.step()
    with torch.no_grad():
        right = _logits(weight, bias, test_x).argmax(dim=2) == test_y
    return Scores(tuple(right.double().mean(dim=1).tolist()))


def graph_svm(x: Tensor, y: Tensor, *, seed: int = 0, each: Each = map) -> Scores:
    """Accuracies of a linear SVM on ten stratified folds, each held out once.

    The cost is the one of `COSTS` that does best in cross-validation over five stratified folds of
    the nine that are left.

    Args:
        x: (N, D) features of graphs.
        y: (N,) labels >= 0, of which each occurs ten times at least.
        seed: of the folds.
        each: calls a function for each of some items, perhaps several at a time.

    Raises:
        RayclError: there are too few graphs of a class.
    """
    y = check_pair(x, y, "training").cpu()
    found, counts = y.unique(return_counts=True)
    if counts.min() < 10:
        raise RayclError(
            f"graph SVM: class {found[counts.argmin()]} has {counts.min()} graphs, and ten folds "
            f"need 10 of each; join it with another or leave it out"
        )
    return Scores(tuple(each(partial(_fold, x.cpu(), y, seed), folds(y, 10, seed))))


def _fold(x: Tensor, y: Tensor, seed: int, rows: tuple[np.ndarray, np.ndarray]) -> float:
    """Accuracy on the second of the rows of an SVM that was fitted to the first."""
    rest, held_out = map(torch.from_numpy, rows)
    right = torch.zeros(len(COSTS))
    for fit, check in folds(y[rest], 5, seed):
        guesses = svm_guesses(x[rest[fit]], y[rest[fit]], x[rest[check]], COSTS)
        right += (guesses == y[rest[check]]).float().mean(dim=1)
    best = int(right.argmax())  # the lowest of equals
    guesses = svm_guesses(x[rest], y[rest], x[held_out], COSTS[: best + 1])
    return (guesses[-1] == y[held_out]).double().mean().item()


def svm_guesses(x: Tensor, y: Tensor, test_x: Tensor, costs: Sequence[float]) -> Tensor:
    """Classes that linear SVMs give, by cost: (C, M) of features (N, D), labels (N,) and (M, D).

    One against the rest, with the squared hinge loss and a bias that decays as weights do, which is
    LIBLINEAR's and scikit-learn's default. Theirs stops after a thousand passes, at high costs far
    from the minimum; of 512 features of 720 graphs it took 12 s for `COSTS`, and this 0.5 s.

    Args:
        x: to fit to.
        y: classes >= 0, two at least.
        test_x: to guess.
        costs: of a sample within the margin, beside |w|^2 / 2; rising, as each starts at the last.
    """
    classes = y.unique()
    x, test_x = (F.pad(rows.double(), (0, 1), value=1.0) for rows in (x, test_x))
    rivals = classes[1:] if len(classes) == 2 else classes
    paths = [_svm_path(x * ((y == one).double() * 2 - 1)[:, None], costs) for one in rivals]
    decisions = torch.stack(paths) @ test_x.T  # (K or 1, C, M)
    if len(classes) == 2:
        return classes[(decisions[0] > 0).long()]
    return classes[decisions.argmax(dim=0)]


def _svm_path(x: Tensor, costs: Sequence[float]) -> Tensor:
    """Weights (C, D) at the minimum, of rows (N, D) that should lie at 1 or beyond.

    Newton's method, for the loss is quadratic as long as the same rows are short of the margin.
    """
    weight, path = x.new_zeros(x.shape[1]), []
    inside, gram = x.new_zeros(len(x)), x.new_zeros(x.shape[1], x.shape[1])
    for cost in costs:
        for _ in range(100):
            value, short = _svm_loss(x, weight, cost)
            gradient = weight - 2 * cost * short @ x
            moved = (short > 0).double() - inside  # few, when the last step was small
            rows = moved.nonzero()[:, 0]
            inside, gram = inside + moved, gram.addmm(x[rows].T * moved[rows], x[rows])
            curvature = 2 * cost * gram
            curvature.diagonal().add_(1)
            step = torch.linalg.solve(curvature, gradient)
            decrease = gradient @ step
            if decrease <= 1e-9 * value:
                break
            size = 1.0
            while _svm_loss(x, weight - size * step, cost)[0] > value - size * decrease / 4:
                size /= 2
            weight = weight - size * step
        path.append(weight)
    return torch.stack(path)


def _svm_loss(x: Tensor, weight: Tensor, cost: float) -> tuple[Tensor, Tensor]:
    """The loss, and by how much each row is short of the margin."""
    short = (1 - x @ weight).clamp(min=0)
    return weight @ weight / 2 + cost * short @ short, short


def clusters(
    x: Tensor, y: Tensor, *, runs: int = 50, seed: int = 0, each: Each = map
) -> dict[str, Scores]:
    """How k-means with as many clusters as classes agrees with labels, over runs of it.

    Args:
        x: (N, D) features of nodes or graphs.
        y: (N,) labels >= 0, two classes at least.
        runs: of k-means; each is the best of ten starts.
        seed: of the first run; the next have the next ones.
        each: calls a function for each of some items, perhaps several at a time.

    Returns:
        "nmi", normalised mutual information (by the arithmetic mean of entropies), and "ari", the
        adjusted Rand index.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    labels = check_pair(x, y, "training").cpu().numpy()
    features = x.cpu().numpy()
    count = len(np.unique(labels))
    guesses = list(each(partial(_clustered, features, count), range(seed, seed + runs)))
    measures = {"nmi": normalized_mutual_info_score, "ari": adjusted_rand_score}
    return {
        name: Scores(tuple(float(measure(labels, guess)) for guess in guesses))
        for name, measure in measures.items()
    }


def _clustered(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans  # a second, which other protocols can spare

    found: np.ndarray = KMeans(count, n_init=10, random_state=seed).fit_predict(x)
    return found


def _logits(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Weights (R, K, D), biases (R, 1, K) and features (N, D) -> (R, N, K)."""
    together = x @ weight.flatten(0, 1).T
    return together.unflatten(1, weight.shape[:2]).transpose(0, 1) + bias
