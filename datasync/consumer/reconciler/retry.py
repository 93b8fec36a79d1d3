"""The times at which a key that failed is tried again.

Source: contract C20.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from datasync.errors import DecodeError, InvalidArgumentError, Permanent, RetryAfter
from datasync.runtime.timeouts import default_timeouts


@dataclass(frozen=True, slots=True)
class Retry:
    """Seconds before a key that failed is tried again: *first*, then doubled up to *most*, each with jitter.

    ``RetryAfter`` and ``Permanent`` of a call say otherwise.

    Args:
      attempts: Failed calls after which the key waits for a new value; None without a limit.
      rate, burst: Retries of all keys together, per second, and at once after a calm.

    Raises:
      InvalidArgumentError: A number is not above 0, or *most* is below *first*.
    """

    first: float = 1.0
    most: float = 300.0
    attempts: int | None = None
    rate: float = 10.0
    burst: int = 100

    def __post_init__(self) -> None:
        numbers = (self.first, self.most, self.rate, self.burst, 1 if self.attempts is None else self.attempts)
        if not all(isinstance(one, (int, float)) and 0 < one < math.inf for one in numbers) or self.most < self.first:
            raise InvalidArgumentError("the numbers of Retry must be above 0, and most not below first")

    @classmethod
    def default(cls) -> Retry:
        """Return the times that hold where none were given, those at which a registry delivers a key again."""
        timeouts = default_timeouts()
        (first, most), (rate, burst) = timeouts.failure_backoff, timeouts.redeliveries
        return cls(first, most, rate=rate, burst=burst)

    def delay(self, error: BaseException, attempts: int) -> float:
        """Return the seconds after the call number *attempts*, which failed with *error*; infinity for never."""
        if isinstance(error, RetryAfter):
            return error.seconds
        if isinstance(error, (Permanent, DecodeError)) or (self.attempts is not None and attempts >= self.attempts):
            return math.inf
        return min(self.most, self.first * 2.0 ** min(attempts - 1, 64) * random.uniform(1.0, 1.5))
