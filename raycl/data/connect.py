"""The Ray that a command works with."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from raycl.errors import RayclError

PATIENCE = 30  # seconds for a head that is only just started

_log = logging.getLogger(__name__)


@contextmanager
def connected(address: str | None, **local: Any) -> Iterator[bool]:
    """The Ray connection at hand, a cluster's, or a local Ray that ends with the block.

    Yields whether it is a local Ray, which no other host can join.

    Args:
        address: of a cluster; None: that of the submitted job this runs in, or a local Ray.
        local: settings of `ray.init` for a local Ray.

    Raises:
        RayclError: no Ray is at the address, or it does not let this process in.
    """
    for name in ("ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield False
        return
    asked = address or os.environ.get("RAY_ADDRESS")
    if asked:
        _reach(asked)
    try:
        context = ray.init(
            address=asked or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if asked else {"include_dashboard": False} | local),
        )
    except ConnectionError as error:
        if not asked:
            raise
        raise RayclError(
            f"Ray's address {asked}: {str(error).strip(' .')}; is a head there, of this version of "
            "Ray, and is the cluster's token here (RAY_AUTH_MODE=token and ~/.ray/auth_token)?"
        ) from None
    if context.dashboard_url:
        _log.info("Ray's dashboard: http://%s", context.dashboard_url)
    try:
        yield not asked
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself would try an address for many minutes, and tell of it in its own terms."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:  # auto
        return
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) or time.monotonic() > until:
                raise RayclError(
                    f"Ray's address {address}: nothing answers there ({error}); give HOST:PORT of "
                    "a head, as `ray start --head` prints it, or auto on a node of the cluster"
                ) from None
            time.sleep(1)
