from __future__ import annotations

import threading

from raycl.beton.lazy import lazy


class Thing:
    """Counts how often its value is made."""

    def __init__(self) -> None:
        self.made = 0

    @lazy
    def value(self) -> int:
        """A number."""
        self.made += 1
        return self.made


class Slow:
    """Waits for others to make theirs."""

    together = threading.Barrier(2, timeout=30)

    @lazy
    def value(self) -> int:
        return self.together.wait()


def test_made_once_and_for_each_instance() -> None:
    one, two = Thing(), Thing()
    assert (one.value, one.value, two.value, one.made, two.made) == (1, 1, 1, 1, 1)
    assert Thing.value.__doc__ == "A number."


def test_instances_do_not_wait_for_each_other() -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(Slow().value)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [0, 1]
