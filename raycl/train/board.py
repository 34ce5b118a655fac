"""What the driver, the controller and rank 0 tell each other; its actor starts without torch."""

from __future__ import annotations

from typing import Any


class Board:
    """An actor: rank 0 writes what the driver shows, and hears when a checkpoint is wanted."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._asked = 0

    def put(self, record: dict[str, Any]) -> None:
        """Metrics of a step, or a note of what happened."""
        self._records.append(record)

    def take(self) -> list[dict[str, Any]]:
        records, self._records = self._records, []
        return records

    def ask(self) -> None:
        """A checkpoint is wanted soon."""
        self._asked += 1

    def asked(self) -> int:
        """How often one has been asked for."""
        return self._asked
