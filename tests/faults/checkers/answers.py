"""The invariants of answers, each checked offline on one watcher's log: I9 settling, I10 retries, I11 in flight.

Source: contract section 6, clauses C3, C4, C9 and C10.
"""

from __future__ import annotations

from collections import Counter

from datasync.events import ResyncReason
from tests.faults.checkers.reading import ABANDON_TOLERANCE, Reading, Violation
from tests.faults.history import Answered, Answering, Asked, PutChange, PutResync, Truth, Watched

#: A pause of the backoff may be this much shorter than the one that doubles from failure to failure: how much of it is
#: jitter is not promised, only that there is some.
JITTER = 0.5
#: RESYNCs that wait for no backoff: somebody asked for them.
_ASKED_FOR = (ResyncReason.REQUESTED, ResyncReason.PREFIX, ResyncReason.INITIAL)


def check_answers(truth: Truth, reading: Reading) -> Violation | None:
    """I9: every event settles exactly once: by its consumer, by close, or by being given up (C9)."""
    log = reading.log
    put_at: dict[int, float] = {}
    settled: set[int] = set()
    under_way: Counter[int] = Counter()  # answers to each event that have begun and not returned
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
    """I11: never more in flight than allowed; a RESYNC goes alone, and nothing before it is settled (C3, C4)."""
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
    """The pause that has to follow a failure: its beginning, and how many failures there were since a success."""

    def __init__(self, begin: float, failures: int, backoff: tuple[float, float]) -> None:
        first, most = backoff
        least = min(most, first * 2.0 ** min(failures - 1, 64))
        self.begin = begin
        self.failures = failures
        # The first pause may not be shorter than it says; of those that follow it is promised that they grow.
        self.least = least if failures == 1 else max(min(first, most), least * JITTER)


def check_retries(truth: Truth, reading: Reading) -> Violation | None:
    """I10: whoever refuses events, or does not answer, gets the next RESYNC after a pause that grows (C10).

    The log states the backoff: ``first`` seconds after one failure, doubling up to ``most`` while nothing is accepted
    in between. Only the RESYNCs that follow a failure by themselves have to wait, not those that somebody asked for.
    """
    log = reading.log
    if not log.sourced:  # there a caller is told, and nothing follows by itself
        return None
    limit, failures = 1, 0
    pause: _Pause | None = None
    unanswered: dict[int, float] = {}
    for at, entry in enumerate(log.entries):
        if isinstance(entry, Watched):
            limit = entry.in_flight
        elif isinstance(entry, Answering):
            # Whatever was given up before this has begun the pause.
            begin = min([entry.time, *(put + log.abandon for put in unanswered.values())])
            unanswered.pop(entry.number, None)
            if pause is None and entry.number not in reading.accepted:
                # It had been given up: a RESYNC is due all the same, for what replaced it may have been handled first.
                pause = _Pause(begin, 1, log.backoff)
            elif pause is None and entry.refused and not reading.accepted[entry.number]:
                # With several in flight two answers may cross: then only the first pause is certain.
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
