"""The hub: what is routed to whom, with which previous value, and what callers are told (C1–C7, C11, C18)."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.api import KeyValProtoWatcher, WatchRegistration
from datasync.commits import Batch, Commit
from datasync.context import current_source
from datasync.errors import (
    ClosedError,
    DecodeError,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    PropagationError,
    StoreConnectionError,
    SubscriptionError,
)
from datasync.events import ChangeEvent, Op, ResyncEvent, ResyncReason
from datasync.runtime.timeouts import Timeouts
from datasync.serializer import SerializerJSON, SerializerProto
from datasync.syncbase.change import Change, ChangeBytes, KeyVal
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import SubscriptionState, TransportState
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import (
    changes,
    commits,
    is_resync,
    plain,
    removed,
    snapshot,
    state,
    stored,
    text,
    told,
    values,
)

#: A RESYNC follows a failed event at once.
hasty = pytest.mark.parametrize("timeouts", [Timeouts(failure_backoff=(0.001, 0.002))], ids=["hasty"])


def subscribe(registry: Registry, name: str, *prefixes: str, in_flight: int = 1) -> tuple[Queue[Any], Registration]:
    """A subscription with one queue for both kinds of event."""
    queue: Queue[Any] = Queue()
    return queue, registry.watch(name, queue, queue, *prefixes, in_flight=in_flight)


def answer(queue: Queue[Any], error: BaseException | None = None) -> Any:
    """Take the next event and answer it."""
    event = take(queue)
    assert event.done(error) is True
    return event


# -- shape of the stream


def test_c2_a_registry_without_a_source_sends_no_resync_when_it_holds_nothing(registry: Registry) -> None:
    # given a registry that holds something elsewhere
    registry.propagate_changes(changes({"b/1": "x"}))
    # when somebody watches what it does not hold
    queue, _ = subscribe(registry, "agent", "a/")
    # then the first thing is a CHANGE
    assert queue.empty()
    registry.submit_changes(changes({"a/1": "1"}))
    assert isinstance(answer(queue), ChangeEvent)


def test_c2_a_late_subscriber_gets_what_is_held_under_its_prefixes_first(registry: Registry) -> None:
    # given a registry with keys
    registry.propagate_changes(changes({"a/1": "1", "b/1": "x"}))
    # when somebody watches some of them
    queue, _ = subscribe(registry, "agent", "a/")
    later = registry.submit_changes(changes({"a/2": "2"}))
    # then it starts with a RESYNC, and the CHANGE waits behind it with a greater revision
    first = answer(queue)
    assert (values(first), first.reason, first.revision) == ({"a/": {"a/1": "1"}}, ResyncReason.INITIAL, 1)
    second = answer(queue)
    assert told(second) == [("a/2", "2", None)]
    assert second.get_changes()[0].get_revision() > first.revision
    assert later.result().revision == 2


def test_c2_a_sourced_registry_delivers_nothing_before_its_first_snapshot(mirror: Registry) -> None:
    # given a subscriber of a source that was not read yet
    queue, _ = subscribe(mirror, "agent", "a/")
    assert queue.empty()
    assert mirror.status().subscriptions["agent"].state is SubscriptionState.WAITING
    # when the source is read, even if there is nothing
    snapshot(mirror, 4, {})
    # then the first RESYNC comes, with an entry for the prefix
    event = answer(queue)
    assert (values(event), event.revision, event.reason) == ({"a/": {}}, 4, ResyncReason.INITIAL)


def test_c3_d31_a_resync_is_put_when_all_before_is_settled_and_nothing_passes_it(mirror: Registry) -> None:
    # given two queues and a change in flight
    change_queue: Queue[Any] = Queue()
    resync_queue: Queue[Any] = Queue()
    mirror.watch("agent", change_queue, resync_queue, "", in_flight=3)
    snapshot(mirror, 1, {})
    answer(resync_queue)
    commits(mirror, (2, {"k": "old"}))
    in_flight = take(change_queue)
    # when a snapshot and then a change come from the source
    snapshot(mirror, 10, {"k": "new"}, "compacted")
    commits(mirror, (11, {"k": "newer"}))
    # then the RESYNC waits for the answer, is newer than all that it replaces, and the CHANGE waits for its answer
    assert resync_queue.empty()
    in_flight.done()
    barrier = take(resync_queue)
    assert (state(barrier), barrier.revision) == ({"k": "newer"}, 11)
    commits(mirror, (12, {"k": "newest"}))
    assert change_queue.empty()
    barrier.done()
    assert told(answer(change_queue)) == [("k", "newest", "newer")]


def test_c4_a_transaction_is_one_event_and_keeps_its_order(registry: Registry) -> None:
    queue, _ = subscribe(registry, "agent", "a/")
    registry.submit_changes(changes({"a/2": "2", "b/9": "other", "a/1": "1"}))
    assert told(answer(queue)) == [("a/2", "2", None), ("a/1", "1", None)]


def test_c4_transactions_of_callers_are_never_merged(registry: Registry) -> None:
    # given a subscriber that is busy
    queue, _ = subscribe(registry, "agent", "")
    futures = [registry.submit_changes(changes({f"k{number}": "v"})) for number in range(4)]
    # when it answers one after the other
    for number, future in enumerate(futures):
        assert not any(one.done() for one in futures[number:])
        # then each caller gets the answer to its own
        assert [key for key, _, _ in told(answer(queue))] == [f"k{number}"]
        assert future.done()


def test_c4_a_callers_transaction_is_merged_with_nothing_that_comes_from_the_store(mirror: Registry) -> None:
    # given a busy subscriber of a store
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 1, {})
    busy = take(queue)
    commits(mirror, (2, {"begin": "1"}))
    busy.done()
    busy = take(queue)
    # when a caller's transaction comes between two of the store's
    commits(mirror, (3, {"a": "1"}))
    future = mirror.submit_changes(changes({"b": "1"}))
    commits(mirror, (5, {"c": "1"}), (6, {"d": "1"}))
    busy.done()
    # then it has an event, and an answer, of its own
    assert [[key for key, _, _ in told(answer(queue))] for _ in range(2)] == [["a"], ["b"]]
    assert future.done()
    assert [key for key, _, _ in told(answer(queue))] == ["c", "d"]


def test_c4_store_transactions_that_wait_are_merged_whole_and_in_order(
    mirror: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a busy subscriber, and events of four changes at most
    monkeypatch.setattr("datasync.syncbase.backlog.MAX_BATCH", 4)
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 1, {})
    busy = take(queue)
    # when transactions of 2, 1, 2, 6 and 1 changes come meanwhile, and one with a key that was there already
    commits(
        mirror,
        (2, {"a": "1", "b": "1"}),
        (3, {"c": "1"}),
        (4, {"d": "1", "e": "1"}),
        (5, {f"x{number}": "1" for number in range(6)}),
        (6, {"f": "1"}),
        (7, {"f": "2"}),
    )
    busy.done()
    # then no transaction is split, none is out of order, and no key comes twice in an event (C5)
    events = [[(change.get_key(), change.get_revision()) for change in answer(queue).get_changes()] for _ in range(5)]
    assert events == [
        [("a", 2), ("b", 2), ("c", 3)],
        [("d", 4), ("e", 4)],
        [(f"x{number}", 5) for number in range(6)],
        [("f", 6)],
        [("f", 7)],
    ]


def test_c4_in_flight_allows_so_many_changes_at_once_and_no_more(mirror: Registry) -> None:
    # given two subscribers, one of which takes three at once
    one, _ = subscribe(mirror, "one", "")
    three, _ = subscribe(mirror, "three", "", in_flight=3)
    snapshot(mirror, 1, {})
    answer(one)
    answer(three)
    # when five transactions of five keys come, one at a time
    for revision in range(2, 7):
        commits(mirror, (revision, {f"k{revision}": str(revision)}))
    # then each has as many unanswered as it asked for, in order (I11)
    assert (one.qsize(), three.qsize()) == (1, 3)
    first, second, third = (take(three) for _ in range(3))
    assert [told(event)[0][1] for event in (first, second, third)] == ["2", "3", "4"]
    second.done()
    assert told(take(three))[0][1] == "5"
    assert three.empty()
    assert mirror.status().subscriptions["three"].in_flight == 3


# -- a key once, previous values


def test_c5_d01_overlapping_prefixes_and_subscribers_see_a_change_once_with_one_revision(registry: Registry) -> None:
    # given subscribers with overlapping prefixes
    queues = [
        subscribe(registry, name, *prefixes)[0]
        for name, prefixes in {"all": ("", "a", "a/", "a/1"), "some": ("a/", "a/1"), "exact": ("a/1",)}.items()
    ]
    # when a key is set twice
    for value, previous, revision in (("1", None, 1), ("2", "1", 2)):
        future = registry.submit_changes(changes({"a/1": value}))
        # then each sees one change, with the same previous value and revision (C6)
        for queue in queues:
            event = answer(queue)
            assert told(event) == [("a/1", value, previous)]
            assert event.get_changes()[0].get_revision() == revision
            assert queue.empty()
        assert future.result().revision == revision


def test_c5_d36_in_a_resync_a_key_stands_under_its_longest_prefix_and_every_prefix_has_an_entry(
    mirror: Registry,
) -> None:
    queue, _ = subscribe(mirror, "agent", "a/", "a/b/", "", "nothing/", "a/b")
    snapshot(mirror, 1, {"a/1": "1", "a/b/1": "2", "a/bc": "3", "other": "4"})
    assert values(answer(queue)) == {
        "a/": {"a/1": "1"},
        "a/b/": {"a/b/1": "2"},
        "": {"other": "4"},
        "nothing/": {},
        "a/b": {"a/bc": "3"},
    }


def test_a_resync_stays_readable_and_each_look_has_iterators_of_its_own(mirror: Registry) -> None:
    # given a RESYNC that was answered, after which the source went on
    queue, registration = subscribe(mirror, "agent", "a/")
    snapshot(mirror, 1, {"a/1": "1"})
    event = answer(queue)
    commits(mirror, (2, {"a/1": "2"}))
    answer(queue)
    registration.unregister("a/")
    registration.close()
    # when it is read twice / then it is what it was
    assert values(event) == values(event) == {"a/": {"a/1": "1"}}


@pytest.mark.parametrize("sourced", [False, True])
def test_c6_d02_d37_a_delete_has_the_previous_value_and_one_of_nothing_is_told_as_ignored(sourced: bool) -> None:
    with Registry(sourced=sourced) as registry:
        queue, _ = subscribe(registry, "agent", "")
        snapshot(registry, 1, {"k": "v"})
        answer(queue)
        # when what is there and what is not are deleted in one transaction
        future = registry.submit_changes(changes({"nothing": None, "k": None}))
        event = answer(queue)
        # then the one is delivered with its value, the other is told to the caller
        assert told(event) == [("k", None, "v")]
        assert future.result().ignored == ("nothing",)


def test_d02_deleting_only_what_is_not_there_reaches_nobody_and_is_no_silent_success(registry: Registry) -> None:
    queue, _ = subscribe(registry, "agent", "")
    outcome = registry.propagate_changes(changes({"nothing": None}))
    assert (outcome.ignored, outcome.revision) == (("nothing",), 0)
    assert queue.empty()


def test_c6_revisions_are_the_sources_own_or_a_counter_that_never_goes_back(
    registry: Registry, mirror: Registry
) -> None:
    # given a counter and a source
    assert registry.propagate_changes(changes({"k": "1"})).revision == 1
    assert registry.propagate_changes(changes({"k": None})).revision == 2
    assert registry.propagate_changes({"k": Change("k", text("3"), revision=40)}).revision == 40
    assert registry.propagate_changes(changes({"k": "4"})).revision == 41
    assert registry.propagate_resync({}).revision == 42
    # when a source counts for itself
    snapshot(mirror, 100, {"k": "1"})
    commits(mirror, (105, {"k": "2"}))
    # then these are the revisions, also of a bookmark
    found = mirror.get("k")
    assert found is not None
    assert (found.revision, mirror.revision) == (105, 105)
    mirror.feed_changes(Batch(120, ()))
    assert mirror.status().revision == 120


def test_d16_a_key_that_nobody_watched_has_a_previous_value_for_a_later_prefix(registry: Registry) -> None:
    # given a key under no prefix
    outcome = registry.propagate_changes(changes({"b/1": "1"}))
    assert outcome.unwatched == ("b/1",)
    queue, registration = subscribe(registry, "agent", "a/")
    # when its prefix is registered
    registration.register("agent", "b/")
    # then it comes in a snapshot, and later changes know it
    event = answer(queue)
    assert (values(event), event.reason) == ({"a/": {}, "b/": {"b/1": "1"}}, ResyncReason.PREFIX)
    registry.submit_changes(changes({"b/1": "2"}))
    assert told(answer(queue)) == [("b/1", "2", "1")]


def test_c6_d32_previous_values_after_an_outage_are_those_of_the_new_state(mirror: Registry) -> None:
    # given a subscriber with a state
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 1, {"kept": "old", "gone": "old"})
    answer(queue)
    # when the source is listed again after changes that nobody saw
    snapshot(mirror, 9, {"kept": "new", "came": "new"}, "compacted")
    event = answer(queue)
    assert (state(event), removed(event)) == ({"kept": "new", "came": "new"}, {"gone": "old"})
    commits(mirror, (10, {"kept": "newest"}), (11, {"gone": "again"}), (12, {"came": None}))
    # then a deleted key is a create again, and no previous value is stale
    assert told(answer(queue)) == [("kept", "newest", "new"), ("gone", "again", None), ("came", None, "new")]


# -- missed deletes


def test_c7_deletes_that_were_never_delivered_are_listed(mirror: Registry) -> None:
    # given a subscriber that knows three keys and is busy with a fourth
    queue, _ = subscribe(mirror, "agent", "a/")
    snapshot(mirror, 1, {"a/1": "1", "a/2": "2", "a/3": "3"})
    answer(queue)
    commits(mirror, (2, {"a/4": "4"}))
    busy = take(queue)
    # when one is deleted by a change that waits, one by a new list; another comes and goes unseen
    commits(mirror, (3, {"a/1": None}))
    snapshot(mirror, 8, {"a/3": "3", "a/new": "5"}, "compacted")
    commits(mirror, (9, {"a/new": None, "a/3": "changed"}), (10, {"a/3": None}))
    busy.done()
    # then the RESYNC lists what it was offered and is gone, with the last value that was known of it
    event = answer(queue)
    assert (state(event), event.reason) == ({}, ResyncReason.COMPACTED)
    assert removed(event) == {"a/1": "1", "a/2": "2", "a/3": "changed", "a/4": "4"}


@hasty
def test_c7_a_rejected_delete_is_listed_until_it_is_accepted(mirror: Registry) -> None:
    # given a subscriber that rejects a delete
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 1, {"k": "v"})
    answer(queue)
    commits(mirror, (2, {"k": None}))
    take(queue).done(ValueError("not now"))
    # when a RESYNC comes, and is rejected as well, and comes again
    mirror.request_resync("agent")
    while not is_resync(event := take(queue)):
        event.done(ValueError("not now"))  # a redelivery that came before
    event.done(ValueError("not now either"))
    event = answer(queue)
    # then the key is listed each time
    assert (event.reason, removed(event), state(event)) == (ResyncReason.FAILED, {"k": "v"}, {})
    # and once it was accepted it is not listed again
    snapshot(mirror, 3, {}, "reconnected")
    assert removed(answer(queue)) == {}


def test_c7_nothing_is_listed_to_one_who_was_offered_nothing(mirror: Registry) -> None:
    # given a source that lost a key before anybody watched, and one before the first RESYNC was asked for
    snapshot(mirror, 1, {"a": "1", "b": "1"})
    commits(mirror, (2, {"a": None}))
    queue: Queue[Any] = Queue()
    mirror.watch("agent", queue, queue, "", wait_for_resync=True)
    commits(mirror, (3, {"b": None}))
    # when the first RESYNC goes out
    mirror.request_resync("agent")
    # then it is INITIAL and lists nothing
    event = answer(queue)
    assert (event.reason, removed(event), state(event)) == (ResyncReason.INITIAL, {}, {})


# -- answers


def test_c9_propagate_returns_when_all_have_answered_and_raises_all_refusals(registry: Registry) -> None:
    # given three subscribers
    queues = {name: subscribe(registry, name, "a/")[0] for name in ("one", "two", "three")}
    future = registry.submit_changes(changes({"a/1": "1"}))
    refusals = {"one": ValueError("of one"), "three": KeyError("of three")}
    # when two refuse
    for name, queue in queues.items():
        assert not future.done()
        answer(queue, refusals.get(name))
    # then the caller gets both, by name (D13)
    with pytest.raises(PropagationError) as caught:
        future.result()
    assert caught.value.errors == refusals
    # and the value stays readable in the registry
    assert stored(registry) == {"a/1": "1"}


def test_c9_d09_d10_no_answer_in_time_is_an_error_that_names_the_silent_and_a_late_one_counts(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    # given one who answers and one who does not
    prompt, _ = subscribe(registry, "prompt", "")
    sleepy, _ = subscribe(registry, "sleepy", "")
    future = registry.submit_changes(changes({"k": "v"}), timeout=0.01)
    answer(prompt)
    # when the caller waits as long as it said
    with pytest.raises(DoneTimeout, match="sleepy") as caught:
        future.result()
    # then it knows who is missing, and so does the log
    assert caught.value.silent == ("sleepy",)
    assert "prompt" not in str(caught.value)
    assert any("done was not called" in record.message and "sleepy" in record.message for record in caplog.records)
    # and the late answer still counts
    answer(sleepy)
    assert future.result().revision == 1
    with pytest.raises(DoneTimeout):
        registry.propagate_changes(changes({"k": "w"}), timeout=0.01)
    for queue in (prompt, sleepy):
        answer(queue)


def test_d09_a_resync_that_is_not_answered_raises_too(registry: Registry) -> None:
    queue, _ = subscribe(registry, "sleepy", "")
    with pytest.raises(DoneTimeout, match="sleepy"):
        registry.propagate_resync({"k": KeyVal("k", text("v"))}, timeout=0.01)
    answer(queue)


def test_c9_done_twice_counts_once_and_only_the_first_answer(registry: Registry) -> None:
    # given an event for two subscribers
    one, _ = subscribe(registry, "one", "")
    two, _ = subscribe(registry, "two", "")
    future = registry.submit_changes(changes({"k": "v"}))
    # when the first answers twice (D12)
    event = take(one)
    assert [event.done(), event.done(), event.done(ValueError("too late"))] == [True, False, False]
    # then the caller still waits for the other, and gets no error
    assert not future.done()
    answer(two)
    future.result()


@pytest.mark.parametrize("wrong", ["text", 5, ValueError])
def test_c9_c16_an_answer_that_is_none_is_refused_and_the_event_stays_open(registry: Registry, wrong: Any) -> None:
    queue, _ = subscribe(registry, "agent", "")
    future = registry.submit_changes(changes({"k": "v"}))
    event = take(queue)
    with pytest.raises(InvalidArgumentError, match="None or an exception"):
        event.done(wrong)
    assert not future.done()
    assert event.done() is True
    future.result()


def test_nobody_to_ask_is_an_answer(registry: Registry) -> None:
    assert registry.propagate_changes({}).revision == 0
    assert registry.propagate_changes(changes({"k": "v"})).unwatched == ("k",)
    registry.propagate_resync({}, timeout=0)


def test_d14_d15_a_resync_replaces_the_state_at_once_and_leaves_deletes_out(registry: Registry) -> None:
    # given a state that a subscriber has
    queue, _ = subscribe(registry, "agent", "")
    registry.submit_changes(changes({"old": "1", "kept": "1"}))
    answer(queue)
    # when another one is propagated, with an entry that deletes
    future = registry.submit_resync({"kept": Change("kept", text("2")), "no": Change("no", op=Op.DELETE)})
    event = answer(queue)
    # then the delete is no value, and what is missing is listed as gone
    assert (state(event), removed(event), event.reason) == ({"kept": "2"}, {"old": "1"}, ResyncReason.REQUESTED)
    assert future.result().revision == event.revision == 2
    assert stored(registry) == {"kept": "2"}


def test_c4_the_answer_to_a_change_that_became_part_of_a_resync_reaches_its_caller(registry: Registry) -> None:
    # given a change that waits behind another one
    queue, _ = subscribe(registry, "agent", "")
    registry.submit_changes(changes({"a": "1"}))
    waiting = registry.submit_changes(changes({"b": "1"}))
    resync = registry.submit_resync({"c": KeyVal("c", text("1"))})
    later = registry.submit_changes(changes({"d": "1"}))
    answer(queue)
    # when the RESYNC that took its place is refused
    answer(queue, ValueError("no"))
    # then all who were in it are told, the later one too
    for future in (waiting, resync, later):
        with pytest.raises(PropagationError):
            future.result()


# -- registration


def test_c11_a_name_is_taken_once_and_the_first_is_left_alone(registry: Registry) -> None:
    queue, registration = subscribe(registry, "agent", "a/")
    with pytest.raises(SubscriptionError, match="'agent'"):
        registry.watch("agent", Queue(), None, "b/")
    future = registry.submit_changes(changes({"a/1": "1", "b/1": "1"}))
    assert told(answer(queue)) == [("a/1", "1", None)]
    future.result()
    # and a closed name is free again
    registration.close()
    subscribe(registry, "agent", "b/")


@pytest.mark.parametrize(
    "bad",
    [
        lambda watch: watch("agent", None, None, "a/"),
        lambda watch: watch("", Queue(), None, "a/"),
        lambda watch: watch(None, Queue(), None, "a/"),
        lambda watch: watch("agent", Queue(), None, b"a/"),
        lambda watch: watch("agent", Queue(), None, None),
        lambda watch: watch("agent", [], None, "a/"),
        lambda watch: watch("agent", Queue(), "queue", "a/"),
        lambda watch: watch("agent", Queue(), None, "a/", in_flight=0),
        lambda watch: watch("agent", Queue(), None, "a/", in_flight=1.5),
        lambda watch: watch("agent", Queue(), None, "a/", "a/"),
    ],
)
def test_c11_c16_a_useless_watch_is_refused_and_leaves_nothing(
    registry: Registry, bad: Callable[[Callable[..., object]], object]
) -> None:
    with pytest.raises(ValueError, match=r"agent|resync name|prefix"):
        bad(registry.watch)
    assert registry.subscriptions == {}
    subscribe(registry, "agent", "a/")


def test_c11_register_checks_the_name_and_the_prefix(registry: Registry) -> None:
    _, registration = subscribe(registry, "agent", "a/")
    subscribe(registry, "other", "b/")
    for name, prefix in (("other", "c/"), ("nobody", "c/"), ("agent", "a/")):
        with pytest.raises(SubscriptionError, match=repr(name)):
            registration.register(name, prefix)
    with pytest.raises(InvalidArgumentError):
        registration.register("agent", None)  # type: ignore[arg-type]
    assert tuple(registry.subscriptions["agent"].prefixes) == ("a/",)
    assert tuple(registry.subscriptions["other"].prefixes) == ("b/",)


def test_c11_d04_d40_unregister_takes_its_own_prefix_of_its_own_subscription_only(registry: Registry) -> None:
    # given two subscribers of the same prefixes
    one, registration = subscribe(registry, "one", "a/", "b/")
    two, _ = subscribe(registry, "two", "a/", "b/")
    # when one of them drops one
    registration.unregister("a/")
    registration.unregister("a/")
    registration.unregister("never there")
    future = registry.submit_changes(changes({"a/1": "1", "b/1": "1"}))
    # then only that has changed
    assert told(answer(one)) == [("b/1", "1", None)]
    assert told(answer(two)) == [("a/1", "1", None), ("b/1", "1", None)]
    future.result()


def test_c11_what_waits_is_not_put_after_unregister_and_its_caller_counts_it_as_done(registry: Registry) -> None:
    # given a busy subscriber with waiting changes under two prefixes
    queue, registration = subscribe(registry, "agent", "a/", "b/")
    registry.submit_changes(changes({"a/0": "0"}))
    only_a = registry.submit_changes(changes({"a/1": "1"}))
    both = registry.submit_changes(changes({"a/2": "2", "b/2": "2"}))
    # when one prefix goes
    registration.unregister("a/")
    # then its caller has its answer at once, and nothing of it comes any more
    only_a.result(0)
    answer(queue)
    assert told(answer(queue)) == [("b/2", "2", None)]
    both.result()
    assert queue.empty()


def test_c11_what_waits_for_one_subscriber_stays_whole_when_another_unregisters(registry: Registry) -> None:
    # given two busy subscribers, for whom the same transaction waits
    leaving, registration = subscribe(registry, "leaving", "a/")
    staying, _ = subscribe(registry, "staying", "a/")
    registry.submit_changes(changes({"a/0": "0"}))
    future = registry.submit_changes(changes({"a/1": "1", "a/2": "2"}))
    # when one of them wants it no more
    registration.unregister("a/")
    # then the other gets all of it
    answer(leaving)
    answer(staying)
    assert told(answer(staying)) == [("a/1", "1", None), ("a/2", "2", None)]
    assert leaving.empty()
    future.result()


def test_c11_an_overlapping_prefix_keeps_what_it_wants(registry: Registry) -> None:
    queue, registration = subscribe(registry, "agent", "a/", "a/b/")
    registry.submit_changes(changes({"x": "", "a/0": "0"}))
    registry.submit_changes(changes({"a/b/1": "1"}))
    registration.unregister("a/")
    answer(queue)
    assert told(answer(queue)) == [("a/b/1", "1", None)]


def test_d03_unregister_and_close_do_not_wait_for_a_consumer_that_reads_nothing(registry: Registry) -> None:
    # given queues of size one that nobody reads, full, with more waiting
    stuck: Queue[Any] = Queue(1)
    registration = registry.watch("stuck", stuck, stuck, "a/", "b/")
    futures = [registry.submit_changes(changes({"a/1": str(number)})) for number in range(3)]
    # when a prefix is dropped and the subscription closed, in a thread so that a deadlock would be found
    done = threading.Event()

    def end() -> None:
        registration.unregister("a/")
        registration.close()
        registration.close()
        registration.unregister("b/")
        done.set()

    threading.Thread(target=end, daemon=True).start()
    # then they return, nothing is put any more, and the registry goes on for others
    assert done.wait(PATIENT)
    with pytest.raises(ClosedError):
        futures[0].result()
    assert stuck.qsize() == 1
    queue, _ = subscribe(registry, "other", "c/")
    future = registry.submit_changes(changes({"c/1": "1"}))
    answer(queue)
    future.result()


def test_d05_closing_one_subscription_twice_leaves_the_others_alone(registry: Registry) -> None:
    # given two subscriptions
    _, first = subscribe(registry, "first", "a/")
    queue, second = subscribe(registry, "second", "a/")
    # when one is closed twice
    first.close()
    first.close()
    # then the other gets its changes, and can be unregistered and closed
    future = registry.submit_changes(changes({"a/1": "1"}))
    answer(queue)
    assert future.result().revision == 1
    second.unregister("a/")
    second.close()
    assert registry.subscriptions == {}


def test_d05_a_closed_registration_does_not_end_its_successor_of_the_same_name(registry: Registry) -> None:
    _, first = subscribe(registry, "agent", "a/")
    first.close()
    queue, _ = subscribe(registry, "agent", "a/")
    first.close()
    first.unregister("a/")
    registry.submit_changes(changes({"a/1": "1"}))
    assert told(answer(queue)) == [("a/1", "1", None)]


def test_d06_after_close_unregister_is_nothing_and_register_says_closed(registry: Registry) -> None:
    _, registration = subscribe(registry, "agent", "a/")
    registration.close()
    registration.unregister("a/")
    registration.unregister("b/")
    with pytest.raises(ClosedError, match="'agent'"):
        registration.register("agent", "c/")


def test_d08_d19_d41_without_a_queue_events_count_as_done(registry: Registry, mirror: Registry) -> None:
    # given subscribers that want only one kind of event each
    change_queue: Queue[Any] = Queue()
    resync_queue: Queue[Any] = Queue()
    only_resyncs = registry.watch("no changes", None, resync_queue, "a/", "b/")
    registry.watch("no resyncs", change_queue, None, "a/")
    # when there are both
    future = registry.submit_changes(changes({"a/1": "1"}))
    answer(change_queue)
    future.result(0.5)
    future = registry.submit_resync({"a/2": KeyVal("a/2", text("2"))})
    answer(resync_queue)
    future.result(0.5)
    # then nobody waits for what nobody gets, and a prefix can be dropped
    assert change_queue.empty()
    assert resync_queue.empty()
    only_resyncs.unregister("a/")
    assert tuple(registry.subscriptions["no changes"].prefixes) == ("b/",)
    # and the first RESYNC of a source lets the changes pass when nobody wants it
    mirror.watch("agent", change_queue, None, "")
    snapshot(mirror, 1, {"k": "1"})
    commits(mirror, (2, {"k": "2"}))
    assert told(answer(change_queue)) == [("k", "2", "1")]


def test_d18_the_callers_list_of_prefixes_is_not_kept(registry: Registry) -> None:
    prefixes = ["a/", "b/"]
    queue, registration = subscribe(registry, "agent", *prefixes)
    prefixes[0] = "c/"
    registration.unregister("b/")
    registry.submit_changes(changes({"a/1": "1", "b/1": "1", "c/1": "1"}))
    assert told(answer(queue)) == [("a/1", "1", None)]
    event_values = registry.submit_resync({})
    assert values(answer(queue)) == {"a/": {}}
    event_values.result()


def test_c11_a_prefix_registered_while_the_queue_is_busy_is_in_the_next_resync(mirror: Registry) -> None:
    # given a subscriber with a change in flight
    queue, registration = subscribe(mirror, "agent", "a/")
    snapshot(mirror, 1, {"a/1": "1", "b/1": "1"})
    answer(queue)
    commits(mirror, (2, {"a/1": "2"}))
    busy = take(queue)
    # when a prefix comes and a key under it is deleted before the RESYNC could go
    registration.register("agent", "b/")
    commits(mirror, (3, {"b/1": None, "b/2": "2"}))
    busy.done()
    # then the RESYNC has the new prefix as it is
    event = answer(queue)
    assert (values(event), event.reason) == ({"a/": {"a/1": "2"}, "b/": {"b/2": "2"}}, ResyncReason.PREFIX)


# -- bad input


@pytest.mark.parametrize(
    "bad",
    [
        {"": Change("k", text("v"))},
        {None: Change("k", text("v"))},
        {b"k": Change("k", text("v"))},
        {"k": Change("other", text("v"))},
        {"k": None},
        {"k": text("v")},
        {"k": "text"},
        {"k": object()},
    ],
)
def test_c16_a_bad_change_is_refused_before_anything_is_applied(registry: Registry, bad: Any) -> None:
    queue, _ = subscribe(registry, "agent", "")
    for method in (registry.submit_changes, registry.submit_resync):
        with pytest.raises(InvalidArgumentError):
            method({"good": Change("good", text("v")), **bad})
    assert registry.items() == []
    assert queue.empty()


@pytest.mark.parametrize("wrong", [None, [Change("k", text("v"))], "k", Change("k", text("v"))])
def test_c16_what_is_no_mapping_of_changes_and_a_timeout_that_is_no_number_are_refused(
    registry: Registry, wrong: Any
) -> None:
    for method in (registry.submit_changes, registry.submit_resync):
        with pytest.raises(InvalidArgumentError, match="a mapping from key to change, not "):
            method(wrong)
        with pytest.raises(InvalidArgumentError, match="timeout must be a number of seconds, not str"):
            method({"k": Change("k", text("v"))}, timeout="1")
    assert registry.items() == []


def test_c16_a_value_that_does_not_decode_is_delivered_and_stops_nothing(mirror: Registry) -> None:
    # given bytes that are no JSON
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 1, {})
    answer(queue)
    # when they come with something good
    mirror.feed_changes(Batch(2, [Commit(2, [("bad", b"\xff{"), ("good", b'"v"')])]))
    event = answer(queue)
    bad, good = event.get_changes()
    # then the key is there, its value raises, and the rest is as ever
    assert bad.get_key() == "bad"
    with pytest.raises(DecodeError, match="'bad'"):
        bad.get_value(StringValue())
    assert plain(good.get_value(StringValue())) == "v"
    mirror.feed_changes(Batch(3, [Commit(3, [("bad", b'"mended"')])]))
    mended = answer(queue).get_changes()[0]
    assert plain(mended.get_value(StringValue())) == "mended"
    with pytest.raises(DecodeError):
        mended.get_prev_value(StringValue())


def test_c16_no_value_is_in_a_log_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    # given a value that must not be shown
    canary = "canary-51c0"
    caplog.set_level("DEBUG", logger="datasync")
    shown: list[str] = []
    with Registry() as registry:
        queue, registration = subscribe(registry, "agent", "")
        # when it goes all the ways there are
        for error in (None, ValueError("refused")):
            future = registry.submit_changes({"k": Change("k", text(canary))})
            event = take(queue)
            shown += [repr(event), repr(list(event.get_changes())), repr(future)]
            event.done(error)
        registry.submit_changes({"k": ChangeBytes("k", f'"{canary}"'.encode())})
        take(queue).done()
        future = registry.submit_resync({"k": KeyVal("k", text(canary))}, timeout=0.01)
        event = take(queue)
        shown += [repr(event), repr(event.get_values()), repr([list(i) for i in event.get_values().values()])]
        with pytest.raises(DoneTimeout) as caught:
            future.result()
        event.done()
        future = registry.submit_changes({"k": Change("k", op=Op.DELETE)})
        event = take(queue)
        shown += [repr(list(event.get_changes())), repr(registry.status()), repr(registration), repr(caught.value)]
    shown += [repr(future.exception())]
    # then it is nowhere
    assert canary not in caplog.text
    assert canary not in "".join(shown)
    assert "'agent'" in caplog.text


def test_bytes_without_a_serializer_are_read_by_the_registrys() -> None:
    # given a registry whose values are binary
    with Registry(serializer=SerializerProto()) as registry:
        queue, _ = subscribe(registry, "agent", "")
        data = text("binary").SerializeToString()
        # when bytes come without a serializer, and some with one of their own
        registry.submit_changes(
            {"k": ChangeBytes("k", data), "j": ChangeBytes("j", b'"json"', serializer=SerializerJSON())}
        )
        # then each is read by the right one, in the event and in the cache
        assert told(answer(queue)) == [("k", "binary", None), ("j", "json", None)]
        assert stored(registry) == {"k": "binary", "j": "json"}


# -- context


def test_the_context_of_a_change_is_the_callers_with_the_source_in_it(registry: Registry) -> None:
    # given a variable in the caller's context
    tag: contextvars.ContextVar[str] = contextvars.ContextVar("tag", default="none")
    queue, _ = subscribe(registry, "agent", "")
    tag.set("caller")
    registry.submit_changes(changes({"k": "1"}))
    explicit = contextvars.copy_context()
    explicit.run(tag.set, "explicit")
    registry.submit_changes(changes({"k": "2"}), ctx=explicit)
    explicit.run(tag.set, "changed after the fact")
    tag.set("other")
    # when the events are handled / then they see it as it was then
    for expected in ("caller", "explicit"):
        context = answer(queue).get_context()
        assert (context.run(tag.get), context.run(current_source.get)) == (expected, "local")
    assert current_source.get() == ""


def test_an_empty_context_is_a_context_too(registry: Registry) -> None:
    # given a busy subscriber, and a RESYNC that waits with a caller's tag
    tag: contextvars.ContextVar[str] = contextvars.ContextVar("tag", default="none")
    queue, _ = subscribe(registry, "agent", "")
    registry.submit_changes(changes({"k": "1"}))
    tag.set("first")
    registry.submit_resync({})
    # when another one is asked for with an empty context
    registry.submit_resync({}, ctx=contextvars.Context())
    answer(queue)
    # then the tag of the first is not on it
    assert answer(queue).get_context().run(tag.get) == "none"
    registry.request_resync("agent", ctx=contextvars.Context())
    assert answer(queue).get_context().run(tag.get) == "none"


def test_every_look_at_the_context_is_a_copy(registry: Registry) -> None:
    queue, _ = subscribe(registry, "agent", "")
    registry.submit_changes(changes({"k": "1"}))
    event = answer(queue)
    event.get_context().run(current_source.set, "spoiled")
    assert event.get_context().run(current_source.get) == "local"


def test_a_sources_events_name_it(mirror: Registry) -> None:
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 1, {})
    commits(mirror, (2, {"k": "v"}))
    for _ in range(2):
        assert answer(queue).get_context().run(current_source.get) == "store"


# -- orchestrated


def test_c2_the_first_resync_can_be_held_until_it_is_asked_for(mirror: Registry) -> None:
    # given a subscriber whose first RESYNC is held, and one whose is not
    held: Queue[Any] = Queue()
    mirror.watch("held", held, held, "", wait_for_resync=True)
    free, _ = subscribe(mirror, "free", "")
    snapshot(mirror, 1, {"k": "1"})
    commits(mirror, (2, {"k": "2"}))
    assert state(answer(free)) == {"k": "1"}
    assert held.empty()
    assert mirror.status().subscriptions["held"].state is SubscriptionState.WAITING
    # when it is asked for
    future = mirror.request_resync("held")
    # then it comes with what is known by now, and its answer reaches who asked
    event = take(held)
    assert (state(event), event.reason) == ({"k": "2"}, ResyncReason.INITIAL)
    event.done(ValueError("no"))
    with pytest.raises(PropagationError):
        future.result()


def test_a_resync_can_be_asked_for_at_any_time_by_name(mirror: Registry) -> None:
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 1, {"k": "1"})
    answer(queue)
    future = mirror.request_resync("agent")
    assert answer(queue).reason is ResyncReason.REQUESTED
    future.result()
    with pytest.raises(SubscriptionError, match="'nobody'"):
        mirror.request_resync("nobody")


# -- reading and status


def test_the_registry_is_a_cache_that_needs_nobody(mirror: Registry) -> None:
    snapshot(mirror, 1, {"a/1": "1", "a/2": "2", "b/1": "3"})
    commits(mirror, (2, {"a/2": None}))
    mirror.source_lost(StoreConnectionError("away"))
    found = mirror.get("a/1")
    assert found is not None
    assert plain(found.get_value(StringValue())) == "1"
    assert mirror.get("a/2") is None
    assert stored(mirror, "a/") == {"a/1": "1"}
    assert stored(mirror) == {"a/1": "1", "b/1": "3"}


def test_c18_status_tells_the_state_of_the_source(mirror: Registry) -> None:
    # given a source that was never reached
    error = StoreConnectionError("nobody at the door")
    mirror.source_lost(error)
    status = mirror.status()
    assert (status.name, status.state, status.last_error) == ("store", TransportState.WAITING, error)
    assert (status.silence, status.revision, status.reconnects) == (None, 0, 0)
    with pytest.raises(NotReadyError, match="nobody at the door") as caught:
        mirror.wait_ready(0.01)
    assert caught.value.__cause__ is error
    # when it is read, lost, and comes back
    queue, _ = subscribe(mirror, "agent", "")
    snapshot(mirror, 5, {})
    mirror.wait_ready(0)
    assert mirror.status().state is TransportState.READY
    mirror.source_lost(error)
    assert mirror.status().state is TransportState.DOWN
    commits(mirror, (6, {"k": "v"}))
    # then the status has followed
    status = mirror.status()
    assert (status.state, status.revision, status.reconnects) == (TransportState.READY, 6, 2)
    assert status.silence is not None
    assert 0 <= status.silence < 60
    answer(queue)
    answer(queue)
    mirror.close()
    assert mirror.status().state is TransportState.CLOSED


@hasty
def test_c18_status_counts_answers_and_resyncs_by_reason(mirror: Registry) -> None:
    # given a subscriber that takes two at once
    queue, registration = subscribe(mirror, "agent", "a/", "b/", in_flight=2)
    snapshot(mirror, 1, {})

    def now() -> Any:
        return mirror.status().subscriptions["agent"]

    assert (now().state, now().in_flight, now().prefixes) == (SubscriptionState.SYNCED, 1, ("a/", "b/"))
    answer(queue)
    # when changes come faster than it answers, and one is refused
    for revision in range(2, 6):
        commits(mirror, (revision, {f"a/{revision % 2}": str(revision)}))
    assert (now().state, now().pending, now().in_flight, now().ok) == (SubscriptionState.LAGGING, 2, 2, 1)
    first, second = take(queue), take(queue)
    refusal = ValueError("no")
    first.done(refusal)
    assert (now().state, now().failed, now().last_error) == (SubscriptionState.FAILING, 1, refusal)
    assert set(now().owed) == {"a/0"}
    second.done()
    for _ in range(2):
        answer(queue)
    mirror.request_resync("agent")
    assert answer(queue).reason is ResyncReason.REQUESTED
    # then the counts add up, and outlive the subscription
    found = now()
    assert (found.state, found.ok, found.failed, found.late, found.owed) == (SubscriptionState.SYNCED, 5, 1, 0, {})
    counted = {ResyncReason.INITIAL: 1, ResyncReason.REQUESTED: 1}
    assert found.resyncs == counted
    registration.close()
    assert mirror.status().resyncs == counted
    assert mirror.status().subscriptions == {}


def test_d11_subscriptions_may_come_and_go_while_others_look(registry: Registry) -> None:
    # given threads that subscribe, propagate and look at the same time
    stop = threading.Event()

    def look() -> int:
        looks = 0
        while not stop.is_set():
            for subscription in registry.subscriptions.values():
                tuple(subscription.prefixes)
            registry.status()
            registry.submit_changes(changes({"a/1": "1"}))
            looks += 1
        return looks

    def come_and_go(number: int) -> None:
        for _ in range(200):
            registry.watch(f"agent {number}", None, Queue(), "a/").close()

    with ThreadPoolExecutor(4) as pool:
        looking = pool.submit(look)
        # when it goes on for a while / then nobody is disturbed
        for future in [pool.submit(come_and_go, number) for number in range(3)]:
            future.result(30)
        stop.set()
        assert looking.result(PATIENT) > 0
    assert registry.subscriptions == {}


# -- the end


def test_c9_close_answers_everybody_who_waits(registry: Registry) -> None:
    # given callers whose changes are in flight, waiting, and in a RESYNC
    queue, _ = subscribe(registry, "agent", "")
    futures = [registry.submit_changes(changes({"k": str(number)})) for number in range(3)]
    in_flight = take(queue)
    resync = registry.submit_resync({})
    # when the registry is closed, twice
    registry.close()
    registry.close()
    # then all are told, a late answer is false, nothing is put, and new calls are refused
    for future in (*futures, resync):
        assert isinstance(future.exception(0), ClosedError)
    assert in_flight.done() is False
    assert queue.empty()
    for call in (
        lambda: registry.submit_changes({}),
        lambda: registry.submit_resync({}),
        lambda: registry.watch("late", Queue(), None),
        lambda: registry.request_resync("agent"),
        lambda: registry.wait_ready(0),
    ):
        with pytest.raises(ClosedError):
            call()
    snapshot(registry, 9, {"k": "v"})
    commits(registry, (10, {"k": "w"}))
    assert queue.empty()


def test_close_wakes_who_waits_for_readiness(mirror: Registry) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mirror.wait_ready, 30)
        wait_until(lambda: waiting.running(), "it waits")
        mirror.close()
        with pytest.raises(ClosedError):
            waiting.result(PATIENT)


def test_the_registry_is_what_the_protocols_say(registry: Registry) -> None:
    assert isinstance(registry, KeyValProtoWatcher)
    queue, registration = subscribe(registry, "agent", "")
    assert isinstance(registration, WatchRegistration)
    assert registration.resync_name == "agent"
    with registration:
        registry.submit_changes(changes({"k": "v"}))
        registry.submit_resync({})
        assert isinstance(answer(queue), ChangeEvent)
        event = answer(queue)
        assert isinstance(event, ResyncEvent)
        assert is_resync(event)
    assert registry.subscriptions == {}


@pytest.mark.parametrize("revision", [float("nan"), 1.5, -1, "7", None])
def test_c16_a_revision_that_is_no_whole_number_is_refused(registry: Registry, revision: Any) -> None:
    # given a registry that holds something
    registry.propagate_changes({"k": Change("k", StringValue(value="v"))})
    # when a change or a full state comes with such a revision / then it is refused, and the counter is as it was
    for submit in (registry.submit_changes, registry.submit_resync):
        with pytest.raises(InvalidArgumentError, match="revision of 'k' must be a whole number"):
            submit({"k": Change("k", StringValue(value="w"), revision)})
    assert registry.revision == 1


def test_c16_a_delete_under_another_key_is_refused(registry: Registry) -> None:
    # given a key
    registry.propagate_changes(changes({"k": "1"}))
    # when the delete of another one stands under it / then it is refused, as a put is, and nothing is applied
    with pytest.raises(InvalidArgumentError, match="'k' has another key: 'other'"):
        registry.submit_changes({"k": Change("other", op=Op.DELETE)})
    assert stored(registry) == {"k": "1"}


def test_c16_a_context_that_is_none_is_refused_before_anything_is_applied(registry: Registry) -> None:
    no_context: Any = {"source": "x"}
    for submit in (registry.submit_changes, registry.submit_resync):
        with pytest.raises(InvalidArgumentError, match="ctx must be a contextvars.Context, not dict"):
            submit(changes({"k": "1"}), ctx=no_context)
    assert stored(registry) == {}
