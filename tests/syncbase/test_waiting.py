"""Read your writes in one registry: ``wait_for`` and ``wait_synced`` (C21)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest

from datasync.commits import Batch, MirrorPosition, WriteResult
from datasync.errors import (
    ClosedError,
    DatasyncError,
    DoneTimeout,
    ForkedError,
    InvalidArgumentError,
    NotReadyError,
    PropagationError,
    Rejected,
    StoreConnectionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.events import ResyncReason
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from tests.conftest import OWN_WORDS, PATIENT, take, wait_until
from tests.support.registries import changes, commits, is_resync, snapshot

#: Redeliveries that come soon, and some that do not come in a test.
SOON = Timeouts(failure_backoff=(0.01, 0.01))
LATE = Timeouts(failure_backoff=(PATIENT, 2 * PATIENT))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry that a reader feeds; it was read at revision 5."""
    with Registry("store", sourced=True, timeouts=LATE) as made:
        snapshot(made, 5, {"a": "1"})
        yield made
        assert not made._core.waiters.waiting, "a waiter is left behind"


@pytest.fixture
def events() -> Queue[Any]:
    return Queue()


@pytest.fixture
def registration(registry: Registry, events: Queue[Any]) -> Registration:
    """A subscription to everything that has accepted its first RESYNC."""
    made = registry.watch("w", events, events)
    take(events).done()
    return made


def in_thread(threads: ThreadPoolExecutor, registry: Registry, wait: Any, *args: Any) -> Future[None]:
    """Call *wait* in a thread, and return once it waits."""
    before = len(registry._core.waiters.waiting)
    future = threads.submit(wait, *args, PATIENT)
    wait_until(lambda: len(registry._core.waiters.waiting) > before, "it waits")
    return future


# The mirror.


def test_c21_wait_for_returns_when_the_state_has_the_revision(registry: Registry, threads: ThreadPoolExecutor) -> None:
    # given what is there already
    for write in (0, 5, WriteResult(3), WriteResult(5, False)):
        registry.wait_for(write, 0)
    # when a later write is waited for
    later = in_thread(threads, registry, registry.wait_for, WriteResult(7))
    far = in_thread(threads, registry, registry.wait_for, 9)
    commits(registry, (6, {"a": "2"}))
    assert not later.done()
    commits(registry, (7, {"a": "3"}))
    # then
    later.result(PATIENT)
    # and a bookmark is enough: nothing else was changed up to it
    registry.feed_changes(Batch(9, ()))
    far.result(PATIENT)


def test_c21_wait_for_is_a_full_state_too(registry: Registry, threads: ThreadPoolExecutor) -> None:
    waiting = in_thread(threads, registry, registry.wait_for, 8)
    snapshot(registry, 8, {"a": "1"}, "compacted")
    waiting.result(PATIENT)


def test_c21_a_wait_that_takes_too_long_names_both_revisions_and_the_last_error(registry: Registry) -> None:
    with pytest.raises(DoneTimeout, match=r"store has revision 5, not 6, after 0\.01 s$"):
        registry.wait_for(6, 0.01)
    lost = StoreConnectionError("nobody at the door")
    registry.source_lost(lost)
    with pytest.raises(DoneTimeout, match="nobody at the door") as late:
        registry.wait_for(6, 0.01)
    assert late.value.__cause__ is lost
    registry.wait_for(5, 0)


