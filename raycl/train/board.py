"""What the driver, the controller and rank 0 tell each other; its actor starts without torch."""

from __future__ import annotations

import time
from typing import Any

LISTENING = 5.0  # seconds after which rank 0, not heard of, is taken for gone


class Board:
    """An actor: rank 0 writes what the driver shows, and hears when a checkpoint is wanted."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._asked = 0
        self._ended = False
        self._listened = float("-inf")

    def put(self, record: dict[str, Any]) -> None:
        """Metrics of a step, or a note of what happened."""
        self._records.append(record)

    def take(self) -> list[dict[str, Any]]:
        records, self._records = self._records, []
        return records

    def ask(self) -> bool:
        """A checkpoint is wanted soon; says whether there is somebody to write one."""
        self._asked += 1
        return time.monotonic() - self._listened < LISTENING

    def end(self) -> None:
        """The run shall save and end."""
        self._ended = True

    def asked(self) -> tuple[int, bool]:
        """How often a checkpoint has been asked for, and whether the run shall end.

        Rank 0 looks every second while it trains.
        """
        self._listened = time.monotonic()
        return self._asked, self._ended
