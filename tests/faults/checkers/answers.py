"""The invariants of acknowledgements, checked on the log of one watcher: I9 settling, I10 retries, I11 in flight.

Source: contract, clauses C3, C4, C9 and C10.
"""

from __future__ import annotations

from collections import Counter

from datasync.events import ResyncReason
from tests.faults.checkers.reading import ABANDON_TOLERANCE, Reading, Violation
from tests.faults.history import Answered, Answering, Asked, PutChange, PutResync, Truth, Watched

#: The share by which jitter may shorten a delay of the backoff, which doubles from failure to failure. The contract
#: promises jitter, but not how much.
JITTER = 0.5
#: RESYNCs that skip the backoff, because they were requested.
_ASKED_FOR = (ResyncReason.REQUESTED, ResyncReason.PREFIX, ResyncReason.INITIAL)


def check_answers(truth: Truth, reading: Reading) -> Violation | None:
    """I9: every event settles exactly once: by its consumer, by close, or by being abandoned (C9)."""
    log = reading.log
    put_at: dict[int, float] = {}
    settled: set[int] = set()
    under_way: Counter[int] = Counter()  # calls of done for each event that have begun and not returned
    closing = closed = False
    for at, entry in enumerate(log.entries):
        if isinstance(entry, (PutChange, PutResync)):
            if closed:
                return reading.violation("I9", at, "an event was put after close() had returned")
            put_at[entry.number] = entry.time
        elif isinstance(entry, Asked):
            closing = closing or entry.what == "close"
            closed = closed or (entry.what == "close" and entry.over)
        elif isinstance(entry, Answering):
            if entry.number not in put_at:
                return reading.violation("I9", at, f"event {entry.number} was answered before it was put")
            under_way[entry.number] += 1
        elif isinstance(entry, Answered):
            under_way[entry.number] -= 1
            if entry.first and entry.number in settled:
                return reading.violation("I9", at, f"event {entry.number} settled twice")
            if entry.first:
                settled.add(entry.number)
            elif entry.number not in settled and not closing and not under_way[entry.number]:
                age = entry.time - put_at[entry.number]
                if age < log.abandon * ABANDON_TOLERANCE:
                    return reading.violation("I9", at, f"event {entry.number} took no answer {age:.3f} s after its put")
    if log.complete and not closing:
        for number, time in put_at.items():
            if number not in under_way and log.end - time < log.abandon * ABANDON_TOLERANCE:
                return reading.violation("I9", reading.last, f"event {number} was never settled")
    return None


def check_in_flight(truth: Truth, reading: Reading) -> Violation | None:
    """I11: never more events in flight than allowed; a RESYNC alone, after everything before it settled (C3, C4)."""
    given_up = reading.log.abandon * ABANDON_TOLERANCE
    limit = 1
    flying: dict[int, PutChange | PutResync] = {}
    for at, entry in enumerate(reading.log.entries):
        if isinstance(entry, Answering):
            flying.pop(entry.number, None)
        elif isinstance(entry, (PutChange, PutResync)):
            for number in [number for number, put in flying.items() if entry.time - put.time >= given_up]:
                del flying[number]
            barrier = [number for number, put in flying.items() if isinstance(put, PutResync)]
            if isinstance(entry, PutResync) and flying:
                return reading.violation("I11", at, f"a RESYNC was put before {sorted(flying)} had settled")
            if barrier:
                return reading.violation("I11", at, f"a CHANGE was put before the RESYNC {barrier} had settled")
            if len(flying) >= limit:
                return reading.violation("I11", at, f"{len(flying) + 1} in flight, {limit} allowed")
            flying[entry.number] = entry
        elif isinstance(entry, Watched):
            limit = entry.in_flight
    return None


class _Pause:
    """The delay that must follow a failure: its beginning, and the number of failures since a success."""

    def __init__(self, begin: float, failures: int, backoff: tuple[float, float]) -> None:
        first, most = backoff
        least = min(most, first * 2.0 ** min(failures - 1, 64))
        self.begin = begin
        self.failures = failures
        # The first delay has a minimum; of the following ones the contract promises only that they increase.
        self.least = least if failures == 1 else max(min(first, most), least * JITTER)


def check_retries(truth: Truth, reading: Reading) -> Violation | None:
    """I10: after an event was rejected or not acknowledged, the next RESYNC follows with an increasing delay (C10).

    The log states the backoff: ``first`` seconds after one failure, doubling up to ``most`` while nothing is accepted
    in between. Only RESYNCs that follow a failure automatically must wait, not those that were requested.
    """
    log = reading.log
    if not log.sourced:  # there the caller is notified, and no RESYNC follows automatically
        return None
    limit, failures = 1, 0
    pause: _Pause | None = None
    unanswered: dict[int, float] = {}
    for at, entry in enumerate(log.entries):
        if isinstance(entry, Watched):
            limit = entry.in_flight
        elif isinstance(entry, Answering):
            # The delay began with whatever was abandoned before this.
            begin = min([entry.time, *(put + log.abandon for put in unanswered.values())])
            unanswered.pop(entry.number, None)
            if pause is None and entry.number not in reading.accepted:
                # It was abandoned: a RESYNC is due anyway, because what replaced it may have been handled first.
                pause = _Pause(begin, 1, log.backoff)
            elif pause is None and entry.refused and not reading.accepted[entry.number]:
                # With several events in flight two acknowledgements may cross: then only the first delay is certain.
                failures = failures + 1 if limit == 1 else 1
                pause = _Pause(begin, failures, log.backoff)
        elif isinstance(entry, Answered):
            if entry.first and reading.accepted[entry.number]:
                failures = 0
        elif isinstance(entry, PutChange):
            unanswered[entry.number] = entry.time
        elif isinstance(entry, PutResync):
            if pause is None and unanswered and entry.reason is ResyncReason.UNANSWERED:
                failures = failures + 1 if limit == 1 else 1
                pause = _Pause(min(unanswered.values()) + log.abandon, failures, log.backoff)
            if pause is not None and entry.reason not in _ASKED_FOR:
                gap = entry.time - pause.begin
                asked = any(pause.begin <= request <= entry.time for request in reading.requests)
                if gap < pause.least * 0.98 and not asked:
                    what = f"a RESYNC {gap:.3f} s after failure {pause.failures} in a row"
                    return reading.violation("I10", at, f"{what}; {pause.least:.3f} s are the least")
            pause = None
            unanswered = {entry.number: entry.time}
    return None
