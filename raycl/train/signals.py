"""What ends a run from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what a scheduler sends before it takes a node


def in_main_thread() -> bool:
    """Whether handlers may be set here."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def kept() -> Iterator[None]:
    """Puts the handlers back at the end of the block."""
    before = {number: signal.getsignal(number) for number in STOPS} if in_main_thread() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
