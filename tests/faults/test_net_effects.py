"""The checkers where a source has no history: several transactions may come as one change, and no less than that."""

from __future__ import annotations

import pytest

from datasync.events import Op, ResyncReason
from tests.faults.checkers.judge import check_all
from tests.faults.history import Answered, Answering, Log, Op1, PutChange, PutResync, Seen, Truth, Watched


def put(key: str, revision: int, value: bytes, previous: bytes | None = None) -> Seen:
    return Seen(key, Op.PUT, revision, value, previous)


def gone(key: str, revision: int, previous: bytes | None) -> Seen:
    return Seen(key, Op.DELETE, revision, None, previous)


#: What an honest client of the truth below may be told in one event.
HONEST = [gone("b", 8, b"1"), put("a", 8, b"3", b"1"), put("d", 8, b"1")]


@pytest.fixture
def truth() -> Truth:
    truth = Truth()
    truth.net_effects = True
    for revision, ops in (
        (1, [Op1("a", b"1"), Op1("b", b"1")]),
        (3, [Op1("a", b"2"), Op1("c", b"1")]),
        (5, [Op1("b", None), Op1("c", None)]),
        (8, [Op1("a", b"3"), Op1("d", b"1")]),
    ):
        truth.record(revision, ops)
    return truth


def seen(*changes: Seen) -> Log:
    """A log that begins with the state at revision 1, and goes on with *changes* in one event."""
    log = Log("watcher", 60.0)
    log.entries += [
        Watched(0.0, ("",), 1),
        PutResync(0.1, 1, ResyncReason.INITIAL, 1, {"": {"a": b"1", "b": b"1"}}, []),
        Answering(0.2, 1, False),
        Answered(0.2, 1, True),
        PutChange(0.3, 2, list(changes)),
        Answering(0.4, 2, False),
        Answered(0.4, 2, True),
    ]
    log.end = 0.5
    return log


def broken(truth: Truth, log: Log) -> set[str]:
    return {violation.invariant for violation in check_all(truth, log)}


def test_the_net_effect_of_several_transactions_is_right(truth: Truth) -> None:
    assert broken(truth, seen(*HONEST)) == set()
    # and where there is a history it is not
    truth.net_effects = False
    assert "I3" in broken(truth, seen(*HONEST))


@pytest.mark.parametrize(
    ("changes", "invariant"),
    [
        ([*HONEST[1:]], "I3"),  # drops a delete
        ([HONEST[0], HONEST[1]], "I3"),  # skips a key
        ([HONEST[0], put("a", 8, b"2", b"1"), HONEST[2]], "I3"),  # tells an older value
        ([*HONEST, gone("c", 8, b"1")], "I3"),  # deletes what was never told
        ([HONEST[0], put("a", 8, b"3", b"2"), HONEST[2]], "I6"),  # a previous value that was never told
        ([gone("b", 8, None), *HONEST[1:]], "I6"),
        ([gone("b", 5, b"1"), put("a", 5, b"2", b"1")], "I3"),  # stops before the end
        ([gone("b", 0, b"1")], "I4"),  # goes back
    ],
)
def test_a_client_that_is_broken_is_found(truth: Truth, changes: list[Seen], invariant: str) -> None:
    assert invariant in broken(truth, seen(*changes))


def test_after_a_wipe_the_difference_to_the_new_state_is_right_and_less_is_not(truth: Truth) -> None:
    # given a store that lost everything, and was written to beyond the revision that was told last
    truth.rewind(0)
    truth.record(2, [Op1("x", b"1")])
    truth.record(9, [Op1("a", b"9")])
    right = [gone("b", 9, b"1"), put("a", 9, b"9", b"1"), put("x", 9, b"1")]
    assert broken(truth, seen(*right)) == set()
    assert "I3" in broken(truth, seen(*right[1:]))
    # nor is silence, unless the new state is the one that was told
    silent = seen()
    del silent.entries[-3:]
    assert broken(truth, silent) == {"I3"}
    truth.rewind(0)
    truth.record(7, [Op1("a", b"1"), Op1("b", b"1")])
    assert broken(truth, silent) == set()
