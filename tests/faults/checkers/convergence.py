"""I8: the time until every view is correct again, after each misfortune and at the end.

At the end of a cell most of its misfortunes are long over, and only one recovery is measured there. So the recovery
from each misfortune is measured as well: the time from its end until every watcher that acknowledges at once knew
everything that had been committed by then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.faults.checkers.reading import Reading, Violation, course_violation, wanted
from tests.faults.checkers.sequence import Place, follow
from tests.faults.history import Asked, Course, PutChange, PutResync, Strike, Truth

#: Seconds within which every view must be correct after the last fault has healed.
CONVERGENCE = 2.0

NEVER = float("inf")


class Recovery(NamedTuple):
    """The recovery from one misfortune."""

    strike: Strike
    #: Seconds until the last watcher knew everything that was committed at its end; infinite if one never did.
    seconds: float
    #: Seconds from its end to the beginning of the next misfortune.
    room: float
    #: The last watcher.
    watcher: str

    @property
    def undisturbed(self) -> bool:
        """True when it ended before the next misfortune began, so that the figure is meaningful."""
        return self.seconds <= self.room


def check_convergence(
    truth: Truth, readings: Sequence[Reading], course: Course, bound: float = CONVERGENCE
) -> Violation | None:
    """I8: every view is correct *bound* seconds after each misfortune, and after the last fault has healed."""
    return check_end(truth, readings, course, bound) or check_recoveries(recoveries(truth, readings, course), bound)


def check_end(truth: Truth, readings: Sequence[Reading], course: Course, bound: float) -> Violation | None:
    """I8: every view is correct within *bound* seconds after the last fault has healed, and stays correct.

    Nothing that was committed before may be delivered later, and no key may be owed. That the final views are correct
    is checked by I2 and I3 on complete logs.
    """
    if course.healed is None:
        return None
    if course.converged is None:
        return course_violation("I8", "the views never became correct")
    if (seconds := course.converged - course.healed) > bound:
        return course_violation("I8", f"{seconds:.3f} s from healing to the last correct view; the limit is {bound} s")
    for reading in readings:
        last = reading.steps[-1] if reading.steps else None
        if last is not None and (owed := _owed(reading, last.scope.must)):
            return reading.violation("I8", reading.last, f"owed, and not delivered again: {owed[:3]}")
        if reading.closed or last is None or not isinstance(last.entry, (PutChange, PutResync)):
            continue
        told = isinstance(last.entry, PutChange) and not last.entry.redelivery
        commit = committed(truth, last.entry) if told else None  # type: ignore[arg-type]
        if (seconds := last.entry.time - max(course.healed, commit or 0.0)) > bound:
            return reading.violation("I8", last.at, f"an event {seconds:.3f} s after healing; the limit is {bound} s")
    return None


def _owed(reading: Reading, prefixes: Iterable[str]) -> list[str]:
    """The keys that are owed at the end of a log that has everything."""
    if reading.closed or not reading.log.complete:
        return []
    return sorted(key for key, debt in reading.owed.items() if debt.certain and key.startswith(tuple(prefixes)))


def check_recoveries(recovered: Sequence[Recovery], bound: float) -> Violation | None:
    """I8: each recovery takes at most *bound* seconds, unless the next misfortune began before that."""
    for recovery in recovered:
        if recovery.seconds > bound and recovery.room > bound:
            what = f"{recovery.watcher} needed {recovery.seconds:.3f} s to recover from {recovery.strike.name}"
            return course_violation("I8", f"{what}; the limit is {bound} s", recovery)
    return None


def recoveries(truth: Truth, readings: Sequence[Reading], course: Course) -> list[Recovery]:
    """The recovery from each misfortune, of watchers that acknowledge at once and existed when it ended."""
    strikes = sorted(course.strikes, key=lambda strike: strike.end)
    followed = [(reading, list(_places(truth, reading))) for reading in readings if reading.log.prompt]
    found = []
    for number, strike in enumerate(strikes):
        following = strikes[number + 1].begin if number + 1 < len(strikes) else NEVER
        moments = [(_caught_up(truth, reading, places, strike.end), reading) for reading, places in followed]
        there = [(moment, reading.log.name) for moment, reading in moments if moment is not None]
        if there:  # otherwise no watcher could be affected
            last, watcher = max(there)
            found.append(Recovery(strike, max(0.0, last - strike.end), following - strike.end, watcher))
    return found


def committed(truth: Truth, entry: PutChange) -> float | None:
    """The time at which the first change of *entry* was committed, if it is known for certain."""
    if len(truth.epochs) > 1:
        return None  # the same revision may exist in two epochs
    place = truth.epochs[0].at(entry.changes[0].revision)
    return None if place is None else truth.epochs[0].times[place] or None


def _places(truth: Truth, reading: Reading) -> Iterator[tuple[float, Place]]:
    """The position of the watcher over time, up to the first error in its log."""
    place: Place | None = None
    for step in reading.steps:
        if isinstance(step.entry, (PutChange, PutResync)):
            place, _ = follow(truth, reading, place, step)
            if place is None:
                return
            yield step.entry.time, place


def _caught_up(truth: Truth, reading: Reading, places: Sequence[tuple[float, Place]], end: float) -> float | None:
    """The time at which the watcher first knew everything committed at *end*; None if that does not apply to it."""
    at_end = bisect_right(reading.steps, end, key=lambda step: step.entry.time)
    if not at_end or not places or places[0][0] > end:
        return None  # it was registered later
    life = max(number for number, epoch in enumerate(truth.epochs) if epoch.began <= end)
    epoch = truth.epochs[life]
    position = bisect_right(epoch.times, end)
    names = reading.steps[at_end - 1].scope.filters[-1]
    while position and not wanted(epoch.commits[position - 1], names):
        position -= 1
    revision = epoch.commits[position - 1].revision if position else 0
    for moment, place in places[max(0, bisect_right(places, end, key=lambda one: one[0]) - 1) :]:
        if truth.net_effects and place.shows(truth, epoch.fold(revision), names):
            return None if _gave_up(reading, at_end, moment) else moment  # no event tells of what changed nothing
        newest = max(place.reachable(truth))
        if newest > life or (newest == life and place.revision >= revision):
            return None if _gave_up(reading, at_end, moment) else moment
    gone = reading.closed or not reading.log.complete or _gave_up(reading, at_end, NEVER)
    return None if gone else NEVER


def _gave_up(reading: Reading, start: int, until: float) -> bool:
    """True when the watcher unregistered a prefix after step *start*: keys under it do not matter any more."""
    later = (step.entry for step in reading.steps[start:])
    return any(isinstance(entry, Asked) and entry.what == "unregister" and entry.time <= until for entry in later)
