"""What is out of reach, and by how much: floors with the parts that the contract asks for, and nothing else.

A note under the row says which part of the floor's rate such a loop still has; ours cannot have more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from tests.benchmarks.local import Slotted

#: Pairs of runs.
PAIRS = 3


def reached(parts: str, least: Callable[[], float], floor: Callable[[], float]) -> str:
    """The note: *least* and *floor* return rates."""
    ratio = statistics.median(least() / floor() for _ in range(PAIRS))
    return f"the limit: with {parts}, the floor has {ratio:.2f} of its rate"


class State:
    """The least that knows the value before a change: an object and an entry of a dict for each."""

    parts = "an object and an entry of a dict for each change, which previous values take"

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, Any]] = {}

    def take(self, changes: Iterable[tuple[str, int, Any]]) -> list[Slotted]:
        entries = self._entries
        made = []
        for key, revision, value in changes:
            made.append(Slotted(key, value, revision, entries.get(key)))
            entries[key] = (revision, value)
        return made
