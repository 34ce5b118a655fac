"""Why something has no place, and how to mend it; and what else should be known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from raycl.cluster.nodes import NodeType, Offer
from raycl.cluster.placement import (
    Bundle,
    Needs,
    Price,
    Trials,
    largest,
    matches,
    place,
    slots,
    totals,
)
from raycl.recipe import Recipe

# The most CPUs that a worker asks for where there are several nodes (train/resources.py): where
# there is one for each, all workers have room.
SURE = 0.9


def amounts(cpus: float, gpus: float) -> str:
    """Such as "1 GPU and 0.9 CPUs"."""
    parts = [*([(gpus, "GPU")] if gpus else []), (cpus, "CPU")]
    return " and ".join(counted(n, name) for n, name in parts)


def counted(n: float, name: str) -> str:
    """Such as "2 workers"."""
    return f"{round(n, 3):g} {name}{'' if n == 1 else 's'}"


def reasons(
    recipe: Recipe, offer: Offer, needs: Needs, trials: Trials | None, price: Price
) -> list[str]:
    """Why a recipe does not fit: one line for each thing that has no place."""
    found, least = _refused(recipe, offer, needs), needs.sizes[0]
    if trials and not trials.count:
        found.append(
            f"tune.share: a trial is to have {amounts(trials.cpus, trials.gpus)}, and no node of "
            f"{offer.file} has them: ask for less"
        )
    if not needs.worker.cpus:
        cpus = amounts(totals(offer)[0], 0)
        few = f"{offer.file} has {cpus}, too few to share out to {counted(least, 'worker')}"
        return [*found, f"trainer.workers: {few}: let there be more nodes that have some"]
    return [*found, *_without_place(recipe, offer, needs, price, least)]


def _without_place(
    recipe: Recipe, offer: Offer, needs: Needs, price: Price, workers: int
) -> list[str]:
    """Of so many workers, and of decoding beside them or else by itself."""
    found = []
    if not place(replace(needs, decoding=None), offer, price, workers):
        found.append(_no_room(offer, needs.worker, workers))
        workers = 0
    if needs.decoding and not place(needs, offer, price, workers):
        found.append(_no_decoding(recipe, offer, needs, needs.decoding, price, workers))
    return found


def _refused(recipe: Recipe, offer: Offer, needs: Needs) -> list[str]:
    """What raycl refuses before it asks Ray for anything."""
    found = []
    if recipe.trainer.wait_minutes and recipe.trainer.device == "auto":
        found.append(
            "trainer.device: auto was given with trainer.wait_minutes, and a cluster that grows "
            "cannot know what that will take: give cuda or cpu"
        )
    if recipe.data.decode_on == "gpu" and not needs.worker.gpus:
        found.append(
            f"data.decode_on: gpu was asked for, and workers have none on {offer.file}: give "
            "worker or cluster"
        )
    return found


def _no_room(offer: Offer, worker: Bundle, workers: int) -> str:
    """Why so many workers have no room, and which bounds would give it."""
    sure = replace(worker, cpus=max(worker.cpus, SURE))
    able = [t for t in offer.types if slots(t, sure)]
    need = f"{counted(workers, 'worker')} need{'s' * (workers == 1)}"
    if not able:
        return (
            f"trainer.device: {need} a GPU each, and {offer.file} has no type of node with "
            f"{amounts(sure.cpus, 1)}: give it one, or take trainer.device=cpu"
        )
    counts = largest(offer, lambda t: slots(t, worker))
    held = [(counts[t.name], t, slots(t, worker)) for t in able]
    room = sum(count * each for count, _, each in held)
    types = ", ".join(f"{count} x {t.name} of {each}" for count, t, each in held if count)
    scarce = worker.gpus and any(each < (t.gpus or 0) for _, t, each in held)
    what = "a GPU" if worker.gpus and not scarce else amounts(worker.cpus, worker.gpus)
    best = max(able, key=lambda t: (not t.head, bool(worker.gpus) == bool(t.gpus), slots(t, sure)))
    short = workers - sum(t.most * slots(t, sure) for t in able)
    more = best.most + max(0, math.ceil(short / slots(best, sure)))
    return (
        f"trainer.workers: {need} {what} each, {offer.file} has room for at most {room}"
        f"{f' ({types})' if types else ''}: {_raised(offer, best, more)}, or take fewer workers"
    )


def _raised(offer: Offer, t: NodeType, most: int) -> str:
    """Says how to let there be so many nodes of a type."""
    fields = []
    if most > t.most:
        fields.append("let there be workers" if t.head else f"raise {t.field} to {most}")
    every = most - t.most + sum(other.most for other in offer.types)
    if offer.nodes < every:
        fields.append(f"{'' if fields else 'raise '}max_workers to {every - 1}")  # beside the head
    return " and ".join(fields)


def _no_decoding(
    recipe: Recipe, offer: Offer, needs: Needs, actor: Bundle, price: Price, workers: int
) -> str:
    alike = [t for t in offer.types if t.cpus and matches(t.labels, actor.labels)]
    able = [t for t in alike if t.most]
    if not able:
        there = ", ".join(f"{shown(t.labels)} ({t.name})" for t in offer.types if t.cpus and t.most)
        none = "".join(f" ({t.field} is 0)" for t in alike)
        return (
            f"data.decode_nodes: {shown(actor.labels)} matches no node of {offer.file} that has "
            f"CPUs{none}; there are {there}"
        )
    cpus = max(t.cpus or 0 for t in able)
    names = ", ".join(t.name for t in able)
    if actor.cpus > cpus:
        threads = int(cpus / actor.cpus * recipe.data.threads)
        return (
            f"data.threads: a decoding actor of {recipe.data.threads} threads takes "
            f"{amounts(actor.cpus, 0)}, a node of {offer.file} has at most {cpus:g} ({names}): "
            f"take at most {threads} threads"
        )
    best = max(able, key=lambda t: (not t.head, slots(t, actor)))
    enough = bool(place(needs, replace(offer, nodes=math.inf), price, workers))
    mend = _raised(offer, best, best.most + (not enough))
    return (
        f"data.decode_on: a decoding actor takes {amounts(actor.cpus, 0)} beside the workers, and "
        f"on {offer.file} they leave none of {names}: {mend}, take fewer workers, or "
        "data.decode_on=worker"
    )


def shown(labels: Mapping[str, str]) -> str:
    """Such as {tier: gpu}."""
    return f"{{{', '.join(f'{key}: {value}' for key, value in labels.items())}}}"


def notes(recipe: Recipe, offer: Offer, needs: Needs, price: Price) -> list[str]:
    """What should be known of a recipe that fits, or may fit."""
    found, trainer = [], recipe.trainer
    least, most = needs.sizes[0], needs.sizes[-1]
    if offer.unknown:
        auto = f"trainer.device: auto takes a GPU each where there are {least} of them, else none"
        return [auto] if trainer.device == "auto" else []
    if trainer.device == "auto" and not needs.worker.gpus:
        why = f"{offer.file} has none"
        if any(t.gpus and t.most for t in offer.types):
            why = _no_room(offer, replace(needs.worker, gpus=1), least)
        found.append(f"trainer.device: auto takes CPUs and no GPUs here; {why}")
    found += _without_place(recipe, offer, needs, price, most)
    idle = replace(offer, types=[replace(t, most=t.least) for t in offer.types])
    now = replace(needs, reading=None, decoding=None)
    if not trainer.wait_minutes and not place(now, idle, price, least):
        device = "cuda" if needs.worker.gpus else "cpu"
        found.append(
            f"{offer.file} has no room for {counted(least, 'worker')} before it has grown: "
            f"trainer.wait_minutes=30 and trainer.device={device} wait for that"
        )
    return found
