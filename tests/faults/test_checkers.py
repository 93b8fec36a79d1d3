"""A checker that lets everything pass proves nothing: each is shown what it has to catch."""

from __future__ import annotations

import pytest

from datasync.events import ResyncReason
from tests.faults.broken import ABANDON, BUGS, Bug, honest, honest_without_a_prefix, small_truth
from tests.faults.checkers import CHECKERS, check_all
from tests.faults.history import Answered, Log, PutResync, Truth


@pytest.mark.parametrize("client", [honest, honest_without_a_prefix])
def test_an_honest_client_passes_every_checker(client: object) -> None:
    truth = small_truth()
    assert [str(found) for found in check_all(truth, client(truth))] == []  # type: ignore[operator]


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_broken_client_is_caught(bug: Bug) -> None:
    # given an honest log, broken in one way
    truth = small_truth()
    log = honest(truth)
    bug.break_it(log)
    # when its invariant is checked / then the violation is found, and shown where it is
    found = CHECKERS[bug.invariant](truth, log)
    assert found is not None
    assert found.invariant == bug.invariant
    assert "->" in found.context


def test_every_checker_has_a_broken_client() -> None:
    assert {bug.invariant for bug in BUGS.values()} == set(CHECKERS)


def test_a_log_that_was_cut_short_is_not_blamed_for_what_is_missing() -> None:
    # given a watcher that was closed on the way (C11)
    truth = small_truth()
    log = honest(truth)
    log.entries = log.entries[:-3]
    log.complete = False
    # then nothing is missed; but something is when it was to see everything
    assert check_all(truth, log) == []
    log.complete = True
    assert CHECKERS["I3"](truth, log) is not None


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
    assert CHECKERS["I4"](rewound_truth(), log) is not None
    assert CHECKERS["I3"](rewound_truth(), log) is not None


def test_a_rewind_that_is_never_told_is_caught() -> None:
    assert CHECKERS["I3"](rewound_truth(), honest(small_truth())) is not None
