"""The limits of what is possible: baselines with the parts that the contract requires, and nothing more.

A note below the table gives the share of the baseline's rate that such a loop reaches; ours cannot reach more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from tests.benchmarks.local import Slotted

#: Pairs of runs.
PAIRS = 3


def reached(parts: str, least: Callable[[], float], baseline: Callable[[], float]) -> str:
    """Return the note; *least* and *baseline* return rates."""
    ratio = statistics.median(least() / baseline() for _ in range(PAIRS))
    return f"the limit: with {parts}, the baseline has {ratio:.2f} of its rate"


class State:
    """The minimum that knows previous values: an object and a dict entry for each change."""

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
