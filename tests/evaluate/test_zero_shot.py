"""Zero-shot accuracies: published numbers, and classes that a classifier must tell apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from raycl.evaluate.zero_shot import conventional, generalized, harmonic_mean, per_class_accuracy

Golden = Callable[[str], dict[str, np.ndarray]]


def test_accuracies_are_those_of_the_published_code(golden: Golden) -> None:
    found = {k: torch.from_numpy(v) for k, v in golden("gzsl_accuracy").items()}
    s, u = (
        per_class_accuracy(found[f"scores_{part}"].argmax(1), found[f"label_{part}"])
        for part in ("seen", "unseen")
    )
    assert s == pytest.approx(found["acc_seen"].item(), abs=1e-6)
    assert u == pytest.approx(found["acc_unseen"].item(), abs=1e-6)
    assert harmonic_mean(s, u) == pytest.approx(found["H"].item(), abs=1e-6)
    unseen = found["unseen_classes"]
    guess = unseen[found["scores_unseen"][:, unseen].argmax(1)]
    alone = per_class_accuracy(guess, found["label_unseen"])
    assert alone == pytest.approx(found["zsl_acc"].item(), abs=1e-6)


def test_nothing_right_is_no_division_by_zero() -> None:
    assert harmonic_mean(0, 0) == 0


def clouds(classes: list[int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points about the corners of a simplex, one for each of five classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes).repeat_interleave(count)
    return 4 * torch.eye(5)[y] + 0.1 * torch.randn(len(y), 5, generator=generator), y


def test_classifiers_learn_what_they_are_shown() -> None:
    x, y = clouds([0, 1, 2, 3, 4], 60, 0)
    test_x, test_y = clouds([0, 1, 2, 3, 4], 5, 1)
    unseen = torch.tensor([3, 4])
    curve = generalized(x, y, test_x, test_y, unseen, batch=10)
    assert len(curve) == 25 and curve[-1] == {"S": 1.0, "U": 1.0, "H": 1.0}
    seen = y < 3
    without = generalized(x[seen], y[seen], test_x, test_y, unseen, batch=10)[-1]
    assert without == {"S": 1.0, "U": 0.0, "H": 0.0}
    new, new_test = y >= 3, test_y >= 3
    alone = conventional(x[new], y[new], test_x[new_test], test_y[new_test], batch=10)
    assert len(alone) == 100 and alone[-1] == 1.0
