"""An answer in a few lines."""

from __future__ import annotations

from collections.abc import Mapping

from raycl.cluster.check import Answer
from raycl.cluster.cost import Cost
from raycl.cluster.placement import Trials
from raycl.cluster.reasons import amounts, counted, shown


def lines(answer: Answer) -> list[str]:
    """What `raycl cluster check` prints below its table."""
    if answer.fits is None:
        says = [_unknown(answer)]
    elif answer.fits:
        says = [_fits(answer), *([_sweep(answer.trials)] if answer.trials else [])]
    else:
        says = ["does not fit:", *(f"  {reason}" for reason in answer.reasons)]
    return [*says, *_costs(answer), *(f"note: {note}" for note in answer.notes)]


def _fits(answer: Answer) -> str:
    needs, least, most = answer.needs, answer.groups[0], answer.groups[-1]
    each = amounts(needs.worker.cpus, needs.worker.gpus)
    parts = [f"{counted(least.workers, 'worker')} of {each} on {_nodes(least.on['workers'])}"]
    if most is not least:
        parts[0] += f", up to {most.workers} on {_nodes(most.on['workers'])}"
    if needs.decoding:
        count = f"1 to {answer.actors} actors" if answer.actors > 1 else "1 actor"
        on = _nodes(least.on["decoding"])
        parts.append(f"decoding by {count} of {amounts(needs.decoding.cpus, 0)}, the first on {on}")
    if needs.reading:
        on = " and ".join(least.on["reading"])
        parts.append(f"reading tasks of {amounts(needs.reading.cpus, 0)} on {on}")
    return f"fits: {'; '.join(parts)}"


def _unknown(answer: Answer) -> str:
    needs = answer.needs
    sizes = " to ".join(dict.fromkeys(str(n) for n in (needs.sizes[0], needs.sizes[-1])))
    workers = "worker" if sizes == "1" else "workers"
    parts = [f"{sizes} {workers} of {amounts(needs.worker.cpus, needs.worker.gpus)} each"]
    if needs.decoding:
        labels = f" with the labels {shown(needs.decoding.labels)}" if needs.decoding.labels else ""
        each = amounts(needs.decoding.cpus, 0)
        parts.append(f"1 to {needs.actors} decoding actors of {each} on nodes{labels}")
    if needs.reading:
        parts.append(f"reading tasks of {amounts(needs.reading.cpus, 0)}")
    return (
        f"unknown: needed are {', '.join(parts)}; {answer.file} does not say which CPUs and GPUs "
        f"its nodes have ({', '.join(answer.unknown)})"
    )


def _sweep(trials: Trials) -> str:
    each = amounts(trials.cpus, trials.gpus)
    if trials.workers:
        each = counted(trials.workers, "worker")
    return f"tune: {counted(trials.count, 'trial')} at a time, of {each} each"


def _costs(answer: Answer) -> list[str]:
    hint = f"no price is known of {', '.join(answer.most.without)}: --prices FILE may name them"
    if answer.most.without and not answer.most.dollars:
        return [f"cost an hour: unknown; {hint}"]
    parts = [f"at least {_dollars(answer.idle)} (idle)"]
    if answer.groups:
        some = dict.fromkeys(_dollars(group.cost) for group in answer.groups)
        parts.append(f"with this recipe {' to '.join(some)}")
    parts.append(f"at most {_dollars(answer.most)}")
    spot = [t.name for t in answer.types if t.spot and t.most]
    less = f"; spot nodes ({', '.join(spot)}) cost less" if spot else ""
    out = [f"cost an hour: {', '.join(parts)}; on demand{less}"]
    return [*out, hint] if answer.most.without else out


def _dollars(cost: Cost) -> str:
    without = f" without {', '.join(cost.without)}" if cost.without else ""
    return f"${cost.dollars:,.2f}{without}"


def _nodes(on: Mapping[str, int]) -> str:
    return " and ".join(f"{count} x {name}" for name, count in on.items())
