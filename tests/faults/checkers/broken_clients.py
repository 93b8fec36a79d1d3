"""An honest client, and clients that are broken each in one way: what a checker must let pass, and what it must catch.

A client is a function from a truth to a log. The broken ones are the honest one with its log altered as that bug would.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

from datasync.events import Op, ResyncReason
from tests.faults.checkers.honest_client import Honest
from tests.faults.history import (
    Answered,
    Answering,
    Asked,
    Gone,
    Log,
    Op1,
    PutChange,
    PutResync,
    Seen,
    Truth,
)

PREFIXES = ("a/", "a/b/")


def small_truth() -> Truth:
    """Transactions, a re-create, foreign keys, and a delete that the honest client hears of in a RESYNC only."""
    truth = Truth()
    for revision, ops in (
        (2, {"a/1": b"1", "a/b/1": b"2", "other": b"3"}),
        (3, {"a/2": b"4"}),
        (5, {"a/1": b"5", "a/b/2": b"6", "other": b"7"}),
        (6, {"a/2": None}),
        (7, {"other": b"8"}),
        (8, {"a/2": b"9", "a/3": b"10", "a/b/1": None}),
        (9, {"a/3": None, "a/b/1": b"11"}),
        (11, {"a/1": b"12"}),
        (12, {"a/b/2": None, "a/b/1": b"13"}),
    ):
        truth.record(revision, [Op1(key, value) for key, value in ops.items()])
    return truth


def honest(truth: Truth) -> Log:
    """Begins at 3, is told 5 to 8, then overflows, and goes on after 9."""
    client = Honest(truth, PREFIXES)
    client.resync(ResyncReason.INITIAL, 3)
    for revision in (5, 6, 8):
        client.change(revision)
    client.resync(ResyncReason.OVERFLOW, 9)
    for revision in (11, 12):
        client.change(revision)
    return client.log


def honest_with_redeliveries(truth: Truth) -> Log:
    """Delivers again what was rejected: a key of a CHANGE, a CHANGE, a RESYNC, and keys of one.

    Event 0 is the RESYNC at 3; in 1 ``a/1`` is rejected; 2, the delete of ``a/2``, is refused, and so is 3 with both.
    4 is ``a/1``, rejected, and 5 ``a/2``. In 6 the delete of ``a/b/1`` is rejected. The RESYNC 7 is refused, and in 8
    ``a/1`` is rejected, which is 9.
    """
    client = Honest(truth, PREFIXES, name="redelivered")
    client.resync(ResyncReason.INITIAL, 3)
    client.change(5, refuse=["a/1"])
    client.change(6, refuse=True)
    client.clock += 1.5
    client.redeliver("a/1", "a/2", refuse=True)
    client.clock += 2.5
    client.redeliver("a/1", refuse=["a/1"])
    client.redeliver("a/2")
    client.change(8, refuse=["a/b/1"])
    client.resync(ResyncReason.OVERFLOW, 8, refuse=True)
    client.clock += 1.2
    client.resync(ResyncReason.FAILED, 9, refuse=["a/1"])
    client.clock += 9.0
    client.redeliver("a/1")
    for revision in (11, 12):
        client.change(revision)
    return client.log


def honest_without_a_prefix(truth: Truth) -> Log:
    """Gives up ``a/b/`` on the way."""
    client = Honest(truth, PREFIXES)
    client.resync(ResyncReason.INITIAL, 3)
    client.change(5)
    client.unregister("a/b/")
    client.unregister("a/")
    return client.log


class Bug(NamedTuple):
    """A way to be broken, and the invariant that it breaks."""

    invariant: str
    break_it: Callable[[Log], None]
    #: The client whose log is broken.
    client: Callable[[Truth], Log] = honest


def _event(log: Log, number: int) -> PutChange | PutResync:
    return next(put for put in log.puts() if put.number == number)


def _change(log: Log, number: int) -> PutChange:
    put = _event(log, number)
    assert isinstance(put, PutChange)
    return put


def _resync(log: Log, number: int) -> PutResync:
    put = _event(log, number)
    assert isinstance(put, PutResync)
    return put


def _drop(log: Log, number: int) -> None:
    log.entries = [entry for entry in log.entries if getattr(entry, "number", None) != number]


def _alter(log: Log, number: int, place: int, **fields: object) -> None:
    changes = _change(log, number).changes
    changes[place] = changes[place]._replace(**fields)  # type: ignore[arg-type]


def skips_an_event(log: Log) -> None:
    _drop(log, 2)


def skips_the_last_event(log: Log) -> None:
    _drop(log, 6)


def repeats_an_event(log: Log) -> None:
    """After a reconnect the last one comes again."""
    again = copy.deepcopy([entry for entry in log.entries if getattr(entry, "number", None) == 1])
    for entry in again:
        entry.number = 10  # type: ignore[union-attr]
    log.entries[7:7] = again


def swaps_two_events(log: Log) -> None:
    first, second = _change(log, 1), _change(log, 2)
    first.changes, second.changes = second.changes, first.changes


def goes_back_in_time(log: Log) -> None:
    """A RESYNC out of an old copy: it is the state of its revision, and that is past."""
    put, old = _resync(log, 4), _resync(log, 0)
    put.revision, put.values = old.revision, old.values


def invents_a_rewind(log: Log) -> None:
    _resync(log, 4).reason = ResyncReason.REWOUND


def shows_an_old_state(log: Log) -> None:
    _resync(log, 4).values = _resync(log, 0).values


def forgets_a_key_in_a_resync(log: Log) -> None:
    del _resync(log, 0).values["a/"]["a/1"]


def splits_a_transaction(log: Log) -> None:
    put = _change(log, 3)
    rest = PutChange(put.time + 0.05, 10, put.changes[1:])
    put.changes = put.changes[:1]
    at = log.entries.index(put) + 3
    log.entries[at:at] = [rest, Answering(rest.time, 10, False), Answered(rest.time, 10, True)]


def drops_a_delete(log: Log) -> None:
    changes = _change(log, 3).changes
    changes[:] = [change for change in changes if change.op is not Op.DELETE]


def does_not_tell_what_is_gone(log: Log) -> None:
    """The delete fell together with the overflow."""
    _resync(log, 4).removed = []


def tells_that_what_is_there_is_gone(log: Log) -> None:
    _resync(log, 4).removed.append(Gone("a/1", b"5", 5))


def merges_too_much(log: Log) -> None:
    put = _change(log, 3)
    put.changes += [Seen(f"a/b/{number}", Op.PUT, 9, b"0", None) for number in range(1000, 2000)]


def has_a_wrong_previous_value(log: Log) -> None:
    _alter(log, 1, 0, previous=b"0")


def calls_an_update_a_create(log: Log) -> None:
    _alter(log, 1, 0, previous=None)


def leaks_a_foreign_key(log: Log) -> None:
    _change(log, 1).changes.append(Seen("other", Op.PUT, 5, b"7", b"3"))


def leaks_a_foreign_key_in_a_resync(log: Log) -> None:
    _resync(log, 0).values["a/"]["other"] = b"3"


def sorts_a_key_under_a_shorter_prefix(log: Log) -> None:
    values = _resync(log, 0).values
    values["a/"]["a/b/1"] = values["a/b/"].pop("a/b/1")


def has_no_entry_for_an_empty_prefix(log: Log) -> None:
    for put in (_resync(log, 0), _resync(log, 4)):
        put.values.pop("a/b/")


def never_brings_a_new_prefix(log: Log) -> None:
    now = log.end
    log.entries += [Asked(now, "register", "nothing/", False), Asked(now, "register", "nothing/", True)]


def overlooks_a_prefix_in_one_resync(log: Log) -> None:
    _resync(log, 4).values.pop("a/b/")


def is_answered_twice(log: Log) -> None:
    """Two answers, and both are said to be the first."""
    at = next(n for n, entry in enumerate(log.entries) if isinstance(entry, Answered) and entry.number == 1)
    again = log.entries[at]
    log.entries[at + 1 : at + 1] = [Answering(again.time, 1, False), Answered(again.time, 1, True)]


def hangs_on_to_an_event(log: Log) -> None:
    """The event is on the queue of a consumer that answers everything, and is never settled."""
    log.entries = [
        entry for entry in log.entries if not (isinstance(entry, (Answering, Answered)) and entry.number == 6)
    ]


def does_not_take_an_answer(log: Log) -> None:
    for entry in log.entries:
        if isinstance(entry, Answered) and entry.number == 2:
            entry.first = False


def puts_after_close(log: Log) -> None:
    at = log.entries.index(_event(log, 6))
    now = log.entries[at].time
    log.entries[at:at] = [Asked(now, "close", "", False), Asked(now, "close", "", True)]


def refuses_for_ever(log: Log) -> None:
    """Not broken: a consumer whose every RESYNC fails, and a client that asks it less and less often."""
    _refuse(log, (0.1, 1.2, 2.4, 4.1))


def retries_at_once(log: Log) -> None:
    _refuse(log, (0.1, 0.1, 0.1, 0.1))


def retries_without_growing(log: Log) -> None:
    _refuse(log, (0.1, 1.0, 1.1, 1.2))


def does_not_wait_for_the_silent(log: Log) -> None:
    """A RESYNC was given up, and the next one follows at once."""
    put = _again(log, log.end + 1, 7, ResyncReason.OVERFLOW)
    log.entries += [put, _again(log, put.time + log.abandon + 0.1, 8, ResyncReason.UNANSWERED)]


def _refuse(log: Log, pauses: tuple[float, ...]) -> None:
    """Each RESYNC that follows in so many seconds is refused; the first one is an overflow."""
    time = log.entries[-1].time
    for number, pause in enumerate(pauses, 7):
        time += pause
        put = _again(log, time, number, ResyncReason.OVERFLOW if number == 7 else ResyncReason.FAILED)
        log.entries += [put, Answering(time, number, True), Answered(time, number, True)]
    log.end = time
    log.complete = False


def _again(log: Log, time: float, number: int, reason: ResyncReason) -> PutResync:
    """The state after all."""
    return PutResync(time, number, reason, 12, _sorted(small_truth().state), [Gone("a/b/2", b"6", 5)])


def _sorted(state: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    values: dict[str, dict[str, bytes]] = {"a/": {}, "a/b/": {}}
    for key, value in state.items():
        if key.startswith("a/"):
            values["a/b/" if key.startswith("a/b/") else "a/"][key] = value
    return values


def redelivers_what_was_accepted(log: Log) -> None:
    _answer_with(log, 1, None)


def redelivers_an_old_value(log: Log) -> None:
    """It overtakes the newer one."""
    _alter(log, 4, 0, value=b"1", revision=2)


def redelivers_at_an_old_revision(log: Log) -> None:
    _alter(log, 4, 0, revision=2)


def has_the_previous_value_of_the_source_in_a_redelivery(log: Log) -> None:
    """It was told of that value, and did not accept it."""
    _alter(log, 4, 0, previous=b"5")


def has_a_previous_value_although_a_resync_was_rejected(log: Log) -> None:
    _alter(log, 9, 0, previous=b"5")


def forgets_a_rejected_delete(log: Log) -> None:
    resync = _resync(log, 7)
    resync.removed = [gone for gone in resync.removed if gone.key != "a/b/1"]


def forgets_a_delete_that_a_failed_resync_told(log: Log) -> None:
    log.entries = log.entries[: log.entries.index(_resync(log, 8))]
    state = small_truth().epochs[0].fold(8)
    again = PutResync(log.end, 8, ResyncReason.FAILED, 8, _sorted(state), [])
    log.entries += [again, Answering(log.end, 8, False), Answered(log.end, 8, True)]


def redelivers_too_early(log: Log) -> None:
    _hurry(log, 3, 1.0)


def redelivers_without_growing(log: Log) -> None:
    _hurry(log, 9, 8.0)


def holds_a_good_key_with_a_bad_one(log: Log) -> None:
    """Both failed together, and come together again."""
    put = _change(log, 4)
    put.changes = put.changes + _change(log, 5).changes


def redelivers_too_many(log: Log) -> None:
    log.redeliveries = (0.01, 1)


def resyncs_after_a_failed_change(log: Log) -> None:
    log.entries = log.entries[: log.entries.index(_change(log, 3))]
    now = log.entries[-1].time + 2
    log.entries.append(PutResync(now, 3, ResyncReason.FAILED, 6, _sorted(small_truth().epochs[0].fold(6)), []))


def resyncs_because_of_silence_that_was_none(log: Log) -> None:
    _resync(log, 8).reason = ResyncReason.UNANSWERED


def repeats_a_failed_resync_too_early(log: Log) -> None:
    _hurry(log, 8, 1.0)


def has_a_key_in_two_events_in_flight(log: Log) -> None:
    log.entries[0].in_flight = 4  # type: ignore[union-attr]
    _ahead(log, 4)


def _answer_with(log: Log, number: int, keys: frozenset[str] | None) -> None:
    for at, entry in enumerate(log.entries):
        if isinstance(entry, Answering) and entry.number == number:
            log.entries[at] = Answering(entry.time, number, keys is not None, keys)


def _hurry(log: Log, number: int, seconds: float) -> None:
    """Everything from event *number* on comes so many seconds earlier."""
    for entry in log.entries[log.entries.index(_event(log, number)) :]:
        entry.time -= seconds


def has_two_in_flight(log: Log) -> None:
    _ahead(log, 2)


def overtakes_with_a_resync(log: Log) -> None:
    _ahead(log, 4)


def does_not_wait_for_a_resync(log: Log) -> None:
    _ahead(log, 1)


def _ahead(log: Log, number: int) -> None:
    """Put event *number* before the one in front of it was answered."""
    put = _event(log, number)
    log.entries.remove(put)
    log.entries.insert(log.entries.index(_event(log, number - 1)) + 1, put)


BUGS: Mapping[str, Bug] = {
    f"{bug.break_it.__name__}-{bug.invariant}": bug
    for bug in (
        Bug("I1", leaks_a_foreign_key),
        Bug("I1", leaks_a_foreign_key_in_a_resync),
        Bug("I1", sorts_a_key_under_a_shorter_prefix),
        Bug("I1", has_no_entry_for_an_empty_prefix),
        Bug("I1", never_brings_a_new_prefix),
        Bug("I1", overlooks_a_prefix_in_one_resync),
        Bug("I2", shows_an_old_state),
        Bug("I2", forgets_a_key_in_a_resync),
        Bug("I3", skips_an_event),
        Bug("I3", skips_the_last_event),
        Bug("I3", repeats_an_event),
        Bug("I3", swaps_two_events),
        Bug("I3", drops_a_delete),
        Bug("I4", repeats_an_event),
        Bug("I4", swaps_two_events),
        Bug("I4", goes_back_in_time),
        Bug("I4", invents_a_rewind),
        Bug("I5", splits_a_transaction),
        Bug("I5", merges_too_much),
        Bug("I6", has_a_wrong_previous_value),
        Bug("I6", calls_an_update_a_create),
        Bug("I7", does_not_tell_what_is_gone),
        Bug("I7", tells_that_what_is_there_is_gone),
        Bug("I9", is_answered_twice),
        Bug("I9", hangs_on_to_an_event),
        Bug("I9", does_not_take_an_answer),
        Bug("I9", puts_after_close),
        Bug("I10", retries_at_once),
        Bug("I10", retries_without_growing),
        Bug("I10", does_not_wait_for_the_silent),
        Bug("I3", redelivers_what_was_accepted, honest_with_redeliveries),
        Bug("I3", redelivers_an_old_value, honest_with_redeliveries),
        Bug("I4", redelivers_an_old_value, honest_with_redeliveries),
        Bug("I4", redelivers_at_an_old_revision, honest_with_redeliveries),
        Bug("I6", has_the_previous_value_of_the_source_in_a_redelivery, honest_with_redeliveries),
        Bug("I6", has_a_previous_value_although_a_resync_was_rejected, honest_with_redeliveries),
        Bug("I7", forgets_a_rejected_delete, honest_with_redeliveries),
        Bug("I7", forgets_a_delete_that_a_failed_resync_told, honest_with_redeliveries),
        Bug("I10", redelivers_too_early, honest_with_redeliveries),
        Bug("I10", redelivers_without_growing, honest_with_redeliveries),
        Bug("I10", holds_a_good_key_with_a_bad_one, honest_with_redeliveries),
        Bug("I10", redelivers_too_many, honest_with_redeliveries),
        Bug("I10", resyncs_after_a_failed_change, honest_with_redeliveries),
        Bug("I10", resyncs_because_of_silence_that_was_none, honest_with_redeliveries),
        Bug("I10", repeats_a_failed_resync_too_early, honest_with_redeliveries),
        Bug("I11", has_a_key_in_two_events_in_flight, honest_with_redeliveries),
        Bug("I11", has_two_in_flight),
        Bug("I11", overtakes_with_a_resync),
        Bug("I11", does_not_wait_for_a_resync),
    )
}
