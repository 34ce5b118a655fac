from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torchvision.transforms.v2 import RandomResizedCrop

from raycl.views.image import Blur, Color, Crop, ImageView, Solarize

FULL = ImageView(
    size=32,
    crop=Crop(),
    color=Color(),
    gray=0.2,
    blur=Blur(kernel=0.2),
    solarize=Solarize(p=0.3),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)
PUBLISHED = ImageView(crop=Crop(), color=Color(), gray=0.2, blur=Blur())


def images(n: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    heights, widths = random.integers(20, 90, (2, n))
    shapes = zip(heights, widths, strict=True)
    return [random.integers(0, 256, (*s, 3), dtype=np.uint8) for s in shapes], heights, widths


def draw(view: ImageView, rows: list[int], number: int = 0, epoch: int = 0) -> torch.Tensor:
    pictures, heights, widths = images(12)
    plan = view.plan(3, epoch, np.array(rows), number, heights[rows], widths[rows])
    pixels = np.empty((len(rows), view.size, view.size, 3), np.uint8)
    for out, row, box, flip in zip(pixels, rows, plan["box"], plan["flip"], strict=True):
        view.cut(pictures[row], box, bool(flip), out)
    tensors = {name: torch.from_numpy(values) for name, values in plan.items()}
    return view.render(torch.from_numpy(pixels).permute(0, 3, 1, 2), tensors)


def plan(view: ImageView, n: int = 20_000, height: int = 100, width: int = 60) -> dict[str, Any]:
    sizes = np.full(n, height), np.full(n, width)
    return view.plan(0, 0, np.arange(n), 0, *sizes)


def test_a_sample_is_the_same_in_any_batch() -> None:
    rows = list(range(12))
    whole = draw(FULL, rows)
    assert len(torch.unique(whole[:, 0, 0, 0])) > 6
    for part in (rows[::-1], [5], [7, 7, 2], [11, 0]):
        torch.testing.assert_close(draw(FULL, part), whole[part], rtol=0, atol=1e-6)


def test_views_and_epochs_differ() -> None:
    first = draw(FULL, [4])
    assert (draw(FULL, [4], number=1) - first).abs().max() > 0.1
    assert (draw(FULL, [4], epoch=1) - first).abs().max() > 0.1


def test_one_augmentation_less_leaves_the_others_as_they_are() -> None:
    less = FULL.model_copy(update={"color": None, "crop": None, "blur": None})
    both, without = plan(FULL, 50), plan(less, 50)
    assert set(both) - set(without) == {"order", "factors", "sigma"}
    for name in ("flip", "gray", "solarize"):
        np.testing.assert_array_equal(both[name], without[name])


def test_threads_cut_the_same_pixels() -> None:
    view = PUBLISHED.model_copy(update={"size": 32})
    pictures, heights, widths = images(64)
    drawn = view.plan(0, 0, np.arange(64), 0, heights, widths)
    alone, together = np.zeros((2, 64, 32, 32, 3), np.uint8)

    def cut(row: int, out: np.ndarray) -> None:
        view.cut(pictures[row], drawn["box"][row], bool(drawn["flip"][row]), out[row])

    for row in range(64):
        cut(row, alone)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: cut(row, together), range(64)))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((100, 60), Crop()),
        ((32, 32), Crop(scale=(0.2, 1.0))),
        ((40, 300), Crop(scale=(0.5, 1.0))),  # hardly ever fits: mostly the fallback
    ],
)
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int], crop: Crop) -> None:
    ours = plan(ImageView(crop=crop), 4000, *size)["box"]
    transform = RandomResizedCrop(8, scale=crop.scale, ratio=crop.ratio)
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    drawn = [transform.make_params([image]) for _ in range(4000)]
    theirs = np.array([[d[k] for k in ("top", "left", "height", "width")] for d in drawn])
    for axis in range(4):
        assert stats.ks_2samp(ours[:, axis], theirs[:, axis]).pvalue > 1e-3
    areas, expected = ((b[:, 2] * b[:, 3]) for b in (ours, theirs))
    assert stats.ks_2samp(areas, expected).pvalue > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 3), (375, 500)])
def test_boxes_lie_within_the_image(size: tuple[int, int]) -> None:
    for view in (PUBLISHED, PUBLISHED.evaluation()):
        top, left, height, width = plan(view, 500, *size)["box"].T
        assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) >= 1
        assert (top + height).max() <= size[0] and (left + width).max() <= size[1]


