"""Events that are rejected, or not answered (C10): what is owed, when it comes again, and whom it does not hold up."""

from __future__ import annotations

from queue import Queue
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError, Permanent, PropagationError, Rejected, RetryAfter
from datasync.events import ResyncReason
from datasync.runtime.timeouts import ABANDON_TIMEOUT, FAILURE_BACKOFF, Timeouts
from datasync.syncbase import rejected
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import OwedStatus, SubscriptionState
from tests.conftest import take, wait_until
from tests.support.clock import ManualClock
from tests.support.registries import changes, commits, is_resync, removed, snapshot, state, told

#: The first pause, at its longest.
PAUSE = 1.5
NO = ValueError("no")


def ready(registry: Registry, queue: Queue[Any], values: dict[str, str] | None = None, **more: Any) -> Registration:
    """A subscription that has accepted its first RESYNC."""
    registration = registry.watch("agent", queue, queue, "", **more)
    snapshot(registry, 1, values or {})
    take(queue).done()
    return registration


def status(registry: Registry) -> Any:
    return registry.status().subscriptions["agent"]


def give_up(registry: Registry, clock: ManualClock) -> None:
    """Let the event in flight be given up."""
    failed = status(registry).failed
    clock.advance(ABANDON_TIMEOUT)
    wait_until(lambda: status(registry).failed > failed, "the event is given up")


def again(queue: Queue[Any], clock: ManualClock, seconds: float = PAUSE) -> Any:
    """The next event, after *seconds*, which is a redelivery."""
    clock.advance(seconds)
    event = take(queue)
    assert event.redelivery, f"{event!r} is no redelivery"
    return event


# -- which keys are owed


def test_c10_a_bad_key_holds_up_no_other(mirror: Registry, clock: ManualClock) -> None:
    # given a subscriber that can only say done() or done(error), and one key that is never good
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"x": "bad"}))
    take(queue).done(NO)
    # when a change of another key comes / then it comes at once, and alone
    commits(mirror, (3, {"a": "1"}))
    event = queue.get_nowait()
    assert (told(event), event.redelivery) == ([("a", "1", None)], False)
    event.done()
    # and the bad one comes again by itself, with no RESYNC
    assert told(again(queue, clock)) == [("x", "bad", None)]
    assert status(mirror).resyncs == {ResyncReason.INITIAL: 1}
    # and so do those that share a transaction with it, once
    commits(mirror, (4, {"b": "1", "x": "worse"}))


def test_c10_rejected_names_the_keys_that_are_owed(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"a": "1", "x": "1", "y": "1"}))
    event = take(queue)
    assert (event.revision, event.redelivery) == (2, False)
    event.done(Rejected({"x": NO, "y": "not now"}))
    assert set(status(mirror).owed) == {"x", "y"}
    assert status(mirror).state is SubscriptionState.FAILING
    assert mirror.not_accepted("x") == {"agent": "ValueError"}
    assert mirror.not_accepted("a") == {}
    event = again(queue, clock)
    assert told(event) == [("x", "1", None), ("y", "1", None)]
    event.done()
    assert (status(mirror).owed, status(mirror).state) == ({}, SubscriptionState.SYNCED)


@pytest.mark.parametrize("wrong", [{"b": NO}, {"a": NO, "b": NO}, {7: NO}])
def test_c10_rejected_must_name_keys_of_the_event(mirror: Registry, wrong: dict[Any, Exception]) -> None:
    # given an event / when an answer names a key that it does not have / then the event stays open
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"a": "1"}))
    event = take(queue)
    with pytest.raises(InvalidArgumentError):
        event.done(Rejected(wrong))
    assert event.done() is True
    assert status(mirror).owed == {}


