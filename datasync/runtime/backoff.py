"""Growing delays between attempts.

Source: contract C10, C13.
"""

from __future__ import annotations

import math
import random

#: Seconds over which the first attempts after a disconnect are spread. All clients of a server lose it at the same
#: moment: with delays from a tenth of a second on, each of them would reconnect four times within the first second.
AFTER_BREAK = 1.0


class Backoff:
    """Delays that double from *first* to *most* seconds, each multiplied by a random factor from *spread*.

    The default spread is full jitter, which prevents many clients from reconnecting at once. With *after_break* the
    first delay after a success is drawn from that many seconds instead, and the delays double from there.

    Threads: one, or the owner's lock.
    """

    __slots__ = ("_after_break", "_doublings", "_failures", "_first", "_most", "_spread", "_succeeded")

    def __init__(
        self, first: float, most: float, spread: tuple[float, float] = (0.0, 1.0), *, after_break: float = 0.0
    ) -> None:
        self._first = first
        self._most = most
        self._spread = spread
        self._after_break = after_break
        self._failures = 0
        self._doublings = 0
        self._succeeded = False

    @property
    def failures(self) -> int:
        """The number of delays since the last ``reset``."""
        return self._failures

    def next(self) -> float:
        """Return the seconds to wait before the next attempt."""
        if self._succeeded and self._after_break > self._first:
            base = min(self._most, self._after_break)
            # The doublings that lead to the same delay or just below it: a second failure need not wait longer.
            self._doublings = int(math.log2(self._after_break / self._first))
        else:
            base = min(self._most, self._first * 2.0 ** min(self._doublings, 64))
            self._doublings += 1
        self._succeeded = False
        self._failures += 1
        return min(self._most, base * random.uniform(*self._spread))

    def reset(self) -> None:
        """Start over, after a success."""
        self._failures = self._doublings = 0
        self._succeeded = True
