"""The embedded digits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from raycl.data.importers import digits


def test_splits_are_stratified_disjoint_and_fixed() -> None:
    train, test = digits.splits()
    items = {split.name: list(split.items) for split in (train, test)}
    assert [(s.name, len(s.items), len(items[s.name])) for s in (train, test)] == [
        ("train", 1437, 1437),
        ("test", 360, 360),
    ]
    origins = [item.origin for part in items.values() for item in part]
    assert len(set(origins)) == 1797
    counts = np.bincount([int(item.label or 0) for item in items["test"]], minlength=10)
    assert counts.min() >= 35 and counts.max() <= 37
    again = [item.origin for split in digits.splits() for item in split.items]
    assert again == origins


def test_images_are_the_digits_enlarged() -> None:
    source = load_digits()
    for item in list(digits.splits()[1].items)[:20]:
        index = int(item.origin.removeprefix("digit "))
        image = np.asarray(item.content)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert item.label == source.target[index]
        assert (image == image[:, :, :1]).all()
        means = image[:, :, 0].reshape(8, 4, 8, 4).mean((1, 3))
        assert np.corrcoef(means.ravel(), source.images[index].ravel())[0, 1] > 0.97


def test_other_importers_do_not_load_scikit_learn() -> None:
    code = "import sys, raycl.data.sink; sys.exit('sklearn' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
