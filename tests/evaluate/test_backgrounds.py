from __future__ import annotations

import numpy as np
import pytest
import torch

from raycl.errors import RayclError
from raycl.evaluate.backgrounds import partners, replace_backgrounds


def test_partners_are_of_another_class_and_drawn_evenly() -> None:
    labels = np.array([4, 0, 4, 9, 0, 4, 9, 4])
    drawn = np.stack([partners(labels, seed) for seed in range(2000)])
    assert (labels[drawn] != labels).all()
    for position, label in enumerate(labels):
        others = np.flatnonzero(labels != label)
        count = np.bincount(drawn[:, position], minlength=len(labels))
        expected = 2000 / len(others)
        assert (np.abs(count[others] - expected) < 5 * expected**0.5).all()
    assert (partners(labels, 3) == partners(labels, 3)).all()


def test_one_class_has_no_partners() -> None:
    with pytest.raises(RayclError, match=r"data\.test: holds one class only \(label 3\)"):
        partners(np.array([3, 3]), 0)


def test_a_foreground_stands_on_a_background_without_its_object() -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = torch.randn(2, 3, 3, 8, 8, generator=generator)
    inside, hidden = torch.rand(2, 3, 8, 8, generator=generator) < 0.3
    inside[2], hidden[1] = False, True
    found = replace_backgrounds(images, inside, others, hidden)
    for n in range(3):
        counted = ~hidden[n] if n != 1 else hidden[n]  # all foreground: the mean of everything
        mean = others[n][:, counted].mean(dim=1)
        for row in range(8):
            for column in range(8):
                at = (slice(None), row, column)
                expected = others[n][at] if not hidden[n, row, column] else mean
                expected = images[n][at] if inside[n, row, column] else expected
                assert torch.allclose(found[n][at], expected, atol=1e-6)


def test_normalising_may_come_before_or_after() -> None:
    generator = torch.Generator().manual_seed(1)
    images, others = torch.rand(2, 2, 3, 8, 8, generator=generator)
    inside, hidden = torch.rand(2, 2, 8, 8, generator=generator) < 0.4
    scale, shift = torch.rand(2, 3, 1, 1, generator=generator) + 0.5
    before = replace_backgrounds(images * scale + shift, inside, others * scale + shift, hidden)
    after = replace_backgrounds(images, inside, others, hidden) * scale + shift
    assert torch.allclose(before, after, atol=1e-5)
