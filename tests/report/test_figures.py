from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from raycl.report.figures import COLOURED, PALETTE, POINTS, curve, embedding_map, number

COLOURS = re.compile(r"#[0-9a-f]{6}")


def clusters(samples: int, classes: int, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % classes
    centres = 8 * rng.normal(size=(classes, dim))
    return (centres[labels] + rng.normal(size=(samples, dim))).astype(np.float32), labels


def line(svg: str) -> np.ndarray:
    """Points of the accent-coloured line, (N, 2) in figure coordinates, y downwards."""
    paths = ElementTree.fromstring(svg).iter("path")
    (path,) = [
        p
        for p in paths
        if "stroke: var(--accent)" in p.get("style", "") and "fill: none" in p.get("style", "")
    ]
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path.get("d", "")), float)


def test_a_curve_draws_every_point_in_proportion() -> None:
    points = line(curve("loss", [0, 1, 2, 4], [4.0, 2.0, 3.0, 1.0], "epoch"))
    across = (points[:, 0] - points[0, 0]) / (points[-1, 0] - points[0, 0])
    np.testing.assert_allclose(across, [0, 0.25, 0.5, 1], atol=1e-3)
    up = (points[-1, 1] - points[:, 1]) / (points[-1, 1] - points[0, 1])
    np.testing.assert_allclose(up, [1, 1 / 3, 2 / 3, 0], atol=1e-3)


def test_a_curve_leaves_a_gap_where_the_value_is_not_finite() -> None:
    svg = curve("loss", [0, 1, 2, 3, 4], [1.0, 2.0, float("nan"), 2.0, float("inf")], "step")
    assert len(line(svg)) == 3
    assert "nan" not in svg


def test_a_long_curve_keeps_its_mean_and_range() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(5, 1, 20_000)
    svg = curve("loss", range(20_000), y, "step")
    assert len(svg) < 40_000
    points = line(svg)
    assert np.ptp(points[:, 1]) < 40  # of 151 points of height: means vary less than values


def test_the_axis_of_a_share_is_in_percent() -> None:
    assert ">50 %<" in curve("wait", [0, 1], [0.0, 1.0], "epoch", percent=True)
    assert "%" not in curve("wait", [0, 1], [0.0, 1.0], "epoch")


def test_small_tick_labels_keep_their_digits() -> None:
    ticks = re.findall(r">(0\.000\d+)<", curve("lr", [0, 1], [0.0, 0.0008], "epoch"))
    assert ticks == ["0.00025", "0.0005", "0.00075"]


def test_a_curve_uses_only_the_colours_of_the_page() -> None:
    svg = curve("loss", range(900), np.sin(np.arange(900)), "epoch")
    assert COLOURS.findall(svg) == []
    assert {"var(--accent)", "var(--rule)", "var(--muted)"} <= set(re.findall(r"var\(--\w+\)", svg))


def test_identifiers_are_unique_to_a_figure() -> None:
    both = [curve(name, [0, 1], [0.0, 1.0], "epoch") for name in ("loss", "lr")]
    first, second = (set(re.findall(r'id="([^"]*)"', svg)) for svg in both)
    assert first and second and not first & second
    for svg in both:
        referenced = set(re.findall(r'(?:href="|url\()#([^")]*)', svg))
        assert referenced <= set(re.findall(r'id="([^"]*)"', svg))


def test_figures_leave_the_settings_of_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    curve("loss", [0, 1], [0.0, 1.0], "epoch")
    embedding_map(*clusters(30, 2), None)
    assert dict(matplotlib.rcParams) == before


def test_a_map_keeps_classes_together_and_names_them() -> None:
    features, labels = clusters(90, 3)
    drawn = embedding_map(features, labels, ["ant", "b & c", "$x$"])
    root = ElementTree.fromstring(drawn.svg)
    assert [text.text for text in root.iter("text")] == ["ant", "b & c", "$x$"]
    assert drawn.legend == list(zip(PALETTE[:3], ["ant", "b & c", "$x$"], strict=True))
    points: dict[str, list[list[float]]] = {}
    for use in root.iter("use"):
        colour = COLOURS.search(use.get("style", ""))
        assert colour is not None
        points.setdefault(colour[0], []).append([float(use.get(axis, "nan")) for axis in "xy"])
    groups = [np.array(group) for group in points.values()]
    assert [len(group) for group in groups] == [30, 30, 30]
    centres = np.array([group.mean(axis=0) for group in groups])
    for index, group in enumerate(groups):
        nearest = np.linalg.norm(group[:, None] - centres, axis=2).argmin(axis=1)
        assert (nearest == index).all()


def test_a_map_is_the_same_each_time() -> None:
    features, labels = clusters(60, 3)
    assert embedding_map(features, labels, None).svg == embedding_map(features, labels, None).svg


def test_a_map_without_labels_has_one_colour_and_no_legend() -> None:
    drawn = embedding_map(clusters(40, 2)[0], None, None)
    assert drawn.legend == []
    assert COLOURS.findall(drawn.svg) == []


def test_more_classes_than_colours_are_grey_and_counted() -> None:
    drawn = embedding_map(*clusters(120, COLOURED + 4), [f"class {i}" for i in range(COLOURED)])
    assert drawn.others == 4
    assert len({colour for colour, _ in drawn.legend}) == COLOURED
    assert drawn.svg.count("<use") == 120


def test_a_large_embedding_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycl.report.figures.POINTS", 50)
    drawn = embedding_map(*clusters(400, 4), None)
    assert drawn.shown == 50
    assert drawn.svg.count("<use") == 50
    assert POINTS == 2000


@pytest.mark.parametrize("features", [np.ones((6, 4)), np.zeros((6, 4)), np.ones((5, 1))])
def test_a_collapsed_embedding_is_still_drawn(features: np.ndarray) -> None:
    drawn = embedding_map(features, np.arange(len(features)) % 2, None)
    assert drawn.svg.count("<use") == len(features)
    assert "nan" not in drawn.svg


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [
        (0.95861, True, "95.9 %"),
        (12345.6, False, "12,346"),
        (3.0912, False, "3.09"),
        (0.0, False, "0"),
        (2.2e-10, False, "2.2e-10"),
    ],
)
def test_numbers_are_short(value: float, percent: bool, text: str) -> None:
    assert number(value, percent) == text
