"""What nodes cost an hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from raycl.cluster.nodes import NodeType
from raycl.errors import RayclError


@dataclass(frozen=True)
class Cost:
    """Dollars an hour of some nodes.

    Attributes:
        without: types of theirs whose price is not known, and which are not counted.
    """

    dollars: float
    without: list[str]


def prices(own: Path | None = None) -> dict[str, float]:
    """Dollars an hour by instance type, on demand; a file of one's own adds and replaces some.

    Raises:
        RayclError: that file cannot be read, or holds something else than prices.
    """
    packaged = Path(str(resources.files("raycl.cluster"))) / "prices.yaml"
    found: dict[str, float] = yaml.safe_load(packaged.read_text(encoding="utf-8"))
    return found if own is None else found | _read(own)


def _read(path: Path) -> dict[str, float]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RayclError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RayclError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise RayclError(f"{path}: prices are lines such as g5.12xlarge: 5.672, or gpu: 5.672")
    for name, price in content.items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
            raise RayclError(
                f"{path}: {name}: {price!r} was given, dollars an hour are needed, as 5.672"
            )
    return {str(name): float(price) for name, price in content.items()}


def price_of(t: NodeType, prices: Mapping[str, float]) -> float | None:
    """Dollars an hour of one node, by its type's own name or the cloud's; None: not known."""
    return prices.get(t.name, prices.get(t.instance or ""))


def cost_of(counts: Mapping[str, int], types: list[NodeType], prices: Mapping[str, float]) -> Cost:
    """Dollars an hour of so many nodes of each type."""
    some = [(price_of(t, prices), t) for t in types if counts.get(t.name)]
    dollars = sum(price * counts[t.name] for price, t in some if price is not None)
    return Cost(round(dollars, 4), [t.name for price, t in some if price is None])