@pytest.mark.parametrize("wrong", [{}, None, {"a": 7}, ["a"]])
def test_c10_rejected_names_at_least_one_key_with_its_error(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        Rejected(wrong)


def test_c10_an_event_that_was_given_up_owes_all_its_keys(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    ready(mirror, queue, {"gone": "v"})
    commits(mirror, (2, {"gone": None, "k": "1"}))
    take(queue)
    give_up(mirror, clock)
    assert sorted(told(again(queue, clock))) == [("gone", None, "v"), ("k", "1", None)]


# -- redelivery


def test_c10_a_redelivery_has_the_current_value_and_what_was_accepted_last(
    mirror: Registry, clock: ManualClock
) -> None:
    # given a key that was accepted with 0, and then rejected twice
    queue: Queue[Any] = Queue()
    ready(mirror, queue, {"k": "0"})
    commits(mirror, (2, {"k": "1"}))
    take(queue).done(NO)
    commits(mirror, (3, {"k": "2"}))
    event = take(queue)
    assert told(event) == [("k", "2", "1")]
    event.done(NO)
    # when it comes again / then its previous value is not the source's, but the subscriber's
    event = again(queue, clock)
    assert (told(event), event.revision) == ([("k", "2", "0")], 3)
    event.done(NO)
    # and a delete is redelivered as one
    commits(mirror, (4, {"k": None}))
    take(queue).done(NO)
    event = again(queue, clock)
    assert told(event) == [("k", None, "0")]
    event.done()
    assert status(mirror).owed == {}


def test_c10_a_key_that_was_rejected_in_a_resync_has_no_previous_value(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"a": "1", "x": "1"})
    take(queue).done(Rejected({"x": NO}))
    event = again(queue, clock)
    assert told(event) == [("x", "1", None)]
    event.done()
    assert status(mirror).resyncs == {ResyncReason.INITIAL: 1}


def test_c10_rejected_may_name_a_removed_key(mirror: Registry, clock: ManualClock) -> None:
    # given a RESYNC that lists a key as gone
    queue: Queue[Any] = Queue()
    ready(mirror, queue, {"k": "v"})
    snapshot(mirror, 2, {}, "compacted")
    event = take(queue)
    assert removed(event) == {"k": "v"}
    # when that is rejected / then its delete comes again, and the next RESYNC lists it until it is accepted
    event.done(Rejected({"k": NO}))
    event = again(queue, clock)
    assert told(event) == [("k", None, None)]
    event.done(NO)
    mirror.request_resync("agent")
    event = take(queue)
    assert removed(event) == {"k": "v"}
    event.done()
    mirror.request_resync("agent")
    assert removed(take(queue)) == {}


def test_c10_keys_that_fail_together_come_together_and_then_alone(mirror: Registry, clock: ManualClock) -> None:
    # given a good key and a bad one in one event, of a subscriber that knows only done(error)
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"a": "1", "x": "1"}))
    take(queue).done(NO)
    event = again(queue, clock)
    assert [key for key, *_ in told(event)] == ["a", "x"]
    # when the redelivery fails as a whole / then they come one by one, and the good one gets through
    event.done(NO)
    first = again(queue, clock, 2 * PAUSE)
    assert len(told(first)) == 1
    first.done()
    second = again(queue, clock, 2 * PAUSE)
    assert len(told(second)) == 1
    assert {told(first)[0][0], told(second)[0][0]} == {"a", "x"}


def test_c10_what_waits_goes_between_two_redeliveries(mirror: Registry, clock: ManualClock) -> None:
    # given two owed keys that come alone, and a change that waits behind one of them
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"x": "1", "y": "1"}))
    take(queue).done(NO)
    again(queue, clock).done(NO)
    first = again(queue, clock, 2 * PAUSE)
    commits(mirror, (3, {"a": "1"}))
    # when it is answered / then the change goes before the other key
    first.done()
    event = take(queue)
    assert told(event) == [("a", "1", None)]
    event.done()
    assert take(queue).redelivery


def test_c10_a_newer_change_that_waits_decides_for_its_key(mirror: Registry, clock: ManualClock) -> None:
    # given a key that is rejected while a newer change of it waits already
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"k": "1"}))
    event = take(queue)
    commits(mirror, (3, {"k": "2"}))
    event.done(NO)
    # when that one is accepted / then the debt is over, without a redelivery
    newer = take(queue)
    assert (told(newer), newer.redelivery) == ([("k", "2", "1")], False)
    newer.done()
    clock.advance(FAILURE_BACKOFF[1])
    assert queue.empty()
    assert status(mirror).owed == {}


