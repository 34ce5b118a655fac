"""The page: everything that a run directory tells, in one HTML file without references."""

from __future__ import annotations

import base64
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from raycl.errors import RayclError
from raycl.report import scores
from raycl.report.figures import curve, embedding_map, number
from raycl.report.frame import Missing, Sections, duration, html, items, write

T = TypeVar("T")

INPUTS = ("recipe.yaml", "metrics.jsonl", "evaluation.json", "embedding.npz", "views.png")

# Metric, heading, whether it is a share, and what a reader should know of it.
CURVES = (
    ("loss", "Loss", False, "objective of the method"),
    ("knn", "Online kNN", True, "accuracy during training"),
    ("lr", "Learning rate", False, "base schedule"),
    ("rank_me", "RankMe", False, "effective rank of the embedding"),
    ("embedding_std", "Embedding std", False, "0 would be a collapse"),
    ("images_per_second", "Images per second", False, "all workers together"),
    ("wait_share", "Waiting for data", True, "share of the time"),
)


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run directory and returns its path.

    Reads whatever of recipe.yaml, metrics.jsonl, evaluation.json, embedding.npz and views.png is
    there; the section of a missing or unreadable one says so in a line. The file holds no
    reference to anything outside it, and the same inputs give the same file.

    Raises:
        RayclError: the directory holds none of the inputs, or cannot be written to.
    """
    run = Path(run)
    if not any((run / name).is_file() for name in INPUTS):
        raise RayclError(
            f"{run} is not the directory of a run: it holds none of {', '.join(INPUTS)}; give the"
            " directory that `raycl pretrain` printed"
        )
    return write(run / "report.html", _page(run))


def _page(run: Path) -> str:
    metrics, recipe, evaluation = _read(_metrics, run), _read(_recipe, run), _read(_evaluation, run)
    title, header = _header(run, metrics, recipe, evaluation)
    sections: Sections = (
        ("Scores", lambda: _table(_given(evaluation))),
        ("Training", lambda: _notes(run) + _curves(_given(metrics))),
        ("Embedding", lambda: _map(run)),
        ("Views", lambda: _views(run)),
        ("Recipe", lambda: _details(run)),
    )
    return html(title, header, sections)


def _read(reader: Any, run: Path) -> Any:
    """What a reader returns, or the reason why there is nothing."""
    try:
        return reader(run)
    except Missing as reason:
        return reason


def _given(value: Any) -> Any:
    if isinstance(value, Missing):
        raise value
    return value


def _text(run: Path, name: str, absent: str) -> str:
    try:
        return (run / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Missing(f"There is no {name}: {absent}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Missing(f"{name} cannot be read: {error}.") from error


def _recipe(run: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(_text(run, "recipe.yaml", "the run's settings are unknown"))
    except yaml.YAMLError as error:
        raise Missing(f"recipe.yaml is not valid YAML: {error}.") from error
    if not isinstance(recipe, dict):
        raise Missing("recipe.yaml holds no recipe.")
    return recipe


def _lines(run: Path) -> list[dict[str, Any]]:
    """What was logged of steps, in the order of writing."""
    lines = []
    for line in _text(run, "metrics.jsonl", "nothing was logged").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that was killed leaves half a line
        if isinstance(entry, dict) and isinstance(entry.get("step"), int | float):
            lines.append(entry)
    return lines


def _metrics(run: Path) -> list[dict[str, float]]:
    """The logged steps, ascending. Of steps logged twice, before and after a resume, the later."""
    steps: dict[float, dict[str, float]] = {}
    for entry in _lines(run):
        kept = {k: float(v) for k, v in entry.items() if isinstance(v, int | float)}
        steps.setdefault(kept["step"], {}).update(kept)
    if not steps:
        raise Missing("metrics.jsonl holds no logged step.")
    return [steps[step] for step in sorted(steps)]


def _evaluation(run: Path) -> dict[str, Any]:
    text = _text(run, "evaluation.json", "the encoder has not been evaluated, see `raycl evaluate`")
    try:
        evaluation = json.loads(text)
        for row in evaluation["rows"]:
            str(row["representation"]), str(row["labels"]), str(row["protocol"])
            if row["metric"] == "accuracy" and not 0 <= row["score"] <= 1:
                raise ValueError(f"accuracy {row['score']} is not in [0, 1]")
            if not math.isfinite(row["score"]):
                raise ValueError(f"{row['metric']} is {row['score']}")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Missing(f"evaluation.json is not what `raycl evaluate` writes ({reason}).") from error
    return evaluation


def _header(run: Path, metrics: Any, recipe: Any, evaluation: Any) -> tuple[str, str]:
    recipe = recipe if isinstance(recipe, dict) else {}
    evaluation = evaluation if isinstance(evaluation, dict) else {}
    method = _field(recipe, "method.name")
    source = _field(recipe, "data.train")
    title = str(method or run.resolve().name)
    if source:
        first, *more = [source] if isinstance(source, str) else source
        title += f" on {'/'.join(Path(first).parts[-2:])}" + (f" and {len(more)} more" * bool(more))

    lanes, batch = _field(recipe, "trainer.lanes"), _field(recipe, "trainer.batch")
    facts: dict[str, Any] = {
        "Seed": _first(_field(recipe, "trainer.seed"), evaluation.get("seed")),
        "Workers": _field(recipe, "trainer.workers"),
        "Global batch": f"{lanes * batch:,} in {lanes} lane{'s' * (lanes > 1)}"
        if isinstance(lanes, int) and isinstance(batch, int)
        else None,
        "Optimizer": _field(recipe, "optimizer.name"),
    }
    if isinstance(metrics, list):
        last = {key: value for entry in metrics for key, value in entry.items()}
        speeds = [entry["images_per_second"] for entry in metrics if "images_per_second" in entry]
        facts |= {
            "Steps": f"{last['step']:,.0f}",
            "Epochs": f"{last['epoch']:.4g}" if "epoch" in last else None,
            "Duration": duration(last["time"]) if "time" in last else None,
            "Median speed": f"{number(statistics.median(speeds))} images/s" if speeds else None,
        }
    wide: dict[str, Any] = {
        "Data": ", ".join([source] if isinstance(source, str) else source or []) or None
    }
    versions = evaluation.get("versions")
    if isinstance(versions, Mapping):
        versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    wide |= {
        "Commit": evaluation.get("commit"),
        "Versions": versions,
        "Command": evaluation.get("command"),
    }
    return title, (
        f'<header>\n<p class="kicker">raycl run {escape(run.resolve().name)}</p>\n'
        f"<h1>{escape(title)}</h1>\n"
        + items(facts, "")
        + items(wide, ' class="wide"')
        + "</header>\n"
    )


def _table(evaluation: Mapping[str, Any]) -> str:
    rows = evaluation["rows"]
    if not rows:
        raise Missing("evaluation.json holds no rows: no protocol was run.")
    cells = {
        (r["representation"], r["labels"], r["protocol"], r["metric"]): r["score"] for r in rows
    }
    representations = _unique(r["representation"] for r in rows)
    groups = {
        labels: _unique((r["protocol"], r["metric"]) for r in rows if r["labels"] == labels)
        for labels in _unique(r["labels"] for r in rows)
    }
    columns = [(labels, *each) for labels, group in groups.items() for each in group]
    best = {
        column: scores.best(column[2], [cells[c] for c in cells if c[1:] == column])
        for column in columns
    }

    def cell(representation: str, column: tuple[str, str, str]) -> str:
        score = cells.get((representation, *column))
        if score is None:
            return "<td></td>"
        mark = ' class="best"' if score == best[column] else ""
        return f"<td{mark}>{scores.shown(column[2], score)}</td>"

    train = {r["labels"]: r["train"] for r in rows if "train" in r}
    head = "".join(
        f'<th colspan="{len(group)}" scope="colgroup">{escape(_labels(labels, train))}</th>'
        for labels, group in groups.items()
    )
    under = "".join(
        f'<th scope="col">{escape(scores.heading(protocol, metric))}</th>'
        for _, protocol, metric in columns
    )
    body = "".join(
        f'<tr><th scope="row">{escape(representation)}</th>'
        + "".join(cell(representation, column) for column in columns)
        + "</tr>\n"
        for representation in representations
    )
    what = "Accuracy" if all(r["metric"] == "accuracy" for r in rows) else "Shares"
    tests = _unique(f"{r['test']:,}" for r in rows if "test" in r)
    on = f" on {' or '.join(tests)} test samples" if tests else ""
    return (
        '<div class="scroll"><table>\n<thead>\n<tr><th rowspan="2" scope="col">Representation</th>'
        f"{head}</tr>\n<tr>{under}</tr>\n</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
        f'<p class="note">{what} in percent{on}; the best of each column is bold.</p>'
    )


def _labels(labels: str, train: Mapping[str, int]) -> str:
    name = labels if labels.endswith(("class", "labels")) else f"{labels} labels"
    return f"{name} ({train[labels]:,})" if labels in train else name


def _notes(run: Path) -> str:
    """What the guards said of the run: a loss that diverges, an embedding that collapses."""
    notes = [str(line["note"]) for line in _lines(run) if "note" in line]
    return "".join(f'<p class="alarm">{escape(note)}.</p>\n' for note in notes)


def _curves(metrics: list[dict[str, float]]) -> str:
    axis = "epoch" if all("epoch" in entry for entry in metrics) else "step"
    figures, absent = [], []
    for key, heading, percent, meaning in _of_optimizers(metrics):
        points = [(e[axis], e[key]) for e in metrics if key in e]
        finite = [value for _, value in points if math.isfinite(value)]
        if not finite:
            absent.append(heading.lower() if heading != "RankMe" else heading)
            continue
        x, y = zip(*points, strict=True)
        if key == "wait_share":
            meaning += _causes(metrics)
        svg = curve(key, x, y, axis, percent)
        figures.append(
            f"<figure>\n<figcaption><b>{heading}</b> <span>{meaning}</span>"
            f"<output>{number(finite[-1], percent)}</output></figcaption>\n{svg}\n</figure>"
        )
    note = f'<p class="note">Not recorded: {", ".join(absent)}.</p>' if absent else ""
    return f'<div class="curves">\n{"".join(figures)}\n</div>\n{note}'


def _of_optimizers(metrics: list[dict[str, float]]) -> list[tuple[str, str, bool, str]]:
    """The curves, with a loss and a learning rate for each of several optimizers."""
    names = dict.fromkeys(k.rpartition(".")[0] for e in metrics for k in e if k.endswith(".lr"))
    curves = []
    for key, heading, percent, meaning in CURVES:
        split = names if key in ("loss", "lr") else {}
        own = [(f"{n}.{key}", f"{heading}, {n}", percent, meaning) for n in split]
        curves += own or [(key, heading, percent, meaning)]
    return curves


def _causes(metrics: list[dict[str, float]]) -> str:
    """What the training step waited for, from the mean over the run."""
    shares: dict[str, list[float]] = {}
    for entry in metrics:
        for key, value in entry.items():
            if key.startswith("wait_share/"):
                shares.setdefault(key.partition("/")[2], []).append(value)
    means = {name: sum(values) / len(values) for name, values in shares.items()}
    parts = [f"{name} {100 * share:.1f} %" for name, share in means.items()]
    return f"; in the mean {', '.join(parts)}" if parts else ""


def _map(run: Path) -> str:
    try:
        with np.load(run / "embedding.npz", allow_pickle=False) as archive:
            features = archive["features"]
            labels = archive["labels"].astype(np.int64) if "labels" in archive else None
            classes = json.loads(str(archive["classes"])) if "classes" in archive else None
    except FileNotFoundError:
        raise Missing("There is no embedding.npz: no embeddings were kept.") from None
    except Exception as error:
        raise Missing(f"embedding.npz cannot be read: {error}.") from error
    if features.ndim != 2 or len(features) < 5:
        raise Missing(f"embedding.npz holds features of shape {features.shape}: nothing to draw.")
    if labels is not None and labels.shape != (len(features),):
        raise Missing(f"embedding.npz holds {len(features)} features and {len(labels)} labels.")
    if not np.isfinite(features).all():
        raise Missing("embedding.npz holds NaN or infinity: the encoder has diverged.")
    drawn = embedding_map(features, labels, classes)
    legend = "".join(
        f'<li><i style="background: {colour}"></i>{escape(name)}</li>'
        for colour, name in drawn.legend
    )
    if drawn.others:
        legend += f'<li><i style="background: var(--rule)"></i>{drawn.others} more classes</li>'
    return (
        f'<div class="map"><figure>{drawn.svg}</figure><ul class="legend">{legend}</ul></div>\n'
        f'<p class="note">{drawn.shown:,} of {len(features):,} embeddings of {features.shape[1]:,}'
        " dimensions, drawn by t-SNE. Neighbourhoods mean something, distances between far groups"
        " do not; labels were not used for the layout.</p>"
    )


def _views(run: Path) -> str:
    try:
        picture = (run / "views.png").read_bytes()
    except OSError:
        raise Missing("There is no views.png: no views were drawn.") from None
    if not picture.startswith(b"\x89PNG"):
        raise Missing("views.png is not a PNG file.")
    data = base64.b64encode(picture).decode()
    return (
        f'<img class="views" alt="samples and the views drawn from them" src="data:image/png;'
        f'base64,{data}">\n<p class="note">Samples and the views that training drew from them.</p>'
    )


def _details(run: Path) -> str:
    text = _text(run, "recipe.yaml", "the run's settings are unknown")
    return (
        f"<details>\n<summary>The full recipe</summary>\n<pre>{escape(text.strip())}</pre>\n"
        "</details>"
    )


def _field(recipe: Mapping[str, Any], dotted: str) -> Any:
    value: Any = recipe
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
