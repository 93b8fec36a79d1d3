"""A checker that lets everything pass proves nothing: each is shown what it has to catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from datasync.events import Op, ResyncReason
from tests.faults.checkers.broken_clients import (
    BUGS,
    Bug,
    honest,
    honest_with_redeliveries,
    honest_without_a_prefix,
    refuses_for_ever,
    small_truth,
)
from tests.faults.checkers.broken_courses import FLAWS, Flaw, Scene, good_scene
from tests.faults.checkers.honest_client import ABANDON
from tests.faults.checkers.judge import CHECKERS, COURSE_CHECKERS, check_all, judge
from tests.faults.checkers.reading import Reading, Violation
from tests.faults.checkers.source_record import check_record
from tests.faults.checkers.speed import long_log, long_truth
from tests.faults.history import (
    Answered,
    Answering,
    Asked,
    Course,
    Entry,
    Log,
    Op1,
    PutChange,
    PutResync,
    Seen,
    Strike,
    Truth,
    TruthCommit,
    Watched,
)


def check(invariant: str, truth: Truth, log: Log) -> Violation | None:
    return CHECKERS[invariant](truth, Reading(log))


@pytest.mark.parametrize("client", [honest, honest_with_redeliveries, honest_without_a_prefix])
def test_an_honest_client_passes_every_checker(client: object) -> None:
    truth = small_truth()
    assert [str(found) for found in check_all(truth, client(truth))] == []  # type: ignore[operator]


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_broken_client_is_caught(bug: Bug) -> None:
    # given an honest log, broken in one way
    truth = small_truth()
    log = bug.client(truth)
    bug.break_it(log)
    # when its invariant is checked / then the violation is found, and shown where it is
    found = check(bug.invariant, truth, log)
    assert found is not None
    assert found.invariant == bug.invariant
    assert "->" in found.context


def test_every_checker_has_a_broken_client() -> None:
    assert {bug.invariant for bug in BUGS.values()} == set(CHECKERS)
    assert {flaw.invariant for flaw in FLAWS.values()} == set(COURSE_CHECKERS)


def test_a_consumer_that_always_refuses_is_no_fault_of_a_client_that_asks_it_ever_less_often() -> None:
    truth = small_truth()
    log = honest(truth)
    refuses_for_ever(log)
    assert [str(found) for found in check_all(truth, log)] == []


def test_a_course_without_fault_passes_and_proves_something_of_every_invariant() -> None:
    scene = good_scene()
    judgement = judge(scene.truth, scene.logs, scene.course, failing=True)
    assert [str(found) for found in judgement.violations] == []
    assert judgement.lacks == []
    assert judgement.good
    # I5 needs transactions of several keys, I7 something that is gone: neither is in this scene
    assert {name for name in (*CHECKERS, *COURSE_CHECKERS) if not judgement.evidence[name]} == {"I5", "I7"}


@pytest.mark.parametrize("flaw", FLAWS.values(), ids=FLAWS)
def test_a_course_with_a_flaw_is_caught(flaw: Flaw) -> None:
    # given a course without fault, in which one thing is wrong
    scene = good_scene()
    flaw.break_it(scene)
    # when its invariant is checked / then that is found
    readings = [Reading(log) for log in scene.logs]
    found = COURSE_CHECKERS[flaw.invariant](scene.truth, readings, scene.course)
    assert found is not None
    assert found.invariant == flaw.invariant


def test_a_long_log_is_judged_in_a_time_that_grows_no_faster_than_the_log() -> None:
    """No time is asserted: one that grew with the square of it would not end within the limit of a test."""
    truth = long_truth(20_000, 3)
    log = long_log(truth, ("a/", "b/1"))
    assert check_all(truth, log) == []


def test_a_log_that_was_cut_short_is_not_blamed_for_what_is_missing() -> None:
    # given a watcher that was closed on the way (C11)
    truth = small_truth()
    log = honest(truth)
    log.entries = log.entries[:-3]
    log.complete = False
    # then nothing is missed; but something is when it was to see everything
    assert check_all(truth, log) == []
    log.complete = True
    assert check("I3", truth, log) is not None


# The record, and what proves nothing.


def account(truth: Truth) -> list[TruthCommit]:
    return list(truth.epochs[-1].commits)


@pytest.mark.parametrize("compacted", [0, 3, 9])
def test_a_record_is_right_as_far_back_as_the_source_still_knows(compacted: int) -> None:
    truth = small_truth()
    told = account(truth)[compacted:] or None
    assert check_record(truth, told) is None


def test_a_record_is_compared_with_the_last_life_only() -> None:
    truth = rewound_truth()
    assert check_record(truth, account(truth)) is None
    assert check_record(truth, account(small_truth())) is not None


def without(told: list[TruthCommit]) -> None:
    """The harness believes that something was applied, and it was not."""
    del told[4]


def without_the_last(told: list[TruthCommit]) -> None:
    del told[-1]


def with_another(told: list[TruthCommit]) -> None:
    """Somebody else wrote."""
    told.insert(4, TruthCommit(told[3].revision + 1, (Op1("a/9", b"9"),)))


def with_one_more(told: list[TruthCommit]) -> None:
    told.append(TruthCommit(told[-1].revision + 1, (Op1("a/9", b"9"),)))


def with_another_value(told: list[TruthCommit]) -> None:
    told[1] = TruthCommit(told[1].revision, (Op1("a/2", b"another"),))


def with_another_revision(told: list[TruthCommit]) -> None:
    told[4] = told[4]._replace(revision=told[4].revision + 1)


def with_half_a_transaction(told: list[TruthCommit]) -> None:
    told[0] = told[0]._replace(ops=told[0].ops[:1])


@pytest.mark.parametrize(
    "differs",
    [
        without,
        without_the_last,
        with_another,
        with_one_more,
        with_another_value,
        with_another_revision,
        with_half_a_transaction,
    ],
)
def test_a_record_that_the_source_does_not_confirm_is_caught(differs: Callable[[list[TruthCommit]], None]) -> None:
    # given a source that says something else
    truth = small_truth()
    told = account(truth)
    differs(told)
    # then the record proves nothing
    found = judge(truth, [honest(truth)], Course(healed=0.0, converged=0.0), told, convergence=60.0, calm=True)
    assert [violation.invariant for violation in found.violations] == ["I0"]


def nobody_watches(scene: Scene) -> None:
    scene.calm.entries = scene.calm.entries[:1]
    scene.failing.entries = scene.failing.entries[:1]


def nobody_is_told_of_a_change(scene: Scene) -> None:
    for log in scene.logs:
        log.entries = [entry for entry in log.entries if getattr(entry, "number", 0) == 0]


def nobody_is_left(scene: Scene) -> None:
    for log in scene.logs:
        log.entries += [Asked(log.end, "close", "", False), Asked(log.end, "close", "", True)]


def nobody_wants_any_of_it(scene: Scene) -> None:
    for log in scene.logs:
        log.entries = log.entries[:1]
        log.entries[0].prefixes = ("nothing/",)  # type: ignore[union-attr]


def nothing_struck(scene: Scene) -> None:
    scene.course.strikes = []


def nothing_was_written_after_it(scene: Scene) -> None:
    scene.course.strikes = [Strike("reset", 1e6, 1e6)]


def nobody_failed(scene: Scene) -> None:
    scene.failing.entries = scene.calm.entries


def nothing_healed(scene: Scene) -> None:
    scene.course.healed = None


@pytest.mark.parametrize(
    "empties",
    [
        nobody_watches,
        nobody_is_told_of_a_change,
        nobody_is_left,
        nobody_wants_any_of_it,
        nothing_struck,
        nothing_was_written_after_it,
        nobody_failed,
        nothing_healed,
    ],
)
def test_a_cell_in_which_nothing_could_go_wrong_is_not_good(empties: Callable[[Scene], None]) -> None:
    # given a scene in which something is missing
    scene = good_scene()
    empties(scene)
    # then it is not good, whatever the checkers say
    judgement = judge(scene.truth, scene.logs, scene.course, failing=True)
    assert judgement.lacks
    assert not judgement.good


def test_a_cell_is_not_blamed_for_what_it_is_not_about() -> None:
    # given that nothing was to be written, nothing to strike, and nobody to fail
    scene = good_scene()
    nobody_is_told_of_a_change(scene)
    nothing_struck(scene)
    nobody_failed(scene)
    assert judge(scene.truth, scene.logs, scene.course, calm=True, idle=True).lacks == []


def test_nothing_that_was_measured_is_evidence_of_nothing() -> None:
    judgement = judge(Truth(), [], Course())
    assert judgement.violations == []
    assert not judgement.good
    assert not +judgement.evidence


def rewound_truth() -> Truth:
    truth = small_truth()
    truth.rewind(8)
    truth.record(9, [])
    return truth


def told_of_a_rewind(reason: ResyncReason) -> Log:
    """The honest client of the first life, told of the second one by a RESYNC at 9."""
    log = honest(small_truth())
    last = log.entries[-1]
    assert isinstance(last, Answered)
    truth = rewound_truth()
    state = truth.epochs[-1].fold(9)
    values = {
        "a/": {key: value for key, value in state.items() if key.startswith("a/") and not key.startswith("a/b/")},
        "a/b/": {key: value for key, value in state.items() if key.startswith("a/b/")},
    }
    gone = [put for put in log.puts() if isinstance(put, PutResync)][-1]
    removed = [pair for pair in gone.removed if pair.key not in state]
    offered = {"a/1", "a/2", "a/b/1"} - state.keys()
    for put in log.puts():
        for change in getattr(put, "changes", []):
            if change.key in offered and change.value is not None:
                removed = [pair for pair in removed if pair.key != change.key]
                removed.append(type(gone.removed[0])(change.key, change.value, change.revision))
    log.entries.append(PutResync(last.time + 1, 7, reason, 9, values, removed))
    log.end = last.time + 1 + ABANDON
    return log


def test_a_rewind_that_is_told_is_no_violation() -> None:
    assert [str(found) for found in check_all(rewound_truth(), told_of_a_rewind(ResyncReason.REWOUND))] == []


def test_a_rewind_that_is_called_something_else_is_caught() -> None:
    # C13: whoever goes back says so
    log = told_of_a_rewind(ResyncReason.PREFIX)
    assert check("I4", rewound_truth(), log) is not None
    assert check("I3", rewound_truth(), log) is not None


def test_a_rewind_that_is_never_told_is_caught() -> None:
    assert check("I3", rewound_truth(), honest(small_truth())) is not None


def test_what_a_resync_brought_before_its_register_returned_is_delivered_from_then_on() -> None:
    # given a RESYNC that came while the prefix was still being registered
    truth = Truth()
    truth.record(2, [Op1("a", b"1"), Op1("b", b"1")])
    truth.record(3, [Op1("a", b"2"), Op1("b", b"2")])
    log = Log("late", ABANDON)
    pair = {"a": {"a": b"1"}, "b": {"b": b"1"}}
    log.entries = [
        Watched(0.0, ("b",), 1),
        Asked(0.1, "register", "a", False),
        PutResync(0.2, 0, ResyncReason.INITIAL, 2, pair, []),
        Asked(0.3, "register", "a", True),
        Answering(0.4, 0, False),
        Answered(0.4, 0, True),
        # when the other one is being unregistered / then a CHANGE of the new one alone is right
        Asked(0.5, "unregister", "b", False),
        PutChange(0.6, 1, [Seen("a", Op.PUT, 3, b"2", b"1")]),
        Asked(0.7, "unregister", "b", True),
        Answering(0.8, 1, False),
        Answered(0.8, 1, True),
    ]
    log.end = 1.0
    assert check_all(truth, log) == []
    # and one of neither is not
    log.entries[7] = PutChange(0.6, 1, [Seen("b", Op.PUT, 3, b"2", b"1")])
    assert check("I3", truth, log) is not None


#: A subscriber is told of an empty state, and then of one put.
PUT_ONCE: list[Entry] = [
    Watched(0.0, ("",), 1),
    PutResync(0.1, 0, ResyncReason.INITIAL, 1, {"": {}}, []),
    Answering(0.1, 0, False),
    Answered(0.1, 0, True),
    PutChange(0.2, 1, [Seen("a", Op.PUT, 2, b"1", None)]),
]


@pytest.mark.parametrize("put_at", [2.0, 2.15])  # it is made before the answer, and put before or after it
def test_a_late_answer_while_the_redelivery_is_on_its_way_brings_the_key_once_more(put_at: float) -> None:
    # given an event that was given up, whose late answer is noted before the redelivery that was made first
    truth = Truth()
    truth.record(1, [])
    truth.record(2, [Op1("a", b"1")])
    log = Log("late", ABANDON)
    given_up = 0.2 + ABANDON
    again = PutChange(given_up + put_at, 2, [Seen("a", Op.PUT, 2, b"1", None)], redelivery=True)
    once_more = PutChange(given_up + 5.0, 3, [Seen("a", Op.PUT, 2, b"1", b"1")], redelivery=True)
    log.entries = [
        *PUT_ONCE,
        Answering(given_up + 2.1, 1, False),
        Answered(given_up + 2.1, 1, False),
        again,
        Answering(given_up + 2.2, 2, False),
        Answered(given_up + 2.2, 2, True),
        # when it comes once more, because the old event may have been handled last / then that is right
        once_more,
        Answering(given_up + 5.1, 3, False),
        Answered(given_up + 5.1, 3, True),
    ]
    log.end = given_up + 6.0
    assert check_all(truth, log) == []
    # and once is enough
    log.entries += [replace(once_more, time=given_up + 8.0, number=4), Answering(given_up + 8.1, 4, False)]
    log.entries += [Answered(given_up + 8.1, 4, True)]
    log.end = given_up + 9.0
    assert check("I3", truth, log) is not None


def test_a_late_answer_to_an_older_event_brings_the_key_once_more_also_after_a_redelivery_on_its_way() -> None:
    # given two events of a key that were given up, and a late answer to the older one
    truth = Truth()
    truth.record(1, [])
    truth.record(2, [Op1("a", b"1")])
    log = Log("late", ABANDON)
    second = 0.2 + ABANDON + 2.0
    late = second + ABANDON + 2.0
    log.entries = [
        *PUT_ONCE,
        PutChange(second, 2, [Seen("a", Op.PUT, 2, b"1", None)], redelivery=True),
        Answering(late, 1, False),
        Answered(late, 1, False),
        # when the next redelivery, made before that answer, is put after it, and comes once more when accepted
        PutChange(late + 0.1, 3, [Seen("a", Op.PUT, 2, b"1", None)], redelivery=True),
        Answering(late + 0.2, 3, False),
        Answered(late + 0.2, 3, True),
        PutChange(late + 5.0, 4, [Seen("a", Op.PUT, 2, b"1", b"1")], redelivery=True),
        Answering(late + 5.1, 4, False),
        Answered(late + 5.1, 4, True),
    ]
    log.end = late + 6.0
    # then that is right
    assert check_all(truth, log) == []
    # and once is enough
    again = PutChange(late + 9.0, 5, [Seen("a", Op.PUT, 2, b"1", b"1")], redelivery=True)
    log.entries += [again, Answering(late + 9.1, 5, False), Answered(late + 9.1, 5, True)]
    log.end = late + 10.0
    assert check("I3", truth, log) is not None
