"""The invariants of acknowledgements, checked on the log of one watcher: I9 settling, I10 retries, I11 in flight.

Source: contract, clauses C3, C4, C9 and C10.
"""

from __future__ import annotations

from collections import Counter

from datasync.events import ResyncReason
from tests.faults.checkers.debts import LONG_AGO
from tests.faults.checkers.reading import ABANDON_TOLERANCE, Reading, Violation
from tests.faults.history import Answered, Answering, Asked, PutChange, PutResync, Truth, Watched

#: The share by which jitter may shorten a delay of the backoff, which doubles from failure to failure. The contract
#: promises jitter, but not how much.
JITTER = 0.5
#: Seconds after which a new change ends the pause before a RESYNC.
ON_CHANGE = 5.0
#: Owed keys above which one RESYNC replaces them.
MAX_OWED = 10_000
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
    """I11: never more events in flight than allowed; a RESYNC alone, after everything before it settled (C3, C4);
    no two with a key in common."""
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
            if flying and (common := _keys(entry) & set().union(*map(_keys, flying.values()))):
                return reading.violation("I11", at, f"{sorted(common)[:3]} are in flight already")
            flying[entry.number] = entry
        elif isinstance(entry, Watched):
            limit = entry.in_flight
    return None


def _keys(entry: PutChange | PutResync) -> set[str]:
    return {change.key for change in entry.changes} if isinstance(entry, PutChange) else set()


def check_retries(truth: Truth, reading: Reading) -> Violation | None:
    """I10: what was not accepted comes again, less and less often (C10).

    A key that failed, and a RESYNC that failed as a whole, wait for the pauses that the log states: ``first`` seconds
    after one failure, doubling up to ``most``. Nothing but a failed RESYNC, and more than ``MAX_OWED`` owed keys, leads
    to a RESYNC that repeats one.
    """
    return _check_keys(reading) or _check_resyncs(reading)


def _check_keys(reading: Reading) -> Violation | None:
    log = reading.log
    rate, burst = log.redeliveries
    tokens, moment = float(burst), LONG_AGO
    for key in reading.redelivered:
        name, debt, entry = key.change.key, key.debt, key.entry
        if debt is None:
            continue  # found by I3
        gap, least = entry.time - debt.begin, _pause(debt.failures, log.backoff)
        least = least if debt.after is None else debt.after
        if gap < least * 0.98:
            what = f"{name!r} comes again {gap:.3f} s after failure {debt.failures} in a row"
            return reading.violation("I10", key.at, f"{what}; {least:.3f} s are the least")
        if debt.alone and debt.certain and len(entry.changes) > 1:
            return reading.violation("I10", key.at, f"{name!r} failed with others, and does not come alone")
        tokens, moment = min(float(burst), tokens + (entry.time - max(moment, 0.0)) * rate) - 1.0, entry.time
        if tokens < -1.0:
            return reading.violation("I10", key.at, f"more keys come again than {burst}, and {rate:g} each second")
    return None


def _pause(failures: int, backoff: tuple[float, float]) -> float:
    """The least seconds after so many failures in a row."""
    first, most = backoff
    least = min(most, first * 2.0 ** min(max(failures, 1) - 1, 64))
    # The first delay has a minimum; of the following ones the contract promises only that they increase.
    return least if failures <= 1 else max(min(first, most), least * JITTER)


def _check_resyncs(reading: Reading) -> Violation | None:
    log = reading.log
    failures = 0  # of RESYNCs, since one was accepted
    begin: float | None = None  # of the pause
    unsettled = False
    late = False  # a RESYNC was answered late since the last one: its pause may go on
    last: PutResync | None = None
    last_put: PutChange | PutResync | None = None
    for at, entry in enumerate(log.entries):
        if isinstance(entry, PutChange):
            last_put = entry
        elif isinstance(entry, Answering):
            if entry.number not in reading.answers:
                late = late or entry.number in reading.resyncs
                unsettled = unsettled or late
            elif last is not None and entry is reading.answers.get(last.number):
                if entry.refused and entry.keys is None:
                    failures += 1
                    begin = entry.time if begin is None else begin
                else:
                    failures = 0
        elif isinstance(entry, PutResync):
            if last is not None and last.number not in reading.answers:
                unsettled = True
                failures += 1
                begin = last.time + log.abandon if begin is None else begin
            if wrong := _without_cause(entry, reading, last_put, unsettled):
                return reading.violation("I10", at, wrong)
            if begin is not None and entry.reason not in _ASKED_FOR:
                gap, least = entry.time - begin, min(_pause(1 if late else failures, log.backoff), ON_CHANGE)
                asked = any(begin <= request <= entry.time for request in reading.requests)
                if gap < least * 0.98 and not asked:
                    what = f"a RESYNC {gap:.3f} s after failure {failures} in a row"
                    return reading.violation("I10", at, f"{what}; {least:.3f} s are the least")
            begin, last, last_put, late = None, entry, entry, False
    return None


def _without_cause(entry: PutResync, reading: Reading, before: PutChange | PutResync | None, unsettled: bool) -> str:
    """The reason why there is no cause for a RESYNC that repeats one; empty if there is one, or it repeats none."""
    if entry.reason is ResyncReason.UNANSWERED and not unsettled:
        return "a RESYNC because of one that was not answered, and all were"
    if entry.reason is not ResyncReason.FAILED or reading.most_owed > MAX_OWED:
        return ""
    answer = None if before is None else reading.answers.get(before.number)
    if isinstance(before, PutResync) and (answer is None or (answer.refused and answer.keys is None)):
        return ""
    return "a RESYNC because of one that failed, and none did"
