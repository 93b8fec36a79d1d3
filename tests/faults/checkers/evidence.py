"""The evidence of a cell: how often each invariant was tested, and what is missing.

A checker finds nothing in a perfect log, and nothing in an empty one either. So the checked items are counted, and a
cell in which nothing could fail is not good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.faults.checkers.course import RSS_SLACK, STORM_OUTAGE, failures, judged_samples
from tests.faults.checkers.reading import Reading, under
from tests.faults.history import Course, PutChange, PutResync, Truth, TruthCommit


def evidence(
    truth: Truth, readings: Sequence[Reading], course: Course, told: Sequence[TruthCommit] | None
) -> Counter[str]:
    """Count by invariant how often it could have been violated.

    I0 is the record itself: the commits that the source confirmed.
    """
    counts: Counter[str] = Counter({"I0": len(told or ())})
    for reading in readings:
        events = _of_log(reading, counts)
        if events and reading.log.complete and not reading.closed and course.converged is not None:
            counts["I8"] += 1
        counts["I9"] += len(reading.answers)
        counts["I10"] += failures(reading) + len(reading.redelivered)
    if memory_tells(course):
        counts["I12"] += len(course.samples)
    if course.away is not None and course.away[1] - course.away[0] >= STORM_OUTAGE:
        counts["I13"] += len(course.attempts)
    counts["I14"] += sum(
        silence.noticed is not None or (silence.ended or silence.begin) - silence.begin > silence.limit
        for silence in course.silences
    )
    counts["I15"] += len(course.closings)
    counts["I16"] += course.before is not None and course.after is not None
    counts["I17"] += len(course.forks)
    return counts


def _of_log(reading: Reading, counts: Counter[str]) -> int:
    """Count the evidence of one log; return its number of events."""
    events = 0
    for _, entry, _ in reading.steps:
        if isinstance(entry, PutResync):
            events += 1
            counts["I2"] += 1
            counts["I7"] += len(entry.removed)
        elif isinstance(entry, PutChange):
            events += 1
            counts["I3"] += len(entry.changes)  # also of redeliveries: each must be of an owed key
            counts["I5"] += len(entry.changes) > len({change.revision for change in entry.changes})
            counts["I6"] += sum(change.previous is not None for change in entry.changes)
    counts["I1"] += events
    counts["I4"] += max(0, events - 1)
    counts["I11"] += events
    return events


def memory_tells(course: Course) -> bool:
    """True when a consumer hung, and enough was written meanwhile that keeping it would be visible."""
    early, late = judged_samples(course)
    if not early or not late or not any(any(sample.pending.values()) for sample in course.samples):
        return False
    first, last = early[len(early) // 2], late[len(late) // 2]
    return last.written - first.written - (last.recorded - first.recorded) > 1.5 * RSS_SLACK


def lacks(
    truth: Truth,
    readings: Sequence[Reading],
    course: Course,
    *,
    calm: bool = False,
    idle: bool = False,
    failing: bool = False,
) -> list[str]:
    """The reasons why the cell could not have failed; empty if it could.

    Args:
      calm: No misfortune was planned.
      idle: No writes were planned.
      failing: A consumer rejects events or does not acknowledge them.
    """
    found = []
    steps = [step.entry for reading in readings for step in reading.steps]
    staying = [reading for reading in readings if not reading.closed]
    if not any(isinstance(entry, (PutChange, PutResync)) for entry in steps):
        found.append("no watcher received an event")
    elif not idle and not any(isinstance(entry, PutChange) for entry in steps):
        found.append("no watcher received a change")
    if not staying:
        found.append("no watcher was registered at the end")
    elif not any(_has_something(truth, reading) for reading in staying):
        found.append("no watcher had anything of the final state of the source")
    if course.healed is None:
        found.append("the time of healing was not recorded")
    times = truth.epochs[-1].times
    if not times and len(truth.epochs) == 1:
        found.append("nothing was written")
    if not calm:
        found += _misfortune_lacks(truth, course, idle)
    if failing and not any(failures(reading) for reading in readings):
        found.append("no consumer failed")
    return found


def _misfortune_lacks(truth: Truth, course: Course, idle: bool) -> list[str]:
    if not course.strikes:
        return ["the misfortune did not happen"]
    struck = min(strike.begin for strike in course.strikes)
    if not idle and not any(moment > struck for epoch in truth.epochs for moment in epoch.times):
        return ["nothing was written after the misfortune"]
    return []


def _has_something(truth: Truth, reading: Reading) -> bool:
    """True when the watcher received a change, or the final state has something for it."""
    told = any(isinstance(step.entry, PutChange) for step in reading.steps)
    return told or any(bool(under(truth.state, step.scope.must)) for step in reading.steps[-1:])