def test_c10_the_backoff_of_a_key_grows_with_jitter_and_begins_anew_with_a_newer_change(
    mirror: Registry, clock: ManualClock
) -> None:
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"k": "v"}))
    pauses = []
    for _ in range(12):
        take(queue).done(NO)
        assert queue.empty()
        owed = status(mirror).owed["k"]
        assert (owed.error, owed.attempts) == ("ValueError", len(pauses) + 1)
        pauses.append(round(owed.next_in, 6))
        clock.advance(owed.next_in + 0.001)
    for number, pause in enumerate(pauses):
        assert min(300, 2**number) - 0.01 <= pause <= min(300, 1.5 * 2**number)
    assert any(abs(pause - 2**number) > 0.01 for number, pause in enumerate(pauses[:8])), "there is no jitter"
    take(queue).done(NO)
    commits(mirror, (3, {"k": "w"}))
    take(queue).done(NO)
    assert status(mirror).owed["k"].next_in <= PAUSE


def test_c10_the_subscriber_may_say_when(mirror: Registry, clock: ManualClock) -> None:
    # given keys of which one is to come after a minute, and one never again
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"later": "1", "never": "1"}))
    take(queue).done(Rejected({"later": RetryAfter(60, "the backend is down"), "never": Permanent("too long")}))
    assert status(mirror).owed == {
        "later": OwedStatus("RetryAfter", 1, 60.0, "the backend is down"),
        "never": OwedStatus("Permanent", 1, None, "too long"),
    }
    clock.advance(59)
    assert queue.empty()
    event = again(queue, clock, 1)
    assert told(event) == [("later", "1", None)]
    event.done()
    # when the value changes / then the other comes, too
    clock.advance(FAILURE_BACKOFF[1])
    assert queue.empty()
    commits(mirror, (3, {"never": "2"}))
    take(queue).done()
    assert status(mirror).owed == {}


@pytest.mark.parametrize("timeouts", [Timeouts(redeliveries=(2.0, 3))], ids=["2 a second, 3 at once"])
def test_c10_all_redeliveries_together_have_a_limit(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {f"k{number}": "v" for number in range(6)}))
    take(queue).done(NO)
    event = again(queue, clock)
    assert len(told(event)) == 3
    event.done()
    assert queue.empty()
    event = again(queue, clock, 0.5)
    assert len(told(event)) == 1
    event.done()
    event = again(queue, clock, 1.0)
    assert len(told(event)) == 2


def test_c10_no_two_events_in_flight_have_a_key_in_common(mirror: Registry, clock: ManualClock) -> None:
    # given a subscriber that takes several at once
    queue: Queue[Any] = Queue()
    ready(mirror, queue, in_flight=4)
    commits(mirror, (2, {"x": "1"}))
    commits(mirror, (3, {"x": None}))
    commits(mirror, (4, {"a": "1"}))
    # then only the first is out: the next waits for its answer, and the third keeps its place
    first = take(queue)
    assert queue.empty()
    # when it is given up, the newer one decides
    give_up(mirror, clock)
    second = take(queue)
    assert told(second)[0] == ("x", None, "1")
    second.done()
    clock.advance(FAILURE_BACKOFF[1])
    assert not any(event.redelivery for event in queue.queue)
    assert first.done() is False


@pytest.mark.parametrize("size", [1, 2])
def test_c10_a_redelivery_that_finds_no_room_waits(mirror: Registry, clock: ManualClock, size: int) -> None:
    # given a full queue, and a redelivery that is due
    queue: Queue[Any] = Queue(size)
    ready(mirror, queue)
    commits(mirror, (2, {"k": "1"}))
    take(queue).done(NO)
    for _ in range(size):
        queue.put("in the way")
    clock.advance(PAUSE)
    clock.advance(10)
    # when there is room / then it comes, and there was no overflow
    for _ in range(size):
        take(queue)
    event = again(queue, clock, 1)
    assert told(event) == [("k", "1", None)]
    event.done()
    assert status(mirror).resyncs == {ResyncReason.INITIAL: 1}


# -- RESYNCs that fail


