"""The durations by which readers and registries retry, wait and abandon.

On floor 0 because a transport passes one value to its reader and to its registry. Source: contract C8-C10, C13.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasync.api import DEFAULT_NOTIF_TIMEOUT

#: Seconds after which an unacknowledged event is abandoned.
ABANDON_TIMEOUT = 60.0
#: Seconds before the RESYNC that follows a failed event: the first delay, and the longest.
FAILURE_BACKOFF = (1.0, 300.0)
#: Seconds between two attempts to put an event on a full queue: the first delay, and the longest.
FULL_QUEUE_BACKOFF = (0.005, 0.1)
#: Seconds before a reader retries after a failure: the first delay, and the longest, with full jitter.
RETRY_BACKOFF = (0.1, 30.0)
#: Seconds, from the first batch of a resumed stream, within which the stream must repeat the last commit that was read.
ANCHOR_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Durations in seconds; a backoff is its first and its longest delay. The constants above are the defaults."""

    #: The time that an event waits for room in a full queue; a later acknowledgement is counted as late.
    delivery: float = DEFAULT_NOTIF_TIMEOUT
    abandon: float = ABANDON_TIMEOUT
    failure_backoff: tuple[float, float] = FAILURE_BACKOFF
    full_queue_backoff: tuple[float, float] = FULL_QUEUE_BACKOFF
    retry_backoff: tuple[float, float] = RETRY_BACKOFF
    anchor_patience: float = ANCHOR_PATIENCE


#: The timeouts of everything that is not given others.
DEFAULT_TIMEOUTS = Timeouts()
