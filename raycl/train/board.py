"""What rank 0 tells the driver; its actor starts without torch."""

from __future__ import annotations

from typing import Any


class Board:
    """Where rank 0 writes what the driver shows; lives in an actor."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._reason = ""

    def put(self, record: dict[str, Any]) -> None:
        self._records.append(record)

    def take(self) -> list[dict[str, Any]]:
        records, self._records = self._records, []
        return records

    def fail(self, reason: str) -> None:
        self._reason = self._reason or reason

    def reason(self) -> str:
        return self._reason
