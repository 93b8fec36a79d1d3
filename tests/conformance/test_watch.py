"""What every transport promises to a subscriber: contract C2–C7, C9–C11, C15, C16, C18."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.api import WatchRegistration
from datasync.context import current_source
from datasync.errors import ClosedError, DecodeError, InvalidArgumentError, PropagationError, SubscriptionError
from datasync.events import ChangeEvent, ResyncEvent, ResyncReason
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.status import SubscriptionState
from tests.conformance.transports import Trait, Transport
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import is_resync, plain, removed, state, told, values

needs = pytest.mark.needs


class Subscriber:
    """Follows a subscription: ``view`` is the state that its events add up to, each of them checked on the way."""

    def __init__(self, transport: Transport, name: str, *prefixes: str, in_flight: int = 1) -> None:
        self.queue: Queue[Any] = Queue()
        self.view: dict[str, str] = {}
        self.revision = -1
        self.resyncs: list[ResyncReason] = []
        self.registration: WatchRegistration = transport.watch(
            name, self.queue, self.queue, *prefixes, in_flight=in_flight
        )

    def next(self, error: BaseException | None = None) -> Any:
        """Take the next event, check it, and answer it; its effect is in the view unless *error* is given."""
        event = take(self.queue)
        view = self._after(event)
        assert event.done(error) is True
        assert event.done() is False
        if error is None:
            self.view = view
        return event

    def _after(self, event: Any) -> dict[str, str]:
        if is_resync(event):
            self.resyncs.append(event.reason)
            assert event.revision >= self.revision
            self.revision = event.revision
            return state(event)
        view = dict(self.view)
        keys = [change.get_key() for change in event.get_changes()]
        assert len(keys) == len(set(keys)), "a key comes twice in an event"
        for change, (key, value, previous) in zip(event.get_changes(), told(event), strict=True):
            assert previous == view.get(key), f"the previous value of {key!r} is not what was there"
            assert event.redelivery or change.get_revision() > self.revision
            view.pop(key, None)
            if value is not None:
                view[key] = value
        self.revision = max(self.revision, event.revision)
        return view

    def until(self, expected: dict[str, str]) -> None:
        """Take events until the view is *expected*."""
        while self.view != expected or not self.resyncs:
            self.next()


def started(transport: Transport, name: str = "agent", *prefixes: str, in_flight: int = 1) -> Subscriber:
    """A subscriber whose first RESYNC, if there is to be one, is answered."""
    subscriber = Subscriber(transport, name, *(prefixes or ("",)), in_flight=in_flight)
    if Trait.FOLLOWS in transport.traits:
        assert subscriber.next().reason is ResyncReason.INITIAL
    return subscriber


# -- the stream


def test_c2_a_subscriber_gets_the_state_and_then_the_changes_with_the_values_before(transport: Transport) -> None:
    # given a source with keys
    transport.commit({"a/1": "0", "a/2": "2", "b/1": "x"})
    transport.commit({"a/2": None})
    transport.commit({"a/1": "1"})
    # when somebody watches
    subscriber = Subscriber(transport, "agent", "a/")
    while subscriber.view != {"a/1": "1"}:  # a source that is still being read: only the last write leads to this state
        subscriber.next()
    # then the stream began with a RESYNC, and goes on with changes that know what was there
    assert subscriber.resyncs == [ResyncReason.INITIAL]
    for values_, expected in (
        ({"a/1": "2"}, [("a/1", "2", "1")]),
        ({"a/3": "3", "b/2": "x"}, [("a/3", "3", None)]),
        ({"a/1": None}, [("a/1", None, "2")]),
    ):
        transport.commit(values_)
        event = subscriber.next()
        assert isinstance(event, ChangeEvent)
        assert told(event) == expected
    assert subscriber.resyncs == [ResyncReason.INITIAL]


@needs(Trait.FOLLOWS)
def test_c2_an_empty_source_is_a_resync_too(transport: Transport) -> None:
    subscriber = Subscriber(transport, "agent", "a/", "b/")
    event = subscriber.next()
    assert isinstance(event, ResyncEvent)
    assert (values(event), removed(event)) == ({"a/": {}, "b/": {}}, {})


def test_c2_a_late_subscriber_starts_with_the_state(transport: Transport) -> None:
    # given a subscriber, and changes that it has seen
    first = started(transport, "first")
    for number in range(3):
        transport.commit({"k": str(number)})
        first.next()
    # when another one comes / then it starts with a RESYNC, and the first one notices nothing
    late = Subscriber(transport, "late", "")
    event = late.next()
    assert (event.reason, state(event)) == (ResyncReason.INITIAL, {"k": "2"})
    assert event.revision >= first.revision
    assert first.queue.empty()


@needs(Trait.TRANSACTIONS)
def test_c4_d39_a_transaction_is_one_event(transport: Transport) -> None:
    subscriber = started(transport)
    transport.commit({"gone": "x"})
    subscriber.next()
    transport.commit({f"k{number:02}": str(number) for number in range(40)} | {"gone": None})
    event = subscriber.next()
    assert len(event.get_changes()) == 41
    assert len({change.get_revision() for change in event.get_changes()}) == 1
    assert "gone" not in subscriber.view


@needs(Trait.HISTORY)
def test_c3_two_hundred_transactions_arrive_without_a_gap_or_a_repeat(transport: Transport) -> None:
    # given a subscriber that is followed all the time (every previous value is checked), and a late one
    subscriber = started(transport, "agent", "", in_flight=1)
    expected: dict[str, str] = {}
    changed = 0
    # when many transactions are made without waiting for anybody
    for number in range(200):
        key = f"k{number % 13}"
        value = None if number % 7 == 3 and key in expected else str(number)
        transport.commit({key: value, "count": str(number)})
        changed += 2
        expected["count"] = str(number)
        expected.pop(key, None)
        if value is not None:
            expected[key] = value
    # then all of them come, in whatever events
    seen = 0
    while seen < changed:
        seen += len(subscriber.next().get_changes())
    assert (subscriber.view, seen) == (expected, changed)
    assert subscriber.queue.empty()


def test_c4_c11_one_event_is_in_flight_unless_more_were_asked_for(transport: Transport) -> None:
    # given subscribers that take one, and three at once
    one = started(transport, "one")
    three = started(transport, "three", "", in_flight=3)
    # when changes to five keys come one after another
    for number in range(5):
        transport.commit({f"k{number}": str(number)})
        # waited for, because a store's transactions that wait are merged
        most = min(3, number + 1)
        wait_until(lambda most=most: three.queue.qsize() == most, "up to three are in flight")
    status = transport.status().subscriptions
    assert (status["one"].in_flight, status["three"].in_flight) == (1, 3)
    assert one.queue.qsize() == 1
    # then each has them all, in order
    for subscriber in (one, three):
        found: list[Any] = []
        while len(found) < 5:
            found += told(subscriber.next())
        assert found == [(f"k{number}", str(number), None) for number in range(5)]


def test_c3_a_resync_is_a_barrier(transport: Transport) -> None:
    # given two queues and an unanswered change
    change_queue: Queue[Any] = Queue()
    resync_queue: Queue[Any] = Queue()
    registration = transport.watch("agent", change_queue, resync_queue, "a/")
    if Trait.FOLLOWS in transport.traits:
        take(resync_queue).done()
    transport.commit({"a/1": "1"})
    busy = take(change_queue)
    # when a RESYNC becomes due, and another change follows
    registration.register("agent", "b/")
    transport.commit({"a/1": "2"})
    # then the RESYNC waits for the answer, has that change in it, and the next change waits for its own
    wait_until(lambda: transport.status().revision > busy.get_changes()[0].get_revision(), "the change is known")
    assert resync_queue.empty()
    busy.done()
    barrier = take(resync_queue)
    assert state(barrier) == {"a/1": "2"}
    transport.commit({"a/1": "3"})
    wait_until(lambda: transport.status().subscriptions["agent"].pending == 1, "the change waits")
    assert change_queue.empty()
    barrier.done()
    event = take(change_queue)
    assert told(event) == [("a/1", "3", "2")]
    event.done()


# -- keys and prefixes


@needs(Trait.TRANSACTIONS)
def test_c5_overlapping_prefixes_give_a_key_once(transport: Transport) -> None:
    # given a subscriber with prefixes inside one another
    subscriber = started(transport, "agent", "", "a", "a/", "a/b/")
    # when keys change
    transport.commit({"a/b/1": "1", "a/2": "2", "ab": "3", "c": "4"})
    # then each comes once
    assert sorted(told(subscriber.next())) == [
        ("a/2", "2", None),
        ("a/b/1", "1", None),
        ("ab", "3", None),
        ("c", "4", None),
    ]
    # and in a RESYNC each stands under its longest prefix
    late = Subscriber(transport, "late", "", "a", "a/", "a/b/", "nothing/")
    assert values(late.next()) == {
        "": {"c": "4"},
        "a": {"ab": "3"},
        "a/": {"a/2": "2"},
        "a/b/": {"a/b/1": "1"},
        "nothing/": {},
    }


def test_c6_d36_all_subscribers_see_the_same_change(transport: Transport) -> None:
    subscribers = [started(transport, f"agent {number}", "", "k") for number in range(3)]
    for number in range(3):
        transport.commit({"k": str(number)})
        seen = [(told(event), event.get_changes()[0].get_revision()) for event in (one.next() for one in subscribers)]
        assert seen[0] == seen[1] == seen[2]


def test_c6_a_delete_of_nothing_is_not_delivered(transport: Transport) -> None:
    # given a subscriber
    subscriber = started(transport)
    # when what is not there is deleted, alone and with something else
    transport.commit({"nothing": None})
    transport.commit({"nothing": None, "k": "v"})
    # then only the something else comes
    assert told(subscriber.next()) == [("k", "v", None)]


def test_c6_a_key_that_was_deleted_and_comes_again_is_a_create(transport: Transport) -> None:
    subscriber = started(transport)
    revisions = []
    for value in ("1", None, "1"):
        transport.commit({"k": value})
        revisions.append(subscriber.next().get_changes()[0].get_revision())
    assert revisions == sorted(set(revisions))
    assert subscriber.view == {"k": "1"}


def test_d58_an_empty_value_is_a_value(transport: Transport) -> None:
    subscriber = started(transport)
    transport.commit({"k": ""})
    assert told(subscriber.next()) == [("k", "", None)]
    transport.commit({"k": "x"})
    assert told(subscriber.next()) == [("k", "x", "")]


# -- registration


def test_c11_d40_a_prefix_can_be_added_and_taken_away_while_it_runs(transport: Transport) -> None:
    # given a subscriber of one prefix, and keys under another
    subscriber = started(transport, "agent", "a/")
    other = started(transport, "other", "b/")
    transport.commit({"b/1": "1"})
    other.next()
    # when the other prefix is added
    subscriber.registration.register("agent", "b/")
    event = subscriber.next()
    # then its state comes, and its changes after that
    assert (values(event), event.reason) == ({"a/": {}, "b/": {"b/1": "1"}}, ResyncReason.PREFIX)
    transport.commit({"b/1": "2"})
    assert told(subscriber.next()) == [("b/1", "2", "1")]
    other.next()
    # and when it is taken away again, nothing of it comes, for this subscriber only
    subscriber.registration.unregister("b/")
    subscriber.registration.unregister("b/")
    transport.commit({"b/1": "3", "a/1": "1"})
    assert told(subscriber.next()) == [("a/1", "1", None)]
    assert told(other.next()) == [("b/1", "3", "2")]


def test_c11_a_name_is_taken_once_until_it_is_closed(transport: Transport) -> None:
    subscriber = started(transport, "agent", "a/")
    with pytest.raises(SubscriptionError):
        transport.watch("agent", Queue(), None, "b/")
    with pytest.raises(SubscriptionError):
        subscriber.registration.register("agent", "a/")
    with pytest.raises(SubscriptionError):
        subscriber.registration.register("another name", "b/")
    transport.commit({"a/1": "1", "b/1": "1"})
    assert told(subscriber.next()) == [("a/1", "1", None)]
    subscriber.registration.close()
    Subscriber(transport, "agent", "b/").until({"b/1": "1"})


@pytest.mark.parametrize(
    "bad",
    [
        lambda watch: watch("agent", None, None, "a/"),
        lambda watch: watch("agent", Queue(), None, 5),
        lambda watch: watch("agent", "no queue", None, "a/"),
        lambda watch: watch("", Queue(), None, "a/"),
        lambda watch: watch("agent", Queue(), None, "a/", in_flight=0),
    ],
)
def test_c16_a_useless_watch_is_refused(transport: Transport, bad: Callable[[Callable[..., Any]], object]) -> None:
    with pytest.raises(InvalidArgumentError):
        bad(transport.watch)
    assert transport.status().subscriptions == {}


def test_d05_after_close_nothing_comes_and_others_go_on(transport: Transport) -> None:
    # given two subscribers
    closed, other = started(transport, "closed"), started(transport, "other")
    # when one is closed, twice, with a change in flight
    transport.commit({"k": "1"})
    in_flight = take(closed.queue)
    closed.registration.close()
    closed.registration.close()
    assert in_flight.done() is False
    # then it gets nothing more, and the other everything
    transport.commit({"k": "2"})
    assert [told(other.next()), told(other.next())] == [[("k", "1", None)], [("k", "2", "1")]]
    assert closed.queue.empty()
    closed.registration.unregister("")
    with pytest.raises(ClosedError):
        closed.registration.register("closed", "a/")


def test_c11_without_a_queue_events_count_as_done(transport: Transport) -> None:
    # given one who wants no RESYNCs and one who wants no changes
    change_queue: Queue[Any] = Queue()
    resync_queue: Queue[Any] = Queue()
    transport.watch("no resyncs", change_queue, None, "")
    registration = transport.watch("no changes", None, resync_queue, "")
    if Trait.FOLLOWS in transport.traits:
        take(resync_queue).done()
    # when changes come
    answers = []
    for number in range(2):
        answers.append(transport.commit({"k": str(number)}))
        event = take(change_queue)
        assert told(event)[0][1] == str(number)
        event.done()
    # then nobody waits for the one without a queue
    for answer in answers:
        if answer is not None:
            answer.result()
    registration.register("no changes", "a/")
    event = take(resync_queue)
    assert state(event) == {"k": "1"}
    event.done()


# -- answers


@needs(Trait.ANSWERS)
def test_c9_the_caller_is_told_what_the_subscribers_answered(transport: Transport) -> None:
    # given two subscribers
    one, two = started(transport, "one"), started(transport, "two")
    answer = transport.commit({"k": "v"})
    assert answer is not None
    # when one refuses
    one.next(ValueError("no"))
    assert not answer.done()
    two.next()
    # then the caller knows who and why
    with pytest.raises(PropagationError, match="one: .*ValueError: no") as caught:
        answer.result()
    assert len(caught.value.errors) == 1


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected key is delivered again at once, in transports that are made after this."""
    monkeypatch.setattr("datasync.runtime.timeouts.DEFAULT_TIMEOUTS", Timeouts(failure_backoff=(0.01, 0.02)))