def test_c10_a_resync_that_failed_comes_again_and_nothing_before_it(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"k": "1"})
    take(queue).done(NO)
    commits(mirror, (2, {"k": "2"}))
    assert queue.empty()
    assert 0 < status(mirror).resync_in <= PAUSE
    clock.advance(PAUSE)
    event = take(queue)
    assert (event.reason, state(event)) == (ResyncReason.FAILED, {"k": "2"})
    # and when it is not answered, there is another one
    give_up(mirror, clock)
    clock.advance(2 * PAUSE)
    again = take(queue)
    assert again.reason is ResyncReason.UNANSWERED
    assert again.done() is True
    assert event.done() is False


def test_c10_a_new_change_cuts_the_pause_after_an_answered_failure(mirror: Registry, clock: ManualClock) -> None:
    # given a RESYNC that failed five times, so that the next pause is long
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"k": "1"})
    for _ in range(5):
        take(queue).done(NO)
        clock.advance(status(mirror).resync_in)
    take(queue).done(NO)
    assert status(mirror).resync_in > 30
    # when a change comes after two seconds / then three are left, and it is not cut again below that
    clock.advance(2)
    commits(mirror, (2, {"k": "2"}))
    assert status(mirror).resync_in == pytest.approx(3)
    clock.advance(3)
    assert state(take(queue)) == {"k": "2"}
    # and no change cuts the pause when nobody answers
    give_up(mirror, clock)
    left = status(mirror).resync_in
    commits(mirror, (3, {"k": "3"}))
    assert status(mirror).resync_in == pytest.approx(left)


def test_c10_a_resync_asked_for_in_person_ends_the_pause(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"k": "1"})
    take(queue).done(RetryAfter(3600))
    assert status(mirror).resync_in == pytest.approx(3600)
    future = mirror.request_resync("agent")
    queue.get_nowait().done()
    future.result()


def test_c10_a_resync_speaks_for_every_key(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"x": "1", "y": "1"}))
    take(queue).done(NO)
    mirror.request_resync("agent")
    take(queue).done(Rejected({"y": NO}))
    assert set(status(mirror).owed) == {"y"}
    assert told(again(queue, clock, 2 * PAUSE)) == [("y", "1", None)]


def test_c10_a_resync_without_a_source_is_repeated_too(registry: Registry, clock: ManualClock) -> None:
    # given a registry that callers feed, with something in it
    registry.submit_changes(changes({"a": "1", "x": "1"}))
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    # when its first RESYNC fails, and then but for a key / then both come again: there is no caller who would repeat it
    take(queue).done(NO)
    clock.advance(PAUSE)
    take(queue).done(Rejected({"x": NO}))
    event = again(queue, clock)
    assert told(event) == [("x", "1", None)]


def test_c10_too_many_owed_keys_are_replaced_by_one_resync(
    mirror: Registry, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a subscriber that has rejected more keys than are kept
    monkeypatch.setattr(rejected, "MAX_OWED", 2)
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"x": "1", "y": "1", "z": "1"}))
    take(queue).done(NO)
    # then changes go on until one RESYNC comes for all of them
    commits(mirror, (3, {"a": "1"}))
    take(queue).done()
    assert 0 < status(mirror).resync_in <= PAUSE
    clock.advance(PAUSE)
    event = take(queue)
    assert (is_resync(event), event.reason) == (True, ResyncReason.FAILED)
    # and the pause grows until one helps
    event.done(Rejected(dict.fromkeys("xyz", NO)))
    assert PAUSE < status(mirror).resync_in <= 2 * PAUSE
    clock.advance(2 * PAUSE)
    take(queue).done(Rejected({"x": NO}))
    assert set(status(mirror).owed) == {"x"}


def test_c10_a_rejected_key_that_is_under_no_prefix_any_more_owes_no_resync(
    mirror: Registry, clock: ManualClock
) -> None:
    # given a subscriber without a change queue, and a RESYNC in its hands
    queue: Queue[Any] = Queue()
    registration = mirror.watch("agent", None, queue, "a", "b")
    snapshot(mirror, 1, {"a": "1", "b": "1"})
    event = take(queue)
    # when a prefix goes, and it rejects the key that was under it / then nothing is planned
    registration.unregister("b")
    event.done(Rejected({"b": NO}))
    assert (status(mirror).resync_in, status(mirror).owed) == (None, {})


