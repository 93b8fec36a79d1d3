"""The invariants that no single log shows, checked on the course of a cell: I10 and I12 to I17.

A checker returns the first violation or None. It returns None for what was not measured; ``evidence`` counts how often
each invariant was tested.

Source: contract, clauses C8, C10, C13 and C15.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from tests.faults.checkers.convergence import CONVERGENCE, committed
from tests.faults.checkers.reading import Reading, Violation, course_violation
from tests.faults.history import Answered, Answering, Course, PutChange, PutResync, Sample, Truth, Watched

#: Seconds within which a ready consumer receives a change while the source is undisturbed.
DELAY = 2.0
#: Bytes that a process may grow under load: allocators keep the memory of the largest backlog that arrived at once
#: after a reconnect, in arenas of 1 MiB and more for each thread.
RSS_SLACK = 40 << 20
#: The share of written bytes that counts as kept. A process that keeps everything keeps more than all of them.
RSS_SHARE = 0.1
#: The share of the samples that is warm-up, in which caches fill and pools grow, and is not judged.
WARM_UP = 1 / 3
#: The share of the clients that may connect in the same second.
STORM_SHARE = 0.1
#: Seconds at the beginning of an outage that are not judged, because backoff delays are still short. With delays drawn
#: from (0, b), where b doubles, each client makes one attempt per t seconds after t seconds of outage: before the tenth
#: second no backoff that begins at 0.1 s can stay below a tenth.
STORM_WARM_UP = 12.0
#: Minimum seconds of an outage for the return of the server to be judged.
STORM_OUTAGE = 15.0

CourseChecker = Callable[[Truth, Sequence[Reading], Course], Violation | None]


def check_neighbours(
    truth: Truth, readings: Sequence[Reading], course: Course, bound: float = DELAY
) -> Violation | None:
    """I10: while one subscriber fails, those that acknowledge at once get each change within *bound* seconds (C8, C10).

    The time runs from the commit of the change, or from when the watcher was ready for it if that was later. Changes
    during a misfortune of the source, or during the recovery from one, are not judged.
    """
    if not any(failures(reading) for reading in readings):
        return None
    bad = sorted((strike.begin, strike.end + CONVERGENCE) for strike in course.strikes)
    for reading in readings:
        if not reading.log.prompt:
            continue
        for at, entry, ready in ready_changes(reading):
            commit = None if entry.redelivery else committed(truth, entry)
            late = 0.0 if commit is None else entry.time - max(ready, commit)
            if commit is not None and late > bound * course.slowdown and not _overlaps(bad, commit, entry.time):
                return reading.violation("I10", at, f"a change was {late:.3f} s late while another watcher failed")
    return None


def failures(reading: Reading) -> int:
    """The number of events that a watcher rejected, or did not acknowledge until they were abandoned."""
    given_up = reading.log.end - reading.log.abandon
    refused = sum(answer.refused for answer in reading.answers.values())
    return refused + sum(put.number not in reading.answers and put.time < given_up for put in reading.log.puts())


def ready_changes(reading: Reading) -> Iterator[tuple[int, PutChange, float]]:
    """Each CHANGE with its index, and the time from which it could be put because the previous event was settled."""
    limit = 1
    flying: dict[int, float] = {}
    ready = 0.0
    for at, entry in enumerate(reading.log.entries):
        if isinstance(entry, Watched):
            limit = entry.in_flight
            ready = entry.time
        elif isinstance(entry, Answering):
            if len(flying) >= limit:
                ready = entry.time
            flying.pop(entry.number, None)
        elif isinstance(entry, Answered):
            ready = max(ready, entry.time)
        elif isinstance(entry, PutChange):
            yield at, entry, ready
            flying[entry.number] = entry.time
        elif isinstance(entry, PutResync):
            flying[entry.number] = entry.time
            ready = entry.time


def _overlaps(spans: Sequence[tuple[float, float]], begin: float, end: float) -> bool:
    return any(one < end and begin < other for one, other in spans[: bisect_left(spans, (end, end))])


def check_memory(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I12: the backlog of a stuck consumer is bounded, and so is the memory of the process (C8).

    Pending changes are at most ``MAX_PENDING`` and one transaction. Memory is judged after a third of the samples, and
    after ``RSS_SLACK`` bytes were written, because until then memory is allocated for the first time. From then on it
    may grow by ``RSS_SLACK``, by a tenth of the bytes written meanwhile, and by the records of the harness. A process
    that keeps each change keeps all of these bytes, which shows when a little more than ``RSS_SLACK`` was written; with
    less nothing is proven.
    """
    largest = max((len(commit.ops) for epoch in truth.epochs for commit in epoch.commits), default=0)
    for sample in course.samples:
        for watcher, pending in sample.pending.items():
            if pending > course.max_pending + largest:
                what = f"{pending} changes wait for {watcher}; {course.max_pending} and one transaction may"
                return course_violation("I12", what, sample._replace(pending={watcher: pending}))
    early, late = judged_samples(course)
    if early and late:
        grown = median(sample.rss for sample in late) - median(sample.rss for sample in early)
        grown -= _middle(late).recorded - _middle(early).recorded
        written = _middle(late).written - _middle(early).written
        if grown > RSS_SLACK + RSS_SHARE * written:
            what = f"the process grew by {grown / 1e6:.1f} MB while {written / 1e6:.1f} MB were written"
            return course_violation("I12", what, _bare(early[0]), _bare(late[-1]))
    return None


