"""The detector without weights: one object where there is one, nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from raycl.data.saliency import barrier_distance, detect, lab, otsu


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Blotches of dark colours, (H, W, 3) uint8."""
    corners = np.random.default_rng(seed).integers(20, 90, (9, 9, 3), np.uint8)
    return np.array(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("size", [(120, 160), (400, 300), (48, 48)])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_disc_on_a_textured_ground_is_found(size: tuple[int, int], grey: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image, short = texture(*size, seed), min(size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    row, column = (side * generator.uniform(0.4, 0.6) for side in size)
    disc = (rows - row) ** 2 + (columns - column) ** 2 < (short * generator.uniform(0.15, 0.3)) ** 2
    image[disc] = (250, 200, 40)
    if grey:
        image = np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, 2)
    found = detect(image)
    assert found.dtype == np.uint8 and found.shape == size
    assert overlap(found > 127, disc) > 0.8


def test_the_larger_of_two_is_kept_and_holes_are_filled() -> None:
    image = texture(120, 160, 0)
    image[40:80, 20:70] = image[50:65, 110:130] = 240
    image[58:62, 40:44] = image[10, 10]
    found = detect(image) > 127
    assert ndimage.label(found)[1] == 1
    assert found[60, 42] and not found[57, 120]


@pytest.mark.parametrize("level", [0, 128, 255])
def test_nothing_stands_out_of_a_constant_image(level: int) -> None:
    assert not detect(np.full((60, 80, 3), level, np.uint8)).any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.sampled_from((1, 2, 30, 255)))
def test_any_image_gives_at_most_one_object(height: int, width: int, seed: int, most: int) -> None:
    image = np.random.default_rng(seed).integers(0, most + 1, (height, width, 3), np.uint8)
    with np.errstate(all="raise"):
        found = detect(image)
    assert found.shape == (height, width) and found.dtype == np.uint8
    assert ndimage.label(found > 127)[1] <= 1


def test_lab_is_that_of_the_standard() -> None:
    image = np.array([[[255, 255, 255], [255, 0, 0], [0, 0, 255], [12, 12, 12]]], np.uint8)
    expected = [[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [3.30, 0, 0]]
    assert np.allclose(lab(image)[0], expected, atol=0.05)


def test_a_barrier_is_the_least_of_all_paths() -> None:
    values = np.zeros((7, 9, 1))
    values[2:5, 2:7] = 5
    values[3, 3:6] = 2  # inside of a wall of 5
    distance = barrier_distance(values)
    assert np.array_equal(distance[3], [0, 0, 5, 5, 5, 5, 5, 0, 0])
    values[3, 0:3] = 2  # a way out
    assert np.array_equal(barrier_distance(values)[3], [0, 0, 0, 0, 0, 0, 3, 0, 0])


def test_otsu_parts_two_groups() -> None:
    values = np.concatenate([np.linspace(0, 1, 70), np.linspace(7, 8, 30)])
    assert 1 <= otsu(values) <= 7


def test_it_beats_a_disc_in_the_middle_of_davis(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("davis2016")
    ours, discs, hits, middles = [], [], [], []
    for path in sorted(root.glob("Annotations/480p/*/*.png"))[::13]:
        name = root / "JPEGImages" / "480p" / path.parent.name / f"{path.stem}.jpg"
        image = np.asarray(Image.open(name).convert("RGB"))
        truth = np.asarray(Image.open(path).convert("L")) > 127
        height, width = truth.shape
        rows, columns = np.ogrid[:height, :width]
        square = (rows - height / 2) ** 2 + (columns - width / 2) ** 2
        found = detect(image)
        ours.append(overlap(found > 127, truth))
        discs.append(overlap(np.pi * square < 0.05 * truth.size, truth))  # objects' mean area
        hits.append(truth.ravel()[found.argmax()])
        middles.append(truth[height // 2, width // 2])
    assert len(ours) == 20
    assert np.mean(ours) > np.mean(discs) + 0.05 and np.mean(hits) > np.mean(middles) + 0.2
