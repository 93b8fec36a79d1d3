"""The durations by which readers and registries retry, wait and abandon.

On floor 0 because a transport passes one value to its reader and to its registry. Source: contract C8-C10, C13.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.errors import InvalidArgumentError

#: Seconds after which an unacknowledged event is abandoned.
ABANDON_TIMEOUT = 60.0
#: Seconds after which a log line names a subscription that has not acknowledged an event.
REMIND_TIMEOUT = 5.0
#: Seconds before a key that was not accepted is delivered again: the first delay, and the longest.
FAILURE_BACKOFF = (1.0, 300.0)


def check_seconds(name: str, seconds: float, *, zero: bool = False) -> float:
    """Return *seconds* if it is a finite number above 0, or 0 itself with *zero*. Raises ``InvalidArgumentError``.

    For arguments, before anything is done with them: None or NaN would fail later, where something was sent already.
    """
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if number and (seconds > 0 or (zero and seconds == 0)):
        return seconds
    raise InvalidArgumentError(f"{name} must be a number of seconds {'from' if zero else 'above'} 0, not {seconds!r}")


def check_timeout(timeout: object, what: str = "timeout") -> float:
    """Return *timeout*, of a wait, as a lock can wait: infinity is more than that, and a past time is no wait.

    Called before anything changes: a wait that fails afterwards would look like a change that was not made.

    Raises:
      InvalidArgumentError: It is not a number of seconds; neither None nor NaN is one.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidArgumentError(f"{what} must be a number of seconds, not {type(timeout).__name__}")
    if timeout != timeout:
        raise InvalidArgumentError(f"{what} must be a number of seconds, not NaN")
    return min(timeout, threading.TIMEOUT_MAX)


class Timeouts(NamedTuple):
    """Durations in seconds; a backoff is its first and its longest delay. *redeliveries* is a rate."""

    #: The time that an event waits for room in a full queue; a later acknowledgement is counted as late.
    delivery: float = DEFAULT_NOTIF_TIMEOUT
    abandon: float = ABANDON_TIMEOUT
    #: After this time without an acknowledgement a WARNING says that ``done`` was not called.
    remind: float = REMIND_TIMEOUT
    #: Before a key that was not accepted, or a RESYNC that failed, is delivered again; with jitter.
    failure_backoff: tuple[float, float] = FAILURE_BACKOFF
    #: Keys per second that are delivered again to one subscription, and the most at once after a calm.
    redeliveries: tuple[float, int] = (10.0, 100)
    #: Between two attempts to put an event on a full queue.
    full_queue_backoff: tuple[float, float] = (0.005, 0.1)
    #: Before a reader retries after a failure; with full jitter.
    retry_backoff: tuple[float, float] = (0.1, 30.0)
    #: From the first batch of a resumed stream, within which it must repeat the last commit that was read.
    anchor_patience: float = 1.0


DEFAULT_TIMEOUTS = Timeouts()
#: What takes the place of the default, the newest last. A test may shorten the backoffs of the program that it tests.
_replacements: dict[object, Timeouts] = {}


def default_timeouts() -> Timeouts:
    """Return the timeouts of everything that is not given others. Threads: any; without a lock."""
    replaced = list(_replacements.values())
    return replaced[-1] if replaced else DEFAULT_TIMEOUTS


def replace_default(mark: object, timeouts: Timeouts | None) -> None:
    """Make *timeouts* the default until the next call with the same *mark* and None. Threads: any; without a lock."""
    if timeouts is None:
        _replacements.pop(mark, None)
    else:
        _replacements[mark] = timeouts