@pytest.mark.usefixtures("hasty")
@needs(Trait.FOLLOWS)
def test_c10_a_rejected_change_is_delivered_again_to_that_subscriber_only(transport: Transport) -> None:
    # given two subscribers
    good, bad = started(transport, "good"), started(transport, "bad")
    transport.commit({"k": "1", "gone": "1"})
    good.until({"k": "1", "gone": "1"})
    bad.until({"k": "1", "gone": "1"})
    # when one of them rejects a change
    whole = Trait.TRANSACTIONS in transport.traits
    transport.commit({"k": "2", "gone": None} if whole else {"k": "2"})
    good.next()
    bad.next(ValueError("no"))
    # then it gets its keys again, with what it accepted last, and the other notices nothing
    event = bad.next()
    assert event.redelivery
    assert sorted(told(event)) == [*[("gone", None, "1")] * whole, ("k", "2", "1")]
    assert good.queue.empty()
    status = transport.status().subscriptions["bad"]
    assert (status.failed, status.state) == (1, SubscriptionState.SYNCED)


# -- context, bad values, threads


def test_c12_the_context_names_the_source(transport: Transport) -> None:
    subscriber = started(transport)
    transport.commit({"k": "v"})
    assert subscriber.next().get_context().run(current_source.get) == transport.source
    late = Subscriber(transport, "late", "").next()
    assert late.get_context().run(current_source.get) == transport.source