def test_c10_without_a_change_queue_a_resync_brings_a_rejected_key(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    mirror.watch("agent", None, queue, "")
    snapshot(mirror, 1, {"x": "1"})
    take(queue).done(Rejected({"x": NO}))
    clock.advance(PAUSE)
    event = take(queue)
    assert (event.reason, state(event)) == (ResyncReason.FAILED, {"x": "1"})
    event.done()
    # and a delete that no queue took is listed
    commits(mirror, (2, {"x": None}))
    mirror.request_resync("agent")
    assert removed(take(queue)) == {"x": "1"}


# -- late answers


def test_c10_a_late_answer_counts_when_nothing_newer_was_put(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"k": "1"}))
    event = take(queue)
    give_up(mirror, clock)
    assert set(status(mirror).owed) == {"k"}
    assert event.done() is False
    assert (status(mirror).owed, status(mirror).state) == ({}, SubscriptionState.SYNCED)
    clock.advance(FAILURE_BACKOFF[1])
    assert queue.empty()


def test_c10_a_late_answer_to_a_change_owes_the_keys_of_which_something_newer_was_put(
    mirror: Registry, clock: ManualClock
) -> None:
    # given an event that was given up, and a newer one that another thread has handled before it
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    commits(mirror, (2, {"x": "1"}))
    old = take(queue)
    give_up(mirror, clock)
    commits(mirror, (3, {"x": "3"}))
    take(queue).done()
    assert status(mirror).owed == {}
    # when the old one ends after all / then it may have undone the newer one, which comes again
    assert old.done() is False
    assert told(again(queue, clock))[0][:2] == ("x", "3")


def test_c10_a_key_that_is_planned_twice_for_one_moment_is_taken_once(clock: ManualClock) -> None:
    # given a key that its subscriber wants after 100 s
    owed = rejected.OwedKeys(Timeouts(), clock.monotonic)
    owed.fail("k", 1, RetryAfter(100), None, jitter=1.0)
    # when an older event with it is answered meanwhile, which changes nothing about the time
    owed.doubt("k", 2, None, jitter=1.0)
    # then it comes once
    clock.advance(100)
    assert owed.take_due(clock.monotonic(), ()) == ["k"]


@pytest.mark.parametrize("late", [None, Rejected({"x": NO})])
def test_c10_a_late_answer_to_a_change_of_a_caller_owes_nothing(
    registry: Registry, clock: ManualClock, late: Exception | None
) -> None:
    # given a change that was given up, of which its caller was told
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    future = registry.submit_changes({"x": ChangeBytes("x", b"1")})
    event = take(queue)
    clock.advance(ABANDON_TIMEOUT)
    wait_until(lambda: not status(registry).in_flight, "the event was given up")
    # when the answer comes / then it counts, and nothing comes again
    event.done(late)
    assert future.exception(0) is not None
    assert set(status(registry).owed) == ({"x"} if late else set())
    clock.advance(FAILURE_BACKOFF[1])
    assert queue.empty()


def test_c10_the_rate_of_redeliveries_is_reached_in_spite_of_rounding(clock: ManualClock) -> None:
    clock.advance(123.456)
    owed = rejected.OwedKeys(Timeouts(redeliveries=(10.0, 1), failure_backoff=(1.0, 1.0)), clock.monotonic)
    for number in range(50):
        owed.fail(f"k{number}", 1, NO, None, jitter=1.0)
    for _ in range(50):
        clock.advance(owed.next_at() - clock.monotonic())
        (key,) = owed.take_due(clock.monotonic(), ())
        owed.accept(key, 2, None)


def test_c10_a_late_answer_to_a_resync_leads_to_one_more(mirror: Registry, clock: ManualClock) -> None:
    # given a RESYNC that was given up, and the one in its place, which was handled before it
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "")
    snapshot(mirror, 1, {"k": "v"})
    old = take(queue)
    give_up(mirror, clock)
    commits(mirror, (2, {"k": None}))
    clock.advance(PAUSE)
    take(queue).done()
    # when the old one ends after all / then one more comes, and what the old one brought is listed as gone
    assert old.done() is False
    clock.advance(2 * PAUSE)
    event = take(queue)
    assert (event.reason, state(event), removed(event)) == (ResyncReason.UNANSWERED, {}, {"k": "v"})
    event.done()
    assert old.done() is False
    clock.advance(FAILURE_BACKOFF[1])
    assert queue.empty()