def test_drawn_parameters_follow_the_paper() -> None:
    drawn = plan(PUBLISHED)
    rate = lambda mask: pytest.approx(mask, abs=0.015)  # noqa: E731
    assert drawn["flip"].mean() == rate(0.5)
    assert drawn["gray"].mean() == rate(0.2)
    assert (drawn["sigma"] > 0).mean() == rate(0.5)
    sigma = drawn["sigma"][drawn["sigma"] > 0]
    assert stats.kstest((sigma - 0.1) / 1.9, "uniform").pvalue > 1e-3
    jittered = drawn["factors"][(drawn["factors"] != [1, 1, 1, 0]).any(1)]
    assert len(jittered) / 20_000 == rate(0.8)
    low, high = np.array([0.2, 0.2, 0.2, -0.2]), np.array([1.8, 1.8, 1.8, 0.2])
    for pvalue in stats.kstest((jittered - low) / (high - low), "uniform").pvalue:
        assert pvalue > 1e-3
    orders, counts = np.unique(drawn["order"], axis=0, return_counts=True)
    assert len(orders) == 24 and stats.chisquare(counts).pvalue > 1e-3


def test_strength_scales_and_factors_stay_positive() -> None:
    factors = plan(ImageView(color=Color(p=1, strength=0.5)))["factors"]
    np.testing.assert_allclose(factors.max(0), [1.4, 1.4, 1.4, 0.1], atol=1e-3)
    np.testing.assert_allclose(factors.min(0), [0.6, 0.6, 0.6, -0.1], atol=1e-3)
    strong = plan(ImageView(color=Color(p=1, strength=2, additive_brightness=True)))["factors"]
    assert strong[:, 0].min() < -1.5 and 0 <= strong[:, 1].min() < 0.01


def test_additive_brightness_that_is_not_chosen_adds_nothing() -> None:
    view = ImageView(size=32, flip=0, color=Color(p=0, additive_brightness=True))
    plain = ImageView(size=32, flip=0)
    torch.testing.assert_close(draw(view, [1, 2]), draw(plain, [1, 2]), rtol=0, atol=0)


def test_simclr_views_stay_in_the_unit_interval() -> None:
    x = draw(PUBLISHED.model_copy(update={"size": 64}), list(range(12)))
    assert x.dtype == torch.float32 and x.shape == (12, 3, 64, 64)
    assert x.min() >= 0 and x.max() <= 1 + 1e-6


def test_evaluation_takes_the_middle_and_keeps_the_normalisation() -> None:
    small = FULL.evaluation()
    assert (small.mean, small.std, small.size) == (FULL.mean, FULL.std, 32)
    assert plan(small, 1, 50, 30)["box"].tolist() == [[10, 0, 30, 30]]
    large = PUBLISHED.evaluation()
    assert plan(large, 1, 256, 400)["box"].tolist() == [[16, 88, 224, 224]]
    for epoch in (0, 1):
        torch.testing.assert_close(draw(small, [0, 5], epoch=epoch), draw(small, [0, 5]))
    assert not plan(small, 100)["flip"].any()


def test_a_whole_image_is_squeezed_to_the_square() -> None:
    view = ImageView(size=16, whole=True, flip=0.0)
    boxes = plan(view, 3, height=50, width=70)["box"]
    assert boxes.tolist() == [[0, 0, 50, 70]] * 3
    assert view.evaluation().whole and not ImageView().evaluation().whole
    with pytest.raises(ValidationError, match="give one of them"):
        ImageView(whole=True, crop=Crop())


def test_normalisation() -> None:
    plain = FULL.evaluation().model_copy(update={"mean": None, "std": None})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (FULL.mean, FULL.std))
    torch.testing.assert_close(draw(FULL.evaluation(), [3]), (draw(plain, [3]) - mean) / std)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"siz": 32}, "siz"),
        ({"size": 0}, "size"),
        ({"flip": 1.5}, "flip"),
        ({"crop": {"scale": [0, 1]}}, "scale"),
        ({"crop": {"scale": [0.9, 0.1]}}, "scale"),
        ({"crop": {"ratio": [2, 1]}}, "ratio"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"color": {"p": -0.1}}, "p"),
        ({"color": {"strength": 2, "hue": 0.4}}, "hue"),
        ({"blur": {"sigma": [2, 1]}}, "sigma"),
        ({"blur": {"kernel": 0}}, "kernel"),
        ({"solarize": {"threshold": 2}}, "threshold"),
        ({"mean": [0.5, 0.5, 0.5]}, "std"),
        ({"mean": [0.5, 0.5, 0.5], "std": [1, 1, 0]}, "std"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ImageView.model_validate(settings)


def test_survives_a_trip_through_json() -> None:
    assert ImageView.model_validate_json(FULL.model_dump_json()) == FULL
    assert ImageView.model_validate(FULL.model_dump()) == FULL


def test_imports_without_torch() -> None:
    code = "import sys, raycl.views.image; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
