"""The dense probe: its loss on cells is that of pixels, and its scores are openseg's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raycl.errors import RayclError
from raycl.evaluate.dense import (
    _targets,
    confusion,
    dense_probe,
    histograms,
    ious,
    miou,
    segment,
)


def test_scores_are_those_of_openseg(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    vectors = golden("miou")
    label, guess = torch.from_numpy(vectors["label"]), torch.from_numpy(vectors["pred"])
    matrix = confusion(label, guess, int(vectors["num_classes"]))
    assert matrix.numpy().tolist() == vectors["confusion"].tolist()
    assert miou(matrix) == pytest.approx(float(vectors["miou_present"]), abs=1e-12)
    expected = torch.from_numpy(vectors["iou"])
    assert torch.allclose(ious(matrix).nan_to_num(-1), expected, atol=1e-12, rtol=0)
    in_parts = sum(confusion(a, b, 6) for a, b in zip(label, guess, strict=True))
    assert torch.equal(torch.as_tensor(in_parts), matrix)


@pytest.mark.parametrize(("size", "grid"), [((12, 12), (3, 3)), ((15, 22), (4, 5))])
def test_histograms_of_cells_have_the_cross_entropy_of_pixels(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (3, *size), generator=generator, dtype=torch.uint8)
    masks[0, :7] = 255
    logits = torch.randn(3, 5, *grid, generator=generator, dtype=torch.float64)
    counts = histograms(masks, grid, ignore=255)
    assert counts.shape == (3, *grid, 5) and counts.sum() == (masks != 255).sum()
    up = F.interpolate(logits, size, mode="nearest")
    expected = F.cross_entropy(up, masks.long(), ignore_index=255)
    cells = logits.movedim(1, -1).flatten(0, 2)
    found = F.cross_entropy(cells, _targets(counts.flatten(0, 2)).double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_an_ignored_label_every_pixel_counts() -> None:
    masks = torch.tensor([[[0, 255], [255, 255]]], dtype=torch.uint8)
    assert histograms(masks, (1, 1), None).shape == (1, 1, 1, 256)
    assert histograms(masks, (1, 1), None)[0, 0, 0, 255] == 3
    assert histograms(masks, (1, 1), 255).flatten().tolist() == [1]
    assert histograms(torch.full((1, 4, 4), 255), (2, 2), 255).flatten().tolist() == [0] * 4


def scenes(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Maps (N, 4, 4, 4) that tell a cell's class but for noise, and masks (N, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (images, 4, 4), generator=generator)
    maps = torch.cat([F.one_hot(classes, 3).float().movedim(-1, 1), torch.ones(images, 1, 4, 4)], 1)
    maps = 5 * maps - 2 + 0.3 * torch.randn(maps.shape, generator=generator)
    masks = F.interpolate(classes[:, None].float(), (32, 32))[:, 0].to(torch.uint8)
    masks[:, ::9] = 255
    return maps, masks


def test_a_probe_finds_what_the_maps_tell() -> None:
    maps, masks = scenes(20, 0)
    x = maps.movedim(1, -1).flatten(0, 2)
    counts = histograms(masks, (4, 4), 255).flatten(0, 2)
    probe = dense_probe(x, counts, torch.arange(20).repeat_interleave(16))
    maps, masks = scenes(40, 1)
    guess = segment(probe, maps, (32, 32))
    assert guess.shape == masks.shape
    # Bilinear logits round the corners of square regions, where mixed ones can prefer a third.
    assert miou(confusion(masks, guess, 3)) > 0.75
    middles = (slice(None), slice(4, None, 8), slice(4, None, 8))
    assert miou(confusion(masks[middles], guess[middles], 3)) > 0.98


def test_a_class_beyond_those_of_training_is_refused() -> None:
    with pytest.raises(RayclError, match=r"label 7, and the classes are 0 to 2.*dense\.ignore=7"):
        confusion(torch.tensor([0, 7]), torch.tensor([0, 1]), 3)


@pytest.mark.parametrize(
    ("counts", "image"),
    [([[3, 0], [5, 0]], [0, 1]), ([[3, 0], [0, 5]], [1, 1]), ([[0, 0], [0, 0]], [0, 1])],
    ids=["one class", "one image", "no label"],
)
def test_what_cannot_be_fitted_is_refused(counts: list[list[int]], image: list[int]) -> None:
    with pytest.raises(RayclError, match=r"data\.train: the masks hold the classes"):
        dense_probe(torch.randn(2, 4), torch.tensor(counts).float(), torch.tensor(image))