@pytest.mark.parametrize("write", [-1, True, "7", None, 7.0, object(), Future()])
def test_c16_what_has_no_revision_cannot_be_waited_for(registry: Registry, registration: Any, write: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a revision is a number from 0"):
        registry.wait_for(write)
    if write is not None:
        with pytest.raises(InvalidArgumentError, match="a revision is a number from 0"):
            registration.wait_synced(write)


@pytest.mark.parametrize("timeout", [None, float("nan"), "1", True])
def test_c16_a_timeout_is_a_number(registry: Registry, registration: Registration, timeout: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        registry.wait_for(5, timeout)
    with pytest.raises(InvalidArgumentError):
        registration.wait_synced(5, timeout)


def test_c21_a_close_ends_every_wait(
    registry: Registry, registration: Registration, threads: ThreadPoolExecutor
) -> None:
    waits = [
        in_thread(threads, registry, registry.wait_for, 6),
        in_thread(threads, registry, registration.wait_synced, 6),
    ]
    registry.close()
    for wait in waits:
        with pytest.raises(ClosedError):
            wait.result(PATIENT)
    with pytest.raises(ClosedError):
        registry.wait_for(5)


def test_c21_a_source_that_is_lost_may_come_back_and_one_that_is_closed_does_not(
    registry: Registry, registration: Registration, threads: ThreadPoolExecutor
) -> None:
    wait = in_thread(threads, registry, registry.wait_for, 6)
    registry.source_lost(StoreConnectionError("away"))
    commits(registry, (6, {"a": "2"}))
    wait.result(PATIENT)
    # when the reader ends
    waits = [
        in_thread(threads, registry, registry.wait_for, 7),
        in_thread(threads, registry, registration.wait_synced, 7),
    ]
    registry.source_lost(ClosedError("the store is closed"))
    # then nobody waits for it
    for wait in waits:
        with pytest.raises(ClosedError, match="not read any more: the store is closed"):
            wait.result(PATIENT)
    with pytest.raises(ClosedError):
        registry.wait_for(7)
    registry.wait_for(6)


def test_c21_a_source_that_goes_back_ends_the_waits_for_what_it_may_have_lost(
    registry: Registry, registration: Registration, events: Queue[Any], threads: ThreadPoolExecutor
) -> None:
    # given waits for writes of before, one of which the mirror has
    ahead = in_thread(threads, registry, registry.wait_for, WriteResult(9))
    take_none = in_thread(threads, registry, registration.wait_synced, 9)
    commits(registry, (6, {"a": "2"}))
    event = take(events)
    here = in_thread(threads, registry, registration.wait_synced, 6)
    everything = in_thread(threads, registry, registration.wait_synced, None)
    # when the source went back
    snapshot(registry, 2, {"b": "1"}, "rewound")
    # then
    for wait in (ahead, take_none, here):
        with pytest.raises(UnknownOutcome, match="went back in time to revision 2: the write of revision"):
            wait.result(PATIENT)
    # and the wait for whatever is known goes on until the RESYNC is accepted
    event.done()
    resync = take(events)
    assert resync.reason is ResyncReason.REWOUND
    assert not everything.done()
    commits(registry, (3, {"b": "2"}))  # it counts anew: this is later, whatever its number
    resync.done()
    everything.result(PATIENT)
    take(events).done()
    # and what is written now counts
    registry.wait_for(3)
    registration.wait_synced(3)


def test_c21_a_rewind_that_has_grown_beyond_is_one_too(registry: Registry, threads: ThreadPoolExecutor) -> None:
    wait = in_thread(threads, registry, registry.wait_for, 9)
    snapshot(registry, 50, {"b": "1"}, "rewound")
    with pytest.raises(UnknownOutcome):
        wait.result(PATIENT)


def test_c21_a_write_to_a_store_that_went_back_waits_for_the_listing_that_shows_it(
    registry: Registry, threads: ThreadPoolExecutor
) -> None:
    # given a write whose revision is not above the one that its writer had read before
    seen = registry.position
    assert seen == MirrorPosition(0, 5)
    writes = [WriteResult(3, seen=seen), WriteResult(5, seen=seen), WriteResult(2, False, seen)]
    waits = [in_thread(threads, registry, registry.wait_for, write) for write in writes]
    # and a delete of nothing is not above it
    registry.wait_for(WriteResult(5, False, seen), 0)
    # when the mirror goes on with what was there before / then they still wait
    commits(registry, (8, {"a": "old"}))
    assert not any(wait.done() for wait in waits)
    # until the source is listed anew, at their revisions
    snapshot(registry, 4, {"a": "new"}, "rewound")
    waits[0].result(PATIENT)
    waits[2].result(PATIENT)
    assert not waits[1].done()
    commits(registry, (5, {"a": "newer"}))
    waits[1].result(PATIENT)
    for write in writes:
        registry.wait_for(write, 0)
    # and a write of before the listing is not known to be there
    with pytest.raises(UnknownOutcome):
        registry.wait_for(WriteResult(6, seen=seen))


def test_c21_a_delete_that_found_nothing_waits_until_the_mirror_has_lost_the_key(
    registry: Registry, registration: Registration, events: Queue[Any], threads: ThreadPoolExecutor
) -> None:
    # given deletes of a key that the mirror still has, and of one that it has not
    nothing = registry.own_write("a", 9, False, registry.position)
    below = registry.own_write("", 9, False, registry.position, prefix=True)
    assert not nothing
    registry.wait_for(registry.own_write("b", 9, False, registry.position), 0)
    registry.wait_for(registry.own_write("b", 9, False, registry.position, prefix=True), 0)
    waits = [
        in_thread(threads, registry, registry.wait_for, nothing),
        in_thread(threads, registry, registry.wait_for, below),
    ]
    answered = in_thread(threads, registry, registration.wait_synced, nothing)
    commits(registry, (6, {"b": "1"}))
    take(events).done()
    assert not any(wait.done() for wait in (*waits, answered))
    # when the delete of another client arrives
    commits(registry, (7, {"a": None}))
    # then the revision need not be reached, and the subscriber has to answer
    for wait in waits:
        wait.result(PATIENT)
    assert not answered.done()
    take(events).done()
    answered.result(PATIENT)


def test_c21_a_source_without_revisions_says_so_and_its_subscribers_can_be_waited_for(
    threads: ThreadPoolExecutor, events: Queue[Any]
) -> None:
    with Registry("plain", sourced=True, has_revisions=False) as registry:
        snapshot(registry, 0, {"a": "1"})
        registration = registry.watch("w", events, events)
        with pytest.raises(UnsupportedError, match="plain has no revisions to wait for"):
            registry.wait_for(1)
        with pytest.raises(UnsupportedError, match="plain has no revisions to wait for"):
            registration.wait_synced(WriteResult(0))
        wait = in_thread(threads, registry, registration.wait_synced, None)
        take(events).done()
        wait.result(PATIENT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_c15_a_child_is_told_that_it_cannot_wait(registry: Registry, registration: Registration) -> None:
    pid = os.fork()
    if pid == 0:
        told = 0
        for wait in (registry.wait_for, registration.wait_synced):
            try:
                wait(9)
            except ForkedError:
                told += 1
        os._exit(0 if told == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_c15_what_interrupts_the_registry_cannot_wait(registry: Registry, registration: Registration) -> None:
    with registry._lock:  # as a finalizer that the collector runs there
        for wait in (registry.wait_for, registration.wait_synced):
            with pytest.raises(DatasyncError, match="cannot be called by this finalizer"):
                wait(9)


# The subscriber.


def test_c21_wait_synced_waits_for_the_answer_and_not_for_later_changes(
    registry: Registry, registration: Registration, events: Queue[Any], threads: ThreadPoolExecutor
) -> None:
    registration.wait_synced(5, 0)
    registration.wait_synced(timeout=0)
    # given two changes that wait for their answers
    commits(registry, (6, {"a": "2"}))
    first = take(events)
    commits(registry, (7, {"b": "1"}), (8, {"b": "2"}))
    waits = {revision: in_thread(threads, registry, registration.wait_synced, revision) for revision in (6, 7, None, 9)}
    with pytest.raises(DoneTimeout, match="store: 'w' has not answered everything up to revision 6 after 0 s") as late:
        registration.wait_synced(6, 0)
    assert late.value.silent == ("w",)
    # when the first is answered / then what is later does not matter
    first.done()
    waits[6].result(PATIENT)
    assert not waits[7].done()
    second = take(events)  # C5 allows one event for a key only
    second.done()
    waits[7].result(PATIENT)
    assert not waits[None].done()
    take(events).done()
    waits[None].result(PATIENT)
    # and what the mirror has not is waited for too
    assert not waits[9].done()
    commits(registry, (9, {"elsewhere": "1"}))
    take(events).done()
    waits[9].result(PATIENT)


def test_c21_events_may_be_answered_in_any_order(registry: Registry, threads: ThreadPoolExecutor) -> None:
    # given two changes at once
    events: Queue[Any] = Queue()
    registration = registry.watch("two", events, events, in_flight=2)
    take(events).done()
    commits(registry, (6, {"a": "2"}))
    commits(registry, (7, {"b": "2"}))
    first, second = take(events), take(events)
    waits = [in_thread(threads, registry, registration.wait_synced, revision) for revision in (6, 7)]
    # when the later one is answered first
    second.done()
    assert not any(wait.done() for wait in waits)
    first.done()
    for wait in waits:
        wait.result(PATIENT)


def test_c21_the_first_resync_is_waited_for_and_a_source_that_was_never_read_says_so(
    threads: ThreadPoolExecutor, events: Queue[Any]
) -> None:
    with Registry("store", sourced=True) as registry:
        registration = registry.watch("w", events, events)
        registry.source_lost(StoreConnectionError("nobody at the door"))
        with pytest.raises(NotReadyError, match="nobody at the door"):
            registration.wait_synced(timeout=0.01)
        wait = in_thread(threads, registry, registration.wait_synced, None)
        snapshot(registry, 1, {})
        resync = take(events)
        assert not wait.done()
        resync.done()
        wait.result(PATIENT)


def test_c21_a_resync_that_is_held_is_waited_for(registry: Registry, threads: ThreadPoolExecutor) -> None:
    events: Queue[Any] = Queue()
    registration = registry.watch("held", events, events, wait_for_resync=True)
    wait = in_thread(threads, registry, registration.wait_synced, 5)
    registry.request_resync("held")
    take(events).done()
    wait.result(PATIENT)


def test_c21_c10_a_key_that_is_owed_is_told_when_everything_is_answered(
    registry: Registry, registration: Registration, events: Queue[Any], threads: ThreadPoolExecutor
) -> None:
    # given a rejected key, and another change that waits
    commits(registry, (6, {"a": "2", "b": "1"}))
    take(events).done(Rejected({"b": ValueError("no such disk")}))
    commits(registry, (7, {"c": "1"}))
    event = take(events)
    wait = in_thread(threads, registry, registration.wait_synced, 7)
    # when that is accepted
    event.done()
    # then the key is named, also to those who come later
    with pytest.raises(PropagationError) as told:
        wait.result(PATIENT)
    assert told.value.reasons == {"w": {"b": "ValueError"}}
    with pytest.raises(PropagationError, match="w: Rejected: 1 key rejected: 'b': ValueError"):
        registration.wait_synced()
    # and no more, when it is accepted or gone
    commits(registry, (8, {"b": None}))
    take(events).done()
    registration.wait_synced(timeout=0)


def test_c21_c10_a_redelivery_is_waited_for(threads: ThreadPoolExecutor, events: Queue[Any]) -> None:
    with Registry("store", sourced=True, timeouts=SOON) as registry:
        snapshot(registry, 1, {})
        registration = registry.watch("w", events, events)
        take(events).done()
        commits(registry, (2, {"a": "1"}))
        take(events).done(ValueError())
        again = take(events)
        assert again.redelivery
        wait = in_thread(threads, registry, registration.wait_synced, 2)
        again.done()
        wait.result(PATIENT)


def test_c21_c10_a_resync_that_failed_is_told_until_it_is_put_again(
    registry: Registry, registration: Registration, events: Queue[Any], threads: ThreadPoolExecutor
) -> None:
    registry.request_resync("w")
    event = take(events)
    wait = in_thread(threads, registry, registration.wait_synced, None)
    event.done(ValueError("no"))
    with pytest.raises(PropagationError, match="ValueError: no"):
        wait.result(PATIENT)
    with pytest.raises(PropagationError, match="ValueError: no"):
        registration.wait_synced(3)
    # when it is asked for
    registry.request_resync("w")
    wait = in_thread(threads, registry, registration.wait_synced, None)
    event = take(events)
    assert is_resync(event)
    event.done()
    wait.result(PATIENT)


def test_c21_an_event_that_was_given_up_counts_as_owed(threads: ThreadPoolExecutor, events: Queue[Any]) -> None:
    timeouts = Timeouts(abandon=0.05, remind=0.05, failure_backoff=LATE.failure_backoff)
    with Registry("store", sourced=True, timeouts=timeouts) as registry:
        snapshot(registry, 1, {})
        registration = registry.watch("w", events, events)
        take(events).done()
        wait = in_thread(threads, registry, registration.wait_synced, 2)
        commits(registry, (2, {"a": "1"}))
        with pytest.raises(PropagationError, match="'a': DoneTimeout"):
            wait.result(PATIENT)
        # and its late answer is an answer
        take(events).done()
        registration.wait_synced(2, 0)


def test_c21_a_caller_of_a_local_registry_waits_in_the_same_way(
    threads: ThreadPoolExecutor, events: Queue[Any]
) -> None:
    with Registry("local") as registry:
        registration = registry.watch("w", events, events)
        registration.wait_synced(timeout=0)  # there is nothing to send
        future = registry.submit_changes(changes({"a": "1"}))
        wait = in_thread(threads, registry, registration.wait_synced, None)
        take(events).done()
        wait.result(PATIENT)
        outcome = future.result(PATIENT)
        registry.wait_for(outcome, 0)
        registration.wait_synced(outcome, 0)
        # and a change that was rejected is marked, although its caller knows
        future = registry.submit_changes(changes({"a": "2"}))
        take(events).done(ValueError("no"))
        assert isinstance(future.exception(PATIENT), PropagationError)
        with pytest.raises(PropagationError, match="'a': ValueError"):
            registration.wait_synced()


def test_c11_c21_what_is_unregistered_is_not_waited_for_and_a_close_says_so(
    registry: Registry, events: Queue[Any], threads: ThreadPoolExecutor
) -> None:
    registration = registry.watch("w", events, events, "a", "b")
    take(events).done()
    commits(registry, (6, {"a": "2"}))
    event = take(events)
    commits(registry, (7, {"b": "1"}))
    wait = in_thread(threads, registry, registration.wait_synced, 7)
    event.done()
    other = take(events)
    commits(registry, (8, {"b": "2"}))
    last = in_thread(threads, registry, registration.wait_synced, 8)
    registration.unregister("b")  # with a change that waits
    other.done()
    wait.result(PATIENT)
    last.result(PATIENT)
    # when it is closed
    commits(registry, (9, {"a": "3"}))
    wait = in_thread(threads, registry, registration.wait_synced, 9)
    registration.close()
    with pytest.raises(ClosedError, match="'w' is closed"):
        wait.result(PATIENT)
    with pytest.raises(ClosedError, match="'w' is closed"):
        registration.wait_synced(5)


def test_c11_c21_unregister_alone_ends_a_wait(registry: Registry, threads: ThreadPoolExecutor) -> None:
    # given a full queue, behind which a change waits
    queue: Queue[Any] = Queue(1)
    registration = registry.watch("w", queue, Queue(), "a", "b")
    wait_until(lambda: registration._subscription.resync_queue.qsize(), "the RESYNC is put")
    assert registration._subscription.resync_queue is not None
    registration._subscription.resync_queue.get().done()
    queue.put(None)
    commits(registry, (6, {"b": "2"}))
    wait = in_thread(threads, registry, registration.wait_synced, 6)
    registration.unregister("b")
    wait.result(PATIENT)


def test_c21_a_queue_of_none_answers_by_itself(registry: Registry, threads: ThreadPoolExecutor) -> None:
    resyncs: Queue[Any] = Queue()
    registration = registry.watch("w", None, resyncs)
    take(resyncs).done()
    wait = in_thread(threads, registry, registration.wait_synced, 6)
    commits(registry, (6, {"a": "2"}))
    wait.result(PATIENT)


def test_c21_the_names_of_values_stay_out(registry: Registry, registration: Registration, events: Queue[Any]) -> None:
    commits(registry, (6, {"a": "2"}))
    take(events).done(ValueError(OWN_WORDS))
    with pytest.raises(PropagationError) as told:
        registration.wait_synced()
    assert OWN_WORDS not in str(told.value)