def judged_samples(course: Course) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The samples to compare: the first and the last quarter after the warm-up."""
    samples = sorted(course.samples, key=lambda sample: sample.time)
    warm = [one for one in samples[int(len(samples) * WARM_UP) :] if one.written >= samples[0].written + RSS_SLACK]
    quarter = len(warm) // 4
    return warm[:quarter], warm[len(warm) - quarter :]


def _middle(samples: Sequence[Sample]) -> Sample:
    return samples[len(samples) // 2]


def _bare(sample: Sample) -> Sample:
    return sample._replace(pending={})


def check_storm(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I13: no second has more than a tenth of the clients' attempts: there is no storm of reconnects.

    No backoff can keep this for all attempts: delays begin at 0.1 s (C13), so several attempts of each client fall into
    the first second after the connection was lost, when no server is affected. The limits are for what a server can
    notice. *While it is away*, from ``STORM_WARM_UP`` seconds on, the attempts per second are on average at most a
    tenth of the number of clients. *When it is back* after ``STORM_OUTAGE`` seconds or more, no sliding second has more
    attempts than a tenth of the number of clients.
    """
    if course.away is None:
        return None
    gone, back = course.away
    attempts = sorted(course.attempts)
    allowed = STORM_SHARE * course.clients
    begin = gone + STORM_WARM_UP
    if back - begin >= 1:
        count = bisect_left(attempts, back) - bisect_left(attempts, begin)
        if (rate := count / (back - begin)) > allowed:
            what = f"{rate:.1f} attempts in a second of {course.clients} clients, {begin - gone:.0f} s into the outage"
            return course_violation("I13", what, course.away)
    if back - gone >= STORM_OUTAGE:
        first = bisect_left(attempts, back)
        for at in range(first, len(attempts)):
            count = bisect_right(attempts, attempts[at] + 1.0) - at
            if count > allowed:
                what = f"{count} attempts of {course.clients} clients within a second"
                return course_violation(
                    "I13", f"{what}, {attempts[at] - back:.1f} s after the server was back", course.away
                )
    return None


def check_silences(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I14: a half-open connection is detected within the idle limit and a second (C13)."""
    for silence in course.silences:
        known = silence.noticed if silence.noticed is not None else silence.ended
        if silence.noticed is not None and silence.noticed < silence.begin:
            return course_violation("I14", "it was detected before it began", silence)
        if known is None:
            return course_violation("I14", "the half-open connection was never detected", silence)
        if known - silence.begin > silence.limit * course.slowdown:
            return course_violation("I14", f"undetected for {known - silence.begin:.3f} s", silence)
    return None


def check_closings(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I15: close() takes at most its limit, from any thread (C15)."""
    for closing in course.closings:
        if closing.seconds > closing.bound:
            return course_violation("I15", f"{closing.what} took {closing.seconds:.3f} s of {closing.bound} s", closing)
    return None


def check_footprint(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I16: threads, descriptors and the server's watchers are the same as before (C15)."""
    before, after = course.before, course.after
    if before is None or after is None:
        return None
    if after.threads > before.threads:
        left = sorted(set(after.names) - set(before.names))
        return course_violation("I16", f"{after.threads - before.threads} threads are left: {left}", after, before)
    if after.descriptors > before.descriptors:
        return course_violation("I16", f"{after.descriptors - before.descriptors} descriptors are left", after, before)
    if before.server_watchers is not None:
        if after.server_watchers is None:
            return course_violation("I16", "nobody counted the server's watchers afterwards", after, before)
        if after.server_watchers > before.server_watchers:
            left_there = after.server_watchers - before.server_watchers
            return course_violation("I16", f"the server still has {left_there} watchers", after, before)
    return None


def check_forks(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I17: in a forked child a handle raises or works without delay; the parent's handle still works (C15)."""
    for fork in course.forks:
        if fork.answer not in ("works", "ForkedError"):
            return course_violation("I17", f"{fork.what}: {fork.answer}", fork)
        if fork.seconds > fork.limit:
            return course_violation("I17", f"{fork.what}: answered after {fork.seconds:.3f} s", fork)
        if fork.parent:
            return course_violation("I17", f"{fork.what}: the parent was harmed: {fork.parent}", fork)
    return None
