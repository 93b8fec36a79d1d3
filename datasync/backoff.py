"""Growing pauses between attempts.

On floor 0 because the reader waits with it between connections and a subscription between resyncs.
Source: contract C10, C13.
"""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double from *first* to *most* seconds, each multiplied by a random factor from *spread*.

    The default spread is full jitter, which keeps a crowd of clients from coming back together.
    Threads: one, or the owner's lock.
    """

    def __init__(self, first: float, most: float, spread: tuple[float, float] = (0.0, 1.0)) -> None:
        self._first = first
        self._most = most
        self._spread = spread
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many pauses were taken since the last ``reset``."""
        return self._failures

    def next(self) -> float:
        """The seconds to wait before the next attempt."""
        base = min(self._most, self._first * 2.0 ** min(self._failures, 64))
        self._failures += 1
        return min(self._most, base * random.uniform(*self._spread))

    def reset(self) -> None:
        """Start over, after a success."""
        self._failures = 0