# -- prefixes


def test_c10_unregister_ends_the_debts_of_its_keys(mirror: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    registration = mirror.watch("agent", queue, queue, "a", "b")
    snapshot(mirror, 1, {})
    take(queue).done()
    commits(mirror, (2, {"a": "1", "b": "1"}))
    event = take(queue)
    registration.unregister("b")
    event.done(NO)
    assert set(status(mirror).owed) == {"a"}
    registration.unregister("a")
    assert (status(mirror).owed, status(mirror).state) == ({}, SubscriptionState.SYNCED)
    clock.advance(FAILURE_BACKOFF[1])
    assert queue.empty()


@pytest.mark.parametrize("kind", ["change", "resync"])
def test_c7_a_key_unanswered_when_its_prefix_went_counts_as_offered(mirror: Registry, kind: str) -> None:
    # given an event in flight when its prefix is unregistered
    queue: Queue[Any] = Queue()
    registration = mirror.watch("agent", queue, queue, "a", "b")
    snapshot(mirror, 1, {"b": "1"} if kind == "resync" else {})
    event = take(queue)
    if kind == "change":
        event.done()
        commits(mirror, (2, {"b": "1"}))
        event = take(queue)
    registration.unregister("b")
    # when its key goes, and then the prefix comes back
    commits(mirror, (3, {"b": None}))
    registration.register("agent", "b")
    event.done()
    # then the RESYNC lists the key, which the subscriber may have
    assert removed(take(queue)) == {"b": "1"}


# -- callers


def test_c10_a_caller_is_told_and_its_change_is_not_delivered_again(registry: Registry, clock: ManualClock) -> None:
    queue: Queue[Any] = Queue()
    registry.watch("agent", queue, queue, "")
    future = registry.submit_changes(changes({"k": "1", "x": "1"}))
    take(queue).done(Rejected({"x": NO}))
    with pytest.raises(PropagationError) as caught:
        future.result()
    assert caught.value.reasons == {"agent": {"x": "ValueError: no"}}
    clock.advance(FAILURE_BACKOFF[1])
    assert queue.empty()
    # and the mark stays until the key is accepted
    assert registry.not_accepted("x") == {"agent": "ValueError"}
    assert status(registry).owed == {"x": OwedStatus("ValueError", 1, None, "no")}
    registry.submit_changes(changes({"x": "2"}))
    take(queue).done()
    assert registry.not_accepted("x") == {}


def test_c10_a_caller_whose_change_became_part_of_a_resync_is_told_of_its_own_keys(registry: Registry) -> None:
    # given two callers whose changes wait for a RESYNC
    queue: Queue[Any] = Queue()
    registration = registry.watch("agent", queue, queue, "a")
    busy = registry.submit_changes(changes({"a0": "1"}))
    event = take(queue)
    registration.register("agent", "b")
    mine = registry.submit_changes(changes({"a1": "1"}))
    other = registry.submit_changes(changes({"a2": "1"}))
    event.done()
    # when the key of one is rejected / then the other has succeeded
    take(queue).done(Rejected({"a1": NO}))
    busy.result()
    other.result()
    with pytest.raises(PropagationError) as caught:
        mine.result()
    assert caught.value.reasons == {"agent": {"a1": "ValueError: no"}}


def test_c10_the_last_known_good_stays_readable_and_others_are_unharmed(mirror: Registry) -> None:
    good: Queue[Any] = Queue()
    mirror.watch("good", good, good, "")
    queue: Queue[Any] = Queue()
    ready(mirror, queue)
    take(good).done()
    commits(mirror, (2, {"k": "v"}))
    take(queue).done(NO)
    take(good).done()
    assert mirror.get("k") is not None
    assert mirror.status().subscriptions["good"].state is SubscriptionState.SYNCED
    assert mirror.not_accepted("k") == {"agent": "ValueError"}
