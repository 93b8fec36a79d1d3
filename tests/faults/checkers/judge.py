"""All checkers by invariant; the runner calls ``judge`` at the end of a cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.checkers.answers import check_answers, check_in_flight, check_retries
from tests.faults.checkers.convergence import (
    CONVERGENCE,
    Recovery,
    check_convergence,
    check_end,
    check_recoveries,
    recoveries,
)
from tests.faults.checkers.course import (
    CourseChecker,
    check_closings,
    check_footprint,
    check_forks,
    check_memory,
    check_neighbours,
    check_silences,
    check_storm,
)
from tests.faults.checkers.events import (
    check_prefixes,
    check_previous,
    check_removed,
    check_revisions,
    check_snapshots,
    check_transactions,
)
from tests.faults.checkers.evidence import evidence, lacks
from tests.faults.checkers.reading import Reading, Violation, longest
from tests.faults.checkers.sequence import check_changes
from tests.faults.checkers.source_record import check_record
from tests.faults.history import Course, Log, Truth, TruthCommit

__all__ = [
    # what was found
    "Judgement",
    "Violation",
    # what finds it
    "CHECKERS",
    "COURSE_CHECKERS",
    "Checker",
    "CourseChecker",
    "check_all",
    "judge",
    # for consumers that keep a view
    "longest",
]

Checker = Callable[[Truth, Reading], Violation | None]

#: Checkers of a single log.
CHECKERS: Mapping[str, Checker] = {
    "I1": check_prefixes,
    "I2": check_snapshots,
    "I3": check_changes,
    "I4": check_revisions,
    "I5": check_transactions,
    "I6": check_previous,
    "I7": check_removed,
    "I9": check_answers,
    "I10": check_retries,
    "I11": check_in_flight,
}

#: What all logs together and the measurements show. I10 has two halves: the failing one, above, and the others.
COURSE_CHECKERS: Mapping[str, CourseChecker] = {
    "I8": check_convergence,
    "I10": check_neighbours,
    "I12": check_memory,
    "I13": check_storm,
    "I14": check_silences,
    "I15": check_closings,
    "I16": check_footprint,
    "I17": check_forks,
}


@dataclass
class Judgement:
    """What the checkers came to."""

    violations: list[Violation]
    #: By invariant how often it could have been violated.
    evidence: Counter[str]
    #: Reasons why the cell could not have failed: it is not good then.
    lacks: list[str]
    #: Recoveries that ended before the next misfortune began.
    recovered: list[Recovery]

    @property
    def good(self) -> bool:
        """True when nothing was violated and something could have been."""
        return not self.violations and not self.lacks


def judge(
    truth: Truth,
    logs: Sequence[Log],
    course: Course,
    told: Sequence[TruthCommit] | None = None,
    *,
    convergence: float = CONVERGENCE,
    calm: bool = False,
    idle: bool = False,
    failing: bool = False,
) -> Judgement:
    """Check the record, each log and the course of a cell, and whether they prove anything.

    Args:
      told: The history that the source reports (``Source.history``).
      convergence: Seconds for I8.
      calm: No misfortune was planned.
      idle: No writes were planned.
      failing: A consumer rejects events or does not acknowledge them.
    """
    readings = [Reading(log, course.requests) for log in logs]
    recovered = recoveries(truth, readings, course)
    found = [
        check_record(truth, told),
        check_end(truth, readings, course, convergence),
        check_recoveries(recovered, convergence),
    ]
    found += [checker(truth, reading) for reading in readings for checker in CHECKERS.values()]
    found += [checker(truth, readings, course) for name, checker in COURSE_CHECKERS.items() if name != "I8"]
    violations = [violation for violation in found if violation is not None]
    proofs = evidence(truth, readings, course, told)
    undisturbed = [recovery for recovery in recovered if recovery.undisturbed]
    proofs["I8"] += len(undisturbed)
    lacking = lacks(truth, readings, course, calm=calm, idle=idle, failing=failing)
    return Judgement(violations, proofs, lacking, undisturbed)


def check_all(truth: Truth, log: Log) -> list[Violation]:
    """The violations that the checkers of a log find in *log*."""
    reading = Reading(log)
    return [found for checker in CHECKERS.values() if (found := checker(truth, reading)) is not None]
