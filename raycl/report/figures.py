"""Figures of the report, as SVG elements that follow the page's light and dark colours."""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Matplotlib wants fixed colours; these stand for the page's own and are replaced in the SVG.
INK, MUTED, RULE, ACCENT, PAPER = (f"#01020{digit}" for digit in range(5))
THEME = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", PAPER: "paper"}

# Texts stay texts, in the page's font, and the same run gives the same file.
STYLE: list[str | dict[str, str]] = [
    "default",
    {"svg.fonttype": "none", "svg.hashsalt": "raycl"},
]

# Ten hues of like weight that hold on white and on black.
PALETTE = (
    *("#4878b0", "#e08a2e", "#4f9d5d", "#c8504b", "#8b6bb8"),
    *("#8c6a55", "#d678ae", "#7d8894", "#b3a02f", "#3aa3b5"),
)
COLOURED = 20  # classes told apart by colour; the rest of the points is grey
POINTS = 2000
BINS = 200


@dataclass(frozen=True)
class Map:
    """A drawn embedding.

    Attributes:
        svg: the figure.
        legend: (colour, name) of every coloured class.
        shown: samples drawn.
        others: classes drawn in grey because there are too many to tell apart.
    """

    svg: str
    legend: list[tuple[str, str]]
    shown: int
    others: int


def curve(
    name: str, x: Sequence[float], y: Sequence[float], label: str, percent: bool = False
) -> str:
    """A line over steps or epochs.

    Values that are not finite leave gaps. Long series are drawn as the mean and the range of
    equal parts.

    Args:
        name: what `y` is; unique on the page.
        x: ascending.
        y: as long as `x`.
        label: what `x` counts.
        percent: `y` holds shares; the axis shows percent.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    ys[~np.isfinite(ys)] = np.nan
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(4.6, 2.1))
        axes = figure.add_axes((0.125, 0.17, 0.855, 0.78))
        if len(xs) > 2 * BINS:
            parts = np.array_split(np.arange(len(xs)), BINS)
            kept = [part for part in (p[np.isfinite(ys[p])] for p in parts) if len(part)]
            middle = np.array([xs[part].mean() for part in kept])
            low = np.array([ys[part].min() for part in kept])
            high = np.array([ys[part].max() for part in kept])
            axes.fill_between(middle, low, high, color=ACCENT, alpha=0.18, linewidth=0)
            xs, ys = middle, np.array([ys[part].mean() for part in kept])
        axes.plot(xs, ys, color=ACCENT, linewidth=1.4, solid_capstyle="round")
        if len(xs) <= 30:
            axes.plot(xs, ys, color=ACCENT, linestyle="", marker="o", markersize=3)
        quiet(axes)
        axes.set_xlabel(label, color=MUTED, fontsize=8, loc="right", labelpad=1)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v, percent)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
        axes.margins(x=0.015, y=0.08)
        return svg(figure, name)


def embedding_map(
    features: np.ndarray, labels: np.ndarray | None, classes: Sequence[str] | None
) -> Map:
    """Embeddings in two dimensions: PCA to 50, then t-SNE (van der Maaten & Hinton 2008).

    Rows are L2-normalised first, so that distances are those of the kNN protocol. At most 2,000
    samples are drawn; the draw and the layout do not change between calls.

    Args:
        features: (N, D), finite, N >= 5.
        labels: (N,) integers, or None.
        classes: names by label; labels beyond them are shown as numbers.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    chosen = np.random.default_rng(0).permutation(len(features))[:POINTS]
    x = features[chosen].astype(np.float64).reshape(len(chosen), -1)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    dims = min(50, *x.shape)
    with np.errstate(invalid="ignore"):  # a collapsed embedding has no variance to share out
        x = PCA(dims, random_state=0).fit_transform(x)
    layout = TSNE(
        2,
        perplexity=min(30, (len(x) - 1) / 3),
        max_iter=500,
        init="pca" if dims > 1 and x.std() > 1e-9 else "random",
        random_state=0,
    ).fit_transform(x)

    groups = np.zeros(len(x), int) if labels is None else np.asarray(labels)[chosen]
    values, counts = np.unique(groups, return_counts=True)
    ranked = values[np.argsort(-counts, kind="stable")]
    coloured = np.sort(ranked[:COLOURED])
    colours = _colours(len(coloured))
    names = [
        classes[value] if classes is not None and 0 <= value < len(classes) else str(value)
        for value in coloured
    ]

    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6, 6))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        grey = ~np.isin(groups, coloured)
        _dots(axes, layout[grey], RULE)
        for value, colour in zip(coloured, colours, strict=True):
            _dots(axes, layout[groups == value], ACCENT if labels is None else colour)
        if labels is not None:
            for value, name in zip(coloured, names, strict=True):
                middle = np.median(layout[groups == value], axis=0)
                short = name if len(name) <= 14 else name[:13] + "…"
                text = axes.text(middle[0], middle[1], short, color=INK, fontsize=10, ha="center")
                text.set(verticalalignment="center", parse_math=False)
        axes.margins(0.03)
        drawn = svg(figure, "embedding")
    legend = [] if labels is None else list(zip(colours, names, strict=True))
    return Map(drawn, legend, len(x), len(values) - len(coloured))


def number(value: float, percent: bool = False) -> str:
    """A value as the report prints it: few digits, thousands apart."""
    if percent:
        return f"{100 * value:.3g} %"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def _colours(count: int) -> list[str]:
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    # Neighbouring labels get far hues: consecutive steps of the golden angle.
    shades = [
        colorsys.hls_to_rgb(i * 0.618034 % 1, 0.42 + 0.16 * (i % 2), 0.5) for i in range(count)
    ]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades]


def _dots(axes: Axes, xy: np.ndarray, colour: str) -> None:
    axes.plot(*xy.T, linestyle="", marker="o", markersize=3.6, color=colour, alpha=0.75, mew=0)


def quiet(axes: Axes) -> None:
    axes.patch.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=RULE, linewidth=0.8)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4, labelsize=8, labelcolor=MUTED)


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for the middle of an HTML page.

    Its identifiers begin with `name`, so that several figures can share a page.
    """
    figure.patch.set_visible(False)
    FigureCanvasSVG(figure)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r" font-family: [^;]*;", "", body)
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda match: _round(match[0]), body)
    body = re.sub(r">\s+<", ">\n<", body)
    for colour, variable in THEME.items():
        body = body.replace(colour, f"var(--{variable})")
    width, height = 72 * figure.get_size_inches()
    box = f"0 0 {width:g} {height:g}"
    return f'<svg role="img" aria-label="{name}" viewBox="{box}">{body.strip()}'


def _round(attribute: str) -> str:
    return re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", attribute)