def test_c16_a_value_that_does_not_decode_stops_nothing(transport: Transport) -> None:
    # given a subscriber
    queue: Queue[Any] = Queue()
    transport.watch("agent", queue, queue, "")
    if Trait.FOLLOWS in transport.traits:
        take(queue).done()
    # when something comes that is no JSON
    transport.write("bad", b"\xff{ no json")
    event = take(queue)
    (change,) = event.get_changes()
    # then its key is there, its value raises, and the stream goes on
    assert change.get_key() == "bad"
    with pytest.raises(DecodeError, match="'bad'"):
        change.get_value(StringValue())
    event.done()
    transport.commit({"bad": "mended"})
    event = take(queue)
    assert plain(event.get_changes()[0].get_value(StringValue())) == "mended"
    event.done()


def test_c15_a_consumers_thread_may_close_its_subscription_and_the_transport(transport: Transport) -> None:
    # given a consumer thread
    queue: Queue[Any] = Queue()
    registration = transport.watch("agent", queue, queue, "")
    over = threading.Event()
    if Trait.FOLLOWS in transport.traits:  # or what is committed below might be part of the first RESYNC
        take(queue).done()

    def consume() -> None:
        event = queue.get(timeout=PATIENT)
        registration.close()
        event.done()
        transport.close()
        over.set()

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    # when a change comes / then it closes everything from there
    transport.commit({"k": "v"})
    assert over.wait(PATIENT)
    thread.join(PATIENT)


