"""Whether a recipe can ever be placed on a cluster, on which nodes, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from raycl.cluster.cost import Cost, cost_of, price_of
from raycl.cluster.nodes import NodeType, Offer
from raycl.cluster.placement import (
    Needs,
    Node,
    Trials,
    largest,
    needs_of,
    nodes_of,
    place,
    totals,
    trials_of,
)
from raycl.cluster.reasons import notes, reasons
from raycl.recipe import Recipe


@dataclass(frozen=True)
class Group:
    """A size that the group of workers may have.

    Attributes:
        on: for workers, reading and decoding: on how many nodes of which type.
        nodes: all that run then, by type.
        cost: of these.
    """

    workers: int
    on: dict[str, dict[str, int]]
    nodes: dict[str, int]
    cost: Cost


@dataclass(frozen=True)
class Answer:
    """What is to be said of a recipe on a cluster.

    Attributes:
        fits: None: the file does not say what nodes of the types `unknown` have.
        prices: dollars an hour of a node, by type; None: not known.
        needs: what the recipe asks Ray for.
        groups: the smallest that it asks for, and the largest that has room.
        actors: that decode, at most.
        idle, most: cost at rest, and with every node that there may be.
        reasons: why it does not fit, one for each thing that has no place.
        notes: what else should be known.
    """

    file: str
    fits: bool | None
    unknown: list[str]
    types: list[NodeType]
    prices: dict[str, float | None]
    needs: Needs
    groups: list[Group]
    actors: int
    trials: Trials | None
    idle: Cost
    most: Cost
    reasons: list[str]
    notes: list[str]


def check(recipe: Recipe, offer: Offer, prices: Mapping[str, float]) -> Answer:
    """Says whether, and where, a recipe has room on a cluster at its largest.

    Args:
        prices: dollars an hour of a node, by its type or by what the cloud calls the machine.
    """
    price = partial(price_of, prices=prices)
    cpus, gpus, hosts = totals(offer)
    needs = needs_of(recipe, cpus, gpus, hosts)
    trials = None if offer.unknown else trials_of(recipe, nodes_of(offer))
    against = [] if offer.unknown else reasons(recipe, offer, needs, trials, price)
    groups: list[Group] = []
    actors = 0
    if not offer.unknown and not against:
        least, *others = needs.sizes
        most = [n for n in reversed(others) if place(needs, offer, price, n)][:1]
        groups = [_group(n, place(needs, offer, price, n), prices) for n in (least, *most)]
        if needs.decoding:
            counts = range(needs.actors, 0, -1)
            actors = next(n for n in counts if place(needs, offer, price, least, n))
    return Answer(
        file=offer.file,
        fits=None if offer.unknown else not against,
        unknown=offer.unknown,
        types=offer.types,
        prices={t.name: price(t) for t in offer.types},
        needs=needs,
        groups=groups,
        actors=actors,
        trials=trials,
        idle=cost_of({t.name: t.least for t in offer.types}, offer.types, prices),
        most=cost_of(largest(offer, lambda t: price(t) or 0), offer.types, prices),
        reasons=against,
        notes=[] if against else notes(recipe, offer, needs, price),
    )


def _group(workers: int, running: list[Node], prices: Mapping[str, float]) -> Group:
    on: dict[str, dict[str, int]] = {}
    for node in running:
        for what in node.holds:
            there = on.setdefault(what, {})
            there[node.type.name] = there.get(node.type.name, 0) + 1
    nodes = Counter(node.type.name for node in running)
    types = list({node.type.name: node.type for node in running}.values())
    return Group(workers, on, dict(nodes), cost_of(nodes, types, prices))
