"""``with event:`` and the consumer, which is the loop around it."""

from __future__ import annotations

import threading
from queue import Queue
from typing import Any

import pytest

from datasync import Consumer, KVProtoWatchers
from datasync.errors import InvalidArgumentError, PropagationError, Rejected, SubscriptionError
from datasync.events import ChangeEvent, ResyncEvent
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import changes


@pytest.fixture
def registry() -> Any:
    with Registry("local") as made:
        yield made


def test_c20_the_end_of_the_block_is_done(registry: Registry) -> None:
    events: Queue[Any] = Queue()
    registry.watch("r", events, events, "k/")
    future = registry.submit_changes(changes({"k/a": "1"}))
    with take(events) as event:
        assert isinstance(event, ChangeEvent)
        assert not future.done()
    future.result(PATIENT)
    assert event.done() is False


def test_c20_an_exception_is_done_with_it_and_goes_on(registry: Registry) -> None:
    events: Queue[Any] = Queue()
    registry.watch("r", events, events, "k/")
    future = registry.submit_changes(changes({"k/a": "1"}))
    with pytest.raises(ZeroDivisionError), take(events):
        raise ZeroDivisionError("0")
    with pytest.raises(PropagationError) as failed:
        future.result(PATIENT)
    assert failed.value.reasons == {"r": {"": "ZeroDivisionError: 0"}}


def test_c20_a_rejection_of_keys_that_the_event_does_not_have_rejects_it_whole(registry: Registry) -> None:
    # given a block that names a wrong key
    events: Queue[Any] = Queue()
    registry.watch("r", events, events, "k/")
    future = registry.submit_changes(changes({"k/a": "1"}))
    # when it ends / then the mistake is raised, and the event is not left open
    with pytest.raises(InvalidArgumentError), take(events):
        raise Rejected({"k/b": "no"})
    with pytest.raises(PropagationError):
        future.result(PATIENT)


def test_c20_an_event_that_was_answered_inside_the_block_stays_so(registry: Registry) -> None:
    events: Queue[Any] = Queue()
    registry.watch("r", events, events, "k/")
    future = registry.submit_changes(changes({"k/a": "1"}))
    with take(events) as event:
        event.done(Rejected({"k/a": "no"}))
    with pytest.raises(PropagationError):
        future.result(PATIENT)


def test_c20_a_consumer_answers_by_returning_or_raising_and_goes_on(registry: Registry) -> None:
    # given a consumer that rejects one key, and once even wants to end the thread
    seen: list[Any] = []

    def handle(event: ChangeEvent | ResyncEvent) -> None:
        assert isinstance(event, ChangeEvent)
        (change,) = event.get_changes()
        seen.append(change.get_key())
        if change.get_key() == "k/bad":
            raise Rejected({"k/bad": "no"})
        if change.get_key() == "k/exit":
            raise SystemExit(3)

    with Consumer(registry, "r", "k/", handle=handle):
        # when good and bad changes are made
        registry.propagate_changes(changes({"k/a": "1"}), timeout=PATIENT)
        for key in ("k/bad", "k/exit"):
            with pytest.raises(PropagationError):
                registry.propagate_changes(changes({key: "1"}), timeout=PATIENT)
        registry.propagate_changes(changes({"k/b": "1"}), timeout=PATIENT)
    # then all were seen, and the subscription ends with the consumer
    assert seen == ["k/a", "k/bad", "k/exit", "k/b"]
    assert registry.status().subscriptions == {}


def test_c20_a_consumer_gets_the_resync_first_and_may_close_itself(registry: Registry) -> None:
    registry.propagate_changes(changes({"k/a": "1"}))
    closed = threading.Event()

    def handle(event: ChangeEvent | ResyncEvent) -> None:
        assert isinstance(event, ResyncEvent)
        consumer.close()
        closed.set()

    started = threading.Event()
    consumer = Consumer(registry, "r", "k/", handle=lambda event: (started.wait(PATIENT), handle(event)))
    started.set()
    assert closed.wait(PATIENT)
    consumer.close()


def test_c12_a_consumer_of_an_aggregate_hears_every_member() -> None:
    seen: list[str] = []
    with Registry("one") as one, Registry("two") as two:

        def handle(event: ChangeEvent | ResyncEvent) -> None:
            assert isinstance(event, ChangeEvent)
            seen.extend(change.get_key() for change in event.get_changes())

        with Consumer(KVProtoWatchers(one, two), "r", "k/", handle=handle):
            one.propagate_changes(changes({"k/a": "1"}), timeout=PATIENT)
            two.propagate_changes(changes({"k/b": "1"}), timeout=PATIENT)
            wait_until(lambda: sorted(seen) == ["k/a", "k/b"], "both were handled")


def test_c20_a_consumer_that_cannot_watch_leaves_nothing_behind(registry: Registry) -> None:
    with Consumer(registry, "r", "k/", handle=print), pytest.raises(SubscriptionError):
        Consumer(registry, "r", "k/", handle=print)
    with pytest.raises(InvalidArgumentError):
        Consumer(registry, "r", "k/", handle="print")  # type: ignore[arg-type]