def test_c18_status_follows(transport: Transport) -> None:
    # given a subscriber with a change in flight and one that waits
    subscriber = started(transport, "agent", "a/")
    transport.commit({"a/1": "1"})
    wait_until(lambda: transport.status().subscriptions["agent"].in_flight == 1, "one change is in flight")
    transport.commit({"a/1": "2"})
    wait_until(lambda: transport.status().subscriptions["agent"].pending == 1, "one change waits")
    status = transport.status().subscriptions["agent"]
    assert (status.in_flight, status.state, status.prefixes) == (1, SubscriptionState.LAGGING, ("a/",))
    # when it has answered / then it is in step
    subscriber.next()
    subscriber.next()
    status = transport.status().subscriptions["agent"]
    assert (status.in_flight, status.pending, status.failed) == (0, 0, 0)
    assert status.state is SubscriptionState.SYNCED
    assert transport.status().revision >= subscriber.revision > 0
    assert transport.status().last_error is None


def test_c11_a_watch_without_prefixes_is_of_everything(transport: Transport) -> None:
    # given a subscription that names no prefix
    queue: Queue[Any] = Queue()
    transport.watch("agent", queue, queue)
    # when keys under different prefixes change / then all of them are delivered
    for key in ("a/1", "b/1"):
        transport.commit({key: "v"})
    seen: set[str] = set()
    while len(seen) < 2:
        event = take(queue)
        if isinstance(event, ResyncEvent):
            assert list(event.get_values()) == [""]
            seen.update(pair.get_key() for pair in event.get_values()[""])
        else:
            seen.update(change.get_key() for change in event.get_changes())
        event.done()
    assert seen == {"a/1", "b/1"}
