"""Growing pauses between attempts.

On floor 0 because the reader waits with it between connections and a subscription between resyncs.
Source: contract C10, C13.
"""

from __future__ import annotations

import math
import random

#: Seconds over which the first attempts after a break are spread. All clients of a server lose it in the same moment:
#: with pauses from a tenth of a second on, each of them would knock four times within the first second.
AFTER_BREAK = 1.0


class Backoff:
    """Pauses that double from *first* to *most* seconds, each multiplied by a random factor from *spread*.

    The default spread is full jitter, which keeps a crowd of clients from coming back together. With *after_break* the
    first pause after a success is from that span instead, and they double from there on.

    Threads: one, or the owner's lock.
    """

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
        """How many pauses were taken since the last ``reset``."""
        return self._failures

    def next(self) -> float:
        """The seconds to wait before the next attempt."""
        if self._succeeded and self._after_break > self._first:
            base = min(self._most, self._after_break)
            # As many as lead to the same span, or just below it: who failed once more has waited long enough.
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
