"""Where a recipe's workers, reading tasks and decoding actors go, on which nodes of an offer.

What they ask for is what `raycl.train.trainer` and `raycl.data.source` ask Ray for, with the
cluster at its largest. Only CPUs, GPUs and labels count: memory is Ray's and the user's business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raycl.cluster.nodes import NodeType, Offer
from raycl.recipe import Recipe
from raycl.train.resources import decide, per_trial

Price = Callable[[NodeType], float | None]


@dataclass(frozen=True)
class Bundle:
    """What is asked for in one piece: it never spans nodes.

    Attributes:
        labels: of the nodes that will do.
    """

    what: str
    cpus: float
    gpus: float = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Needs:
    """What a recipe asks Ray for.

    Attributes:
        sizes: numbers of workers that there may be, ascending.
        reading: a task of Ray Data; None: each worker reads what it trains on.
        decoding: an actor of Ray Data; None: workers decode.
        actors: the most that decode.
    """

    sizes: list[int]
    worker: Bundle
    reading: Bundle | None
    decoding: Bundle | None
    actors: int


def needs_of(recipe: Recipe, cpus: float, gpus: float, hosts: int) -> Needs:
    """What a run asks for on a cluster with so many CPUs, GPUs and nodes that have any."""
    data, sizes = recipe.data, recipe.trainer.group_sizes
    share = decide(cpus, gpus, sizes, recipe.trainer.device, max(1, hosts))
    reading = decoding = None
    if data.engine == "raycl" and data.read_on != "worker":
        part = share.read_cpus / 2 if data.decode_on == "cluster" else share.read_cpus
        reading = Bundle("reading", part)
        if data.decode_on == "cluster":
            decoding = Bundle("decoding", part * data.threads, labels=data.decode_nodes or {})
    worker = Bundle("workers", share.worker_cpus, share.worker_gpus)
    return Needs(sizes, worker, reading, decoding, data.decode_actors)


@dataclass(frozen=True)
class Trials:
    """Of a sweep, at a time.

    Attributes:
        cpus, gpus: of a trial in a process of its own.
        workers: of a trial that has several, or others that decode; the cluster is shared out.
    """

    count: int
    cpus: float = 0
    gpus: float = 0
    workers: int = 0


def trials_of(recipe: Recipe, nodes: Sequence[tuple[float, float]]) -> Trials | None:
    """How many trials run at a time, as `raycl.tune.search` shares out nodes' CPUs and GPUs."""
    if recipe.tune is None:
        return None
    wanted, bound = recipe.tune.share, recipe.tune.concurrent or math.inf
    workers, device = recipe.trainer.group_sizes[-1], recipe.trainer.device
    if workers > 1 or recipe.data.decode_on == "cluster":
        gpus = sum(gpus for _, gpus in nodes)
        most = gpus if gpus and device != "cpu" else sum(cpus for cpus, _ in nodes)
        return Trials(int(min(bound, max(1, most // workers))), workers=workers)
    cpu, gpu, room = per_trial(nodes, device, wanted.cpus, wanted.gpus)
    return Trials(int(min(room, bound)), cpu, gpu)


def nodes_of(offer: Offer) -> list[tuple[float, float]]:
    """CPUs and GPUs of every node that has any, of the cluster at its largest.

    Where the file allows fewer nodes than all types have together, those with GPUs come first.
    What it does not say counts as enough.
    """
    counts = largest(offer, lambda t: (_known(t.gpus), _known(t.cpus)))
    some = [(_known(t.cpus), _known(t.gpus)) for t in offer.types for _ in range(counts[t.name])]
    return [node for node in some if any(node)]


def totals(offer: Offer) -> tuple[float, float, int]:
    """CPUs, GPUs and nodes that have any, of the cluster at its largest."""
    nodes = nodes_of(offer)
    return sum(cpus for cpus, _ in nodes), sum(gpus for _, gpus in nodes), len(nodes)


def _known(amount: float | None) -> float:
    return math.inf if amount is None else amount


def largest(offer: Offer, key: Callable[[NodeType], Any]) -> Counter[str]:
    """Nodes by type when there are as many as there may be, those with a high key first."""
    counts = Counter({t.name: t.least for t in offer.types})
    for t in sorted(offer.types, key=key, reverse=True):
        counts[t.name] += int(min(t.most - t.least, max(0, offer.nodes - counts.total())))
    return counts


@dataclass
class Node:
    """A node that runs, and what is left of it."""

    type: NodeType
    cpus: int
    gpus: float
    holds: Counter[str] = field(default_factory=Counter)

    def take(self, bundle: Bundle, count: int) -> int:
        """Places as many as have room; returns how many did."""
        if not matches(self.type.labels, bundle.labels):
            return 0
        count = min(count, _room(self.cpus, self.gpus, bundle))
        self.cpus -= count * units(bundle.cpus)
        self.gpus -= count * bundle.gpus
        if count:
            self.holds[bundle.what] += count
        return count


def units(cpus: float) -> int:
    """CPUs as Ray counts them, without rounding errors: in ten-thousandths."""
    return round(cpus * 10_000)


def _empty(t: NodeType) -> Node:
    return Node(t, units(t.cpus or 0), t.gpus or 0)


def _room(cpus: int, gpus: float, bundle: Bundle) -> int:
    by_gpus = gpus // bundle.gpus if bundle.gpus else math.inf
    return int(min(cpus // max(1, units(bundle.cpus)), by_gpus))


def slots(t: NodeType, bundle: Bundle) -> int:
    """How many of a bundle an empty node has room for."""
    node = _empty(t)
    return _room(node.cpus, node.gpus, bundle) if matches(t.labels, bundle.labels) else 0


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node's labels are those of Ray's selector: a value, !a value, in(...), !in(...)."""
    for key, condition in wanted.items():
        values = condition.removeprefix("!")
        if values.startswith("in("):
            allowed = [value.strip() for value in values[3:].rstrip(")").split(",")]
        else:
            allowed = [values]
        if (labels.get(key) in allowed) == condition.startswith("!"):
            return False
    return True


def place(needs: Needs, offer: Offer, price: Price, workers: int, actors: int = 1) -> list[Node]:
    """The nodes that run when a recipe does: few, and the cheapest ones first.

    Nodes are opened one by one, by what they cost for each bundle that they take. Where that leads
    nowhere, as the file bounds their number, those that take the most are opened.

    Returns:
        what was at rest as well; empty: there is no room.
    """
    wanted = [(needs.worker, workers)]
    wanted += [(needs.reading, 1)] if needs.reading else []
    wanted += [(needs.decoding, actors)] if needs.decoding and actors else []

    def cheapest(t: NodeType, count: int, bundle: Bundle) -> Any:
        cost = price(t)
        idle_gpus = 0 if bundle.gpus else t.gpus or 0
        return (cost is None, (cost or 0) / count, idle_gpus, -count, t.gpus, t.cpus)

    def roomiest(t: NodeType, count: int, bundle: Bundle) -> Any:
        return -slots(t, bundle)

    return _pack(wanted, offer, cheapest) or _pack(wanted, offer, roomiest)


def _pack(
    wanted: Sequence[tuple[Bundle, int]],
    offer: Offer,
    order: Callable[[NodeType, int, Bundle], Any],
) -> list[Node]:
    running = [_empty(t) for t in offer.types for _ in range(t.least)]
    counts = Counter({t.name: t.least for t in offer.types})
    for bundle, left in wanted:
        for node in running:
            left -= node.take(bundle, left)
        while left:
            more = [t for t in offer.types if counts[t.name] < t.most and slots(t, bundle)]
            if not more or len(running) >= offer.nodes:
                return []
            ranks = [order(t, min(left, slots(t, bundle)), bundle) for t in more]
            best = more[ranks.index(min(ranks))]
            running.append(_empty(best))
            counts[best.name] += 1
            left -= running[-1].take(bundle, left)
    return running
