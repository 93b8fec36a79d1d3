"""The invariants that no single log shows, each checked offline on the course: I10 and I12 to I17.

A checker returns the first violation or None. What was not measured is not blamed here and proves nothing either: how
much each invariant was put to the test is counted in ``evidence``.

Source: contract section 6, clauses C8, C10, C13 and C15.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from tests.faults.checkers.convergence import CONVERGENCE, committed
from tests.faults.checkers.reading import Reading, Violation, course_violation
from tests.faults.history import Answered, Answering, Course, PutChange, PutResync, Sample, Truth, Watched

#: Seconds within which a consumer that is ready gets a change while nothing is wrong with the source.
DELAY = 2.0
#: Bytes that a process may grow while it is under load: allocators keep what they were given for the largest backlog
#: that came over a mended line in one piece, in arenas of 1 MiB and more for each thread.
RSS_SLACK = 40 << 20
#: The share of what was written that counts as kept. One that keeps all keeps the whole and the objects around it.
RSS_SHARE = 0.1
#: The share of the samples in which caches fill and pools grow, and that is not judged.
WARM_UP = 1 / 3
#: The share of the clients that may try in the same second.
STORM_SHARE = 0.1
#: Seconds of an outage in which the clients' pauses grow from their beginning, and that are not judged. A pause drawn
#: from (0, b), where b doubles, comes to one attempt per client in t seconds when the outage is t seconds old: before
#: the tenth second no backoff that begins at 0.1 s can hold a tenth.
STORM_WARM_UP = 12.0
#: Seconds of an outage after which the server must be back for its return to be judged.
STORM_OUTAGE = 15.0

CourseChecker = Callable[[Truth, Sequence[Reading], Course], Violation | None]


def check_neighbours(
    truth: Truth, readings: Sequence[Reading], course: Course, bound: float = DELAY
) -> Violation | None:
    """I10: while one subscriber fails, those that answer at once get each change within *bound* seconds (C8, C10).

    The time runs from when the change was committed and the watcher was ready for it, whichever was later. What falls
    together with a misfortune of the source, or with the time that recovering from one may take, is not judged.
    """
    if not any(failures(reading) for reading in readings):
        return None
    bad = sorted((strike.begin, strike.end + CONVERGENCE) for strike in course.strikes)
    for reading in readings:
        if not reading.log.prompt:
            continue
        for at, entry, ready in ready_changes(reading):
            commit = committed(truth, entry)
            late = 0.0 if commit is None else entry.time - max(ready, commit)
            if commit is not None and late > bound * course.slowdown and not _overlaps(bad, commit, entry.time):
                return reading.violation("I10", at, f"a change came {late:.3f} s late, while another watcher failed")
    return None


def failures(reading: Reading) -> int:
    """How many events a watcher refused, or left unanswered until they were given up."""
    given_up = reading.log.end - reading.log.abandon
    refused = sum(not accepted for accepted in reading.accepted.values())
    return refused + sum(put.number not in reading.accepted and put.time < given_up for put in reading.log.puts())


def ready_changes(reading: Reading) -> Iterator[tuple[int, PutChange, float]]:
    """Each CHANGE with its place, and when the one before it had been answered so that it could be put."""
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
    """I12: what waits for a stuck consumer is bounded, and so is the memory of the process (C8).

    Pending changes are never more than ``MAX_PENDING`` and one transaction. For the memory: after a third of the
    samples, and after as much was written as the slack, while everything is allocated for the first time, it may grow
    by ``RSS_SLACK`` and a tenth of the bytes that were written meanwhile, beside what the harness itself keeps. Whoever
    keeps each change keeps all of these bytes, so he is found as soon as a little more than ``RSS_SLACK`` was written;
    with less nothing is proven.
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
    """The samples that are compared: the first quarter after warming up, and the last one."""
    samples = sorted(course.samples, key=lambda sample: sample.time)
    warm = [one for one in samples[int(len(samples) * WARM_UP) :] if one.written >= samples[0].written + RSS_SLACK]
    quarter = len(warm) // 4
    return warm[:quarter], warm[len(warm) - quarter :]


def _middle(samples: Sequence[Sample]) -> Sample:
    return samples[len(samples) // 2]


def _bare(sample: Sample) -> Sample:
    return sample._replace(pending={})


def check_storm(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I13: no second holds more than a tenth of the clients' attempts: they neither hammer nor come back together.

    Taken literally, of all attempts of a storm, nobody can keep this: pauses begin at 0.1 s (C13), so several attempts
    of each client fall into the first second after the connection was lost, when nobody is there to be hurt. What has
    to be kept is what a server notices. *While it is away*, from ``STORM_WARM_UP`` seconds on, the attempts of a second
    are on average at most a tenth of the number of clients. *When it is back* after ``STORM_OUTAGE`` seconds or more,
    no sliding second holds more attempts than a tenth of the number of clients.
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
    """I14: a connection that is only half there is found within the idle limit and a second (C13)."""
    for silence in course.silences:
        known = silence.noticed if silence.noticed is not None else silence.ended
        if silence.noticed is not None and silence.noticed < silence.begin:
            return course_violation("I14", "it was noticed before it began", silence)
        if known is None:
            return course_violation("I14", "nobody ever noticed that the connection was dead", silence)
        if known - silence.begin > silence.limit * course.slowdown:
            return course_violation("I14", f"unnoticed for {known - silence.begin:.3f} s", silence)
    return None


def check_closings(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I15: close takes no longer than its bound, from anywhere (C15)."""
    for closing in course.closings:
        if closing.seconds > closing.bound:
            return course_violation("I15", f"{closing.what} took {closing.seconds:.3f} s of {closing.bound} s", closing)
    return None


def check_footprint(truth: Truth, readings: Sequence[Reading], course: Course) -> Violation | None:
    """I16: threads, descriptors and the server's watchers are as before (C15)."""
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
    """I17: in a forked child a handle says so or works, soon; the parent's goes on (C15)."""
    for fork in course.forks:
        if fork.answer not in ("works", "ForkedError"):
            return course_violation("I17", f"{fork.what}: {fork.answer}", fork)
        if fork.seconds > fork.limit:
            return course_violation("I17", f"{fork.what}: answered after {fork.seconds:.3f} s", fork)
        if fork.parent:
            return course_violation("I17", f"{fork.what}: the parent was harmed: {fork.parent}", fork)
    return None
