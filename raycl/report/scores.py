"""How scores of evaluation.json are shown: what stands over a column, and what is best in it."""

from __future__ import annotations

from collections.abc import Iterable

PROTOCOLS = {
    "knn": "kNN",
    "linear": "linear",
    "linear-sgd": "linear, SGD",
    "zero_shot": "zero-shot",
}
LOWER = ("kNN drop", "linear drop", "alignment", "uniformity")  # is better; of others, higher
PLAIN = ("alignment", "uniformity", "RankMe")  # numbers; all others are shares


def heading(protocol: str, metric: str) -> str:
    name = PROTOCOLS.get(protocol, protocol)
    return name if metric == "accuracy" else f"{name}: {metric}"


def shown(metric: str, score: float) -> str:
    """Shares in percent."""
    return f"{score:.2f}" if metric in PLAIN else f"{100 * score:.1f}"


def best(metric: str, scores: Iterable[float]) -> float:
    return min(scores) if metric in LOWER else max(scores)
