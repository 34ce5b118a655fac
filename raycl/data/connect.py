"""The Ray that a command works with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

_log = logging.getLogger(__name__)


@contextmanager
def connected(address: str | None, **local: Any) -> Iterator[bool]:
    """The Ray connection at hand, a cluster's, or a local Ray that ends with the block.

    Yields whether it is a local Ray, which no other host can join.

    Args:
        address: of a cluster; None: that of the submitted job this runs in, or a local Ray.
        local: settings of `ray.init` for a local Ray.
    """
    for name in ("ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield False
        return
    asked = address or os.environ.get("RAY_ADDRESS")
    context = ray.init(
        address=asked or "local",
        logging_level=logging.ERROR,
        log_to_driver=False,
        **({} if asked else {"include_dashboard": False} | local),
    )
    if context.dashboard_url:
        _log.info("Ray's dashboard: http://%s", context.dashboard_url)
    try:
        yield not asked
    finally:
        ray.shutdown()
