"""I8: how soon all is right again, after each misfortune and in the end, measured offline.

At the end of a cell most of its misfortunes are long over, and what is measured there is one healing of many. So it is
also asked of each of them how long it was felt: from its end until every watcher that answers at once knew all that had
been committed by then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.faults.checkers.reading import Reading, Violation, course_violation, wanted
from tests.faults.checkers.sequence import Place, follow
from tests.faults.history import Asked, Course, PutChange, PutResync, Strike, Truth

#: Seconds within which every view is right once the last fault has healed; redis, consul and file have 5.
CONVERGENCE = 2.0

NEVER = float("inf")


class Recovery(NamedTuple):
    """How long a misfortune was felt after its end."""

    strike: Strike
    #: Seconds until the last watcher knew all that had been committed at the end of it; endless when one never did.
    seconds: float
    #: Seconds from its end to the beginning of the next one.
    room: float
    #: Who was the last.
    watcher: str

    @property
    def undisturbed(self) -> bool:
        """True when it was over before the next one began: then the figure means something."""
        return self.seconds <= self.room


def check_convergence(
    truth: Truth, readings: Sequence[Reading], course: Course, bound: float = CONVERGENCE
) -> Violation | None:
    """I8: all is right *bound* seconds after each misfortune, and after the last fault has healed."""
    return check_end(truth, readings, course, bound) or check_recoveries(recoveries(truth, readings, course), bound)


def check_end(truth: Truth, readings: Sequence[Reading], course: Course, bound: float) -> Violation | None:
    """I8: every view is right within *bound* seconds after the last fault has healed, and stays so.

    It is not enough that somebody says so: nothing of what was committed before may come later either. That the views
    are right in the end is what I2 and I3 say of a log that is complete.
    """
    if course.healed is None:
        return None
    if course.converged is None:
        return course_violation("I8", "the views never became right")
    if (seconds := course.converged - course.healed) > bound:
        return course_violation("I8", f"{seconds:.3f} s from healing to the last right view; {bound} s are allowed")
    for reading in readings:
        last = reading.steps[-1] if reading.steps else None
        if reading.closed or last is None or not isinstance(last.entry, (PutChange, PutResync)):
            continue
        commit = committed(truth, last.entry) if isinstance(last.entry, PutChange) else None
        if (seconds := last.entry.time - max(course.healed, commit or 0.0)) > bound:
            return reading.violation("I8", last.at, f"an event {seconds:.3f} s after healing; {bound} s are allowed")
    return None


def check_recoveries(recovered: Sequence[Recovery], bound: float) -> Violation | None:
    """I8: none of the misfortunes was felt longer than *bound* seconds, unless the next one came before that."""
    for recovery in recovered:
        if recovery.seconds > bound and recovery.room > bound:
            what = f"{recovery.strike.name} was felt for {recovery.seconds:.3f} s by {recovery.watcher}"
            return course_violation("I8", f"{what}; {bound} s are allowed", recovery)
    return None


def recoveries(truth: Truth, readings: Sequence[Reading], course: Course) -> list[Recovery]:
    """How long each misfortune was felt by those that answer at once and were there when it ended."""
    strikes = sorted(course.strikes, key=lambda strike: strike.end)
    followed = [(reading, list(_places(truth, reading))) for reading in readings if reading.log.prompt]
    found = []
    for number, strike in enumerate(strikes):
        following = strikes[number + 1].begin if number + 1 < len(strikes) else NEVER
        moments = [(_caught_up(truth, reading, places, strike.end), reading) for reading, places in followed]
        there = [(moment, reading.log.name) for moment, reading in moments if moment is not None]
        if there:  # else nobody could have felt it
            last, watcher = max(there)
            found.append(Recovery(strike, max(0.0, last - strike.end), following - strike.end, watcher))
    return found


def committed(truth: Truth, entry: PutChange) -> float | None:
    """When the first change of *entry* was committed, if that is known and certain."""
    if len(truth.epochs) > 1:
        return None  # the same revision may have been made twice
    place = truth.epochs[0].at(entry.changes[0].revision)
    return None if place is None else truth.epochs[0].times[place] or None


def _places(truth: Truth, reading: Reading) -> Iterator[tuple[float, Place]]:
    """When the watcher was where, until something is wrong with its log."""
    place: Place | None = None
    for step in reading.steps:
        if isinstance(step.entry, (PutChange, PutResync)):
            place, _ = follow(truth, reading, place, step)
            if place is None:
                return
            yield step.entry.time, place


def _caught_up(truth: Truth, reading: Reading, places: Sequence[tuple[float, Place]], end: float) -> float | None:
    """When the watcher first knew all that had been committed at *end*; None when that is not its business."""
    at_end = bisect_right(reading.steps, end, key=lambda step: step.entry.time)
    if not at_end or not places or places[0][0] > end:
        return None  # it came later
    life = max(number for number, epoch in enumerate(truth.epochs) if epoch.began <= end)
    epoch = truth.epochs[life]
    position = bisect_right(epoch.times, end)
    names = reading.steps[at_end - 1].scope.filters[-1]
    while position and not wanted(epoch.commits[position - 1], names):
        position -= 1
    revision = epoch.commits[position - 1].revision if position else 0
    for moment, place in places[max(0, bisect_right(places, end, key=lambda one: one[0]) - 1) :]:
        newest = max(place.reachable(truth))
        if newest > life or (newest == life and place.revision >= revision):
            return None if _gave_up(reading, at_end, moment) else moment
    gone = reading.closed or not reading.log.complete or _gave_up(reading, at_end, NEVER)
    return None if gone else NEVER


def _gave_up(reading: Reading, start: int, until: float) -> bool:
    """True when the watcher gave up a prefix from step *start* on: what is under it is not its business any more."""
    later = (step.entry for step in reading.steps[start:])
    return any(isinstance(entry, Asked) and entry.what == "unregister" and entry.time <= until for entry in later)
