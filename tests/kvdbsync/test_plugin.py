"""A store as a transport: when it starts, what it writes, who asks for the first RESYNC, how it ends (C2, C12–C18)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.aggregator import KVProtoWatchers
from datasync.api import KeyProtoValDeleter, KeyValProtoWatcher, WatchRegistration
from datasync.context import current_source
from datasync.errors import (
    ClosedError,
    ForkedError,
    InvalidArgumentError,
    NotReadyError,
    PermissionDenied,
    StoreConnectionError,
    SubscriptionError,
)
from datasync.events import ResyncReason
from datasync.keyval import DeleteOp, PutOp
from datasync.keyval.driver import Scan
from datasync.keyval.memory import MemoryStore
from datasync.kvdbsync.plugin import Plugin
from datasync.options import with_client_lifetime_ttl, with_prefix, with_ttl
from datasync.resync.api import ResyncOutcome
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.runtime.timeouts import Timeouts
from datasync.serializer import SerializerProto
from datasync.syncbase.status import SubscriptionState, TransportState
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import as_json, is_resync, removed, state, text, told, values

AWAY = StoreConnectionError("nobody at the door")


#: For plugins whose reader or subscribers retry.
IMPATIENT = Timeouts(retry_backoff=(0.001, 0.005), failure_backoff=(0.001, 0.01))


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """The store that the plugin uses: it can be cut off."""
    with MemoryStore(uuid4().hex) as made:
        yield made
        made.fail_with(None)


@pytest.fixture
def other(store: MemoryStore) -> Iterator[MemoryStore]:
    """Another client of the same data."""
    with MemoryStore(shared(store)) as made:
        yield made


@pytest.fixture
def plugin(store: MemoryStore) -> Iterator[Plugin]:
    """Not started yet."""
    made = Plugin(store, "/agent/", timeouts=IMPATIENT)
    yield made
    made.close()


def shared(store: MemoryStore) -> str:
    """The name under which others see the same data."""
    return store.name.removeprefix("memory://")


def put(store: MemoryStore, **values: str | None) -> None:
    """One transaction; keys have ``_`` for ``/`` and the agent's prefix in front."""
    store.commit(
        [
            DeleteOp(_key(key)) if value is None else PutOp(_key(key), f'"{value}"'.encode())
            for key, value in values.items()
        ]
    )


def _key(key: str) -> str:
    return "/agent/" + key.replace("_", "/")


def answer(queue: Queue[Any], error: BaseException | None = None) -> Any:
    event = take(queue)
    assert event.done(error) is True
    return event


def followed(plugin: Plugin) -> Queue[Any]:
    """The queue of a subscriber to everything, which has answered its first RESYNC."""
    queue: Queue[Any] = Queue()
    plugin.watch("agent", queue, queue, "")
    plugin.after_init()
    answer(queue)
    return queue


def cut_off(plugin: Plugin, store: MemoryStore) -> None:
    """Make *store* fail until it is told otherwise, and wait until *plugin* knows."""
    store.fail_with(AWAY)
    wait_until(lambda: plugin.status().state is TransportState.DOWN, "the loss is noticed")


def stored(store: MemoryStore) -> dict[str, bytes]:
    return {pair.key: pair.value for pair in store.scan("")}


# -- when it starts


def test_d34_d40_watch_works_before_and_after_the_start_and_needs_no_orchestrator(
    plugin: Plugin, other: MemoryStore
) -> None:
    # given a subscription made before the start
    put(other, a_1="1")
    early: Queue[Any] = Queue()
    plugin.watch("early", early, early, "a/")
    assert plugin.status().state is TransportState.WAITING
    assert early.empty()
    # when the plugin starts, and another one is made
    plugin.init()
    plugin.after_init()
    plugin.wait_ready(PATIENT)
    late: Queue[Any] = Queue()
    plugin.watch("late", late, late, "")
    # then both get the state, relative to the plugin's prefix, and then the changes
    assert values(answer(early)) == {"a/": {"a/1": "1"}}
    assert values(answer(late)) == {"": {"a/1": "1"}}
    put(other, a_1="2")
    for queue in (early, late):
        assert told(answer(queue)) == [("a/1", "2", "1")]


def test_starting_twice_is_starting_once(plugin: Plugin) -> None:
    plugin.after_init()
    threads = threading.active_count()
    plugin.after_init()
    plugin.init()
    assert threading.active_count() == threads


def test_c18_waiting_for_a_plugin_that_was_never_started_says_what_is_missing(plugin: Plugin) -> None:
    with pytest.raises(NotReadyError, match=r"was not started: call after_init\(\)"):
        plugin.wait_ready(0.01)


def test_a_delayed_start_is_refused_unless_it_is_allowed(plugin: Plugin, store: MemoryStore) -> None:
    # given a store that cannot be reached
    store.fail_with(AWAY)
    # when the plugin starts / then it says so, starts no thread, and can be started later
    before = threading.active_count()
    with pytest.raises(StoreConnectionError, match="nobody at the door"):
        plugin.after_init()
    with pytest.raises(StoreConnectionError), plugin_at_once(store):
        pytest.fail("it started")
    assert threading.active_count() == before
    with pytest.raises(NotReadyError, match="after_init"):
        plugin.put("k", text("v"))
    store.fail_with(None)
    plugin.after_init()
    plugin.wait_ready(PATIENT)


def plugin_at_once(store: MemoryStore) -> Plugin:
    return Plugin(store, "/agent/", timeouts=IMPATIENT)


def test_a_delayed_start_that_is_allowed_begins_when_the_store_is_there(store: MemoryStore, other: MemoryStore) -> None:
    # given a store that cannot be reached, and a plugin that may wait for it
    put(other, a_1="1")
    store.fail_with(AWAY)
    queue: Queue[Any] = Queue()
    with Plugin(store, "/agent/", allow_delayed_start=True, timeouts=IMPATIENT) as plugin:
        plugin.watch("agent", queue, queue, "a/")
        with pytest.raises(NotReadyError, match="nobody at the door") as caught:
            plugin.wait_ready(0.05)
        assert caught.value.__cause__ is AWAY
        status = plugin.status()
        assert (status.state, status.last_error) == (TransportState.WAITING, AWAY)
        assert status.subscriptions["agent"].state is SubscriptionState.WAITING
        assert queue.empty()
        # when it comes
        store.fail_with(None)
        # then everything begins, and the first RESYNC is the first
        plugin.wait_ready(PATIENT)
        event = answer(queue)
        assert (state(event), event.reason) == ({"a/1": "1"}, ResyncReason.INITIAL)


def test_c13_a_delayed_start_is_only_about_reaching_the_store(store: MemoryStore) -> None:
    # given a store that refuses
    store.fail_with(PermissionDenied("not for you"))
    # when a plugin that may wait is started / then that is an error all the same
    plugin = Plugin(store, allow_delayed_start=True, timeouts=IMPATIENT)
    with pytest.raises(PermissionDenied, match="not for you"):
        plugin.after_init()
    plugin.close()


def test_c13_permission_denied_later_is_an_error_and_not_an_empty_store(
    plugin: Plugin, store: MemoryStore, other: MemoryStore
) -> None:
    # given a subscriber with a state
    put(other, k="v")
    queue = followed(plugin)
    # when permission is revoked
    denied = PermissionDenied("not any more")
    store.fail_with(denied)
    wait_until(lambda: plugin.status().last_error is denied, "the error is known")
    # then the last known state is still there, and nothing was told to the subscriber
    assert plugin.status().state is TransportState.DOWN
    assert plugin.registry.get("k") is not None
    assert queue.empty()


# -- following


def test_d30_a_change_during_the_first_listing_is_not_lost(other: MemoryStore) -> None:
    # given a store whose listing is under way when a key changes
    class Slow(MemoryStore):
        def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
            scan = super().scan(prefix, keys_only=keys_only)
            put(other, a_1="changed after the listing", a_2="new")
            return scan

    put(other, a_1="listed")
    queue: Queue[Any] = Queue()
    with Slow(shared(other)) as slow:
        plugin = Plugin(slow, "/agent/", timeouts=IMPATIENT)
        plugin.watch("agent", queue, queue, "a/")
        # when it is followed
        with plugin:
            # then the state and the changes add up, with the right value before
            assert state(answer(queue)) == {"a/1": "listed"}
            assert told(answer(queue)) == [("a/1", "changed after the listing", "listed"), ("a/2", "new", None)]


def test_c12_d33_a_source_that_is_down_never_looks_like_all_keys_deleted(
    plugin: Plugin, store: MemoryStore, other: MemoryStore
) -> None:
    # given a subscriber with a state, and a change that it has seen
    put(other, a="1", b="1")
    queue = followed(plugin)
    put(other, c="1")
    answer(queue)
    # when the store is cut off, and changes meanwhile
    cut_off(plugin, store)
    put(other, a=None, b="2")
    late: Queue[Any] = Queue()
    plugin.watch("late", late, late, "")
    # then whoever comes now gets the last known state, and nobody is told that keys are gone
    assert state(answer(late)) == {"a": "1", "b": "1", "c": "1"}
    assert queue.empty()
    # and when it is back the stream goes on where it was: no RESYNC, no gap
    store.fail_with(None)
    assert sorted(told(answer(queue))) == [("a", None, "1"), ("b", "2", "1")]
    status = plugin.status()
    assert (status.state, status.reconnects >= 1) == (TransportState.READY, True)
    assert status.resyncs == {ResyncReason.INITIAL: 2}


def test_d32_after_a_compaction_while_cut_off_the_missed_deletes_are_listed(
    plugin: Plugin, store: MemoryStore, other: MemoryStore
) -> None:
    # given a subscriber with a state
    put(other, a="1", b="1")
    queue = followed(plugin)
    # when the store is cut off, changes, and forgets how
    cut_off(plugin, store)
    put(other, a=None, b="2", c="1")
    other.compact()
    store.fail_with(None)
    # then a RESYNC says what is and what is gone, and the values before are those of the new state
    event = answer(queue)
    assert (event.reason, state(event), removed(event)) == (
        ResyncReason.COMPACTED,
        {"b": "2", "c": "1"},
        {"a": "1"},
    )
    put(other, b="3", a="again")
    assert sorted(told(answer(queue))) == [("a", "again", None), ("b", "3", "2")]


def test_c13_a_store_that_went_back_in_time_is_listed_again(
    plugin: Plugin, store: MemoryStore, other: MemoryStore
) -> None:
    put(other, a="1", b="1")
    queue = followed(plugin)
    cut_off(plugin, store)
    other.rewind()
    store.fail_with(None)
    event = answer(queue)
    assert (event.reason, state(event), removed(event)) == (ResyncReason.REWOUND, {}, {"a": "1", "b": "1"})
    put(other, b="restored")
    assert told(answer(queue)) == [("b", "restored", None)]


def test_c13_one_reader_serves_all_subscriptions(plugin: Plugin, store: MemoryStore) -> None:
    # given a running plugin
    plugin.after_init()
    plugin.wait_ready(PATIENT)
    readers = [thread.name for thread in threading.enumerate() if "reader" in thread.name]
    # when many subscribe
    for number in range(20):
        plugin.watch(f"agent {number}", None, Queue(), "a/", f"b{number}/")
    # then there is still one reader
    assert [thread.name for thread in threading.enumerate() if "reader" in thread.name] == readers
    assert len(readers) == 1


def test_c11_d40_prefixes_may_come_and_go_after_the_start(plugin: Plugin, other: MemoryStore) -> None:
    put(other, a_1="1", b_1="1")
    queue: Queue[Any] = Queue()
    registration = plugin.watch("agent", queue, queue, "a/")
    plugin.after_init()
    answer(queue)
    registration.register("agent", "b/")
    event = answer(queue)
    assert (values(event), event.reason) == ({"a/": {"a/1": "1"}, "b/": {"b/1": "1"}}, ResyncReason.PREFIX)
    with pytest.raises(SubscriptionError):
        registration.register("agent", "b/")
    registration.unregister("a/")
    put(other, a_1="2", b_1="2")
    assert told(answer(queue)) == [("b/1", "2", "1")]


# -- writing


def test_c17_put_and_delete_write_under_the_prefix_and_come_back_as_changes(plugin: Plugin, store: MemoryStore) -> None:
    # given a subscriber of its own plugin
    queue: Queue[Any] = Queue()
    plugin.after_init()
    plugin.watch("agent", queue, queue, "")
    answer(queue)
    assert isinstance(plugin, KeyProtoValDeleter)
    assert isinstance(plugin, KeyValProtoWatcher)
    # when it writes
    plugin.put("a/1", text("1"))
    plugin.put("a/2", text("2"))
    assert stored(store) == {"/agent/a/1": as_json("1"), "/agent/a/2": as_json("2")}
    assert plugin.delete("a/1")
    assert not plugin.delete("a/1")
    assert plugin.delete("a", with_prefix())
    # then the subscriber sees it
    seen: list[Any] = []
    while len(seen) < 4:
        seen += told(answer(queue))
    assert seen == [("a/1", "1", None), ("a/2", "2", None), ("a/1", None, "1"), ("a/2", None, "2")]


def test_c17_a_value_may_live_as_long_as_the_store_or_a_time(plugin: Plugin, store: MemoryStore) -> None:
    plugin.after_init()
    plugin.put("mine", text("1"), with_client_lifetime_ttl())
    plugin.put("short", text("1"), with_ttl(3600))
    plugin.put("stays", text("1"))
    with MemoryStore(shared(store)) as witness:
        plugin.close()
        assert set(stored(witness)) == {"/agent/mine", "/agent/short", "/agent/stays"}
        store.close()
        assert set(stored(witness)) == {"/agent/short", "/agent/stays"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("k", None), "message"),
        (("k", b"bytes"), "message"),
        (("", text("v")), "a key"),
        ((None, text("v")), "a key"),
        (("k", text("v"), with_prefix()), "option"),
        (("k", text("v"), "ttl"), "option"),
        (("k", text("v"), with_ttl(1), with_client_lifetime_ttl()), "not both"),
    ],
)
def test_c16_d52_a_bad_put_is_refused_and_nothing_is_written(
    plugin: Plugin, store: MemoryStore, args: tuple[Any, ...], says: str
) -> None:
    plugin.after_init()
    with pytest.raises(InvalidArgumentError, match=says):
        plugin.put(*args)
    assert stored(store) == {}


def test_c16_a_bad_delete_is_refused(plugin: Plugin, store: MemoryStore, other: MemoryStore) -> None:
    put(other, k="v")
    plugin.after_init()
    for args in (("",), (None,), ("k", with_ttl(1)), ("k", "prefix")):
        with pytest.raises(InvalidArgumentError):
            plugin.delete(*args)  # type: ignore[arg-type]
    assert stored(store) == {"/agent/k": b'"v"'}


def test_writing_is_refused_before_the_start_and_after_the_end(plugin: Plugin, store: MemoryStore) -> None:
    for write in (lambda: plugin.put("k", text("v")), lambda: plugin.delete("k")):
        with pytest.raises(NotReadyError, match="'k'"):
            write()
    plugin.after_init()
    plugin.close()
    for write in (lambda: plugin.put("k", text("v")), lambda: plugin.delete("k"), plugin.after_init):
        with pytest.raises(ClosedError):
            write()
    assert stored(store) == {}


def test_a_serializer_of_ones_own_reads_and_writes(store: MemoryStore) -> None:
    queue: Queue[Any] = Queue()
    with Plugin(store, serializer=SerializerProto()) as plugin:
        plugin.watch("agent", queue, queue, "")
        answer(queue)
        plugin.put("k", text("binary"))
        assert told(answer(queue)) == [("k", "binary", None)]
        assert stored(store) == {"k": text("binary").SerializeToString()}


@pytest.mark.parametrize(
    "bad",
    [
        {"kv": None},
        {"kv": "memory://"},
        {"prefix": None},
        {"prefix": b"/agent/"},
        {"resync": 5},
        {"serializer": "json"},
    ],
)
def test_c16_a_plugin_of_the_wrong_things_is_refused(store: MemoryStore, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Plugin(**{"kv": store, **bad})


# -- orchestrated


@pytest.fixture
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator(ack_timeout=5) as made:
        yield made


def consume(queue: Queue[Any], seen: list[Any], error: BaseException | None = None) -> threading.Thread:
    """Answers everything until None comes."""

    def run() -> None:
        while (event := queue.get(timeout=PATIENT)) is not None:
            seen.append(event)
            event.done(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_c2_c14_with_an_orchestrator_the_first_resync_waits_for_it(
    store: MemoryStore, other: MemoryStore, orchestrator: Orchestrator
) -> None:
    # given subscriptions of a plugin with an orchestrator, made before and after the start
    put(other, a="1")
    with Plugin(store, "/agent/", orchestrator, timeouts=IMPATIENT) as plugin:
        queue: Queue[Any] = Queue()
        registration = plugin.watch("agent", queue, queue, "")
        assert isinstance(registration, WatchRegistration)
        plugin.wait_ready(PATIENT)
        put(other, a="2")
        wait_until(lambda: plugin.registry.revision > 2, "the change was read")
        assert queue.empty()
        # when it is asked to begin
        seen: list[Any] = []
        consumer = consume(queue, seen)
        report = orchestrator.do_resync()
        # then the RESYNC has what is known by then, and its answer is in the report
        assert report.ok
        assert [(one.resync_name, one.outcome) for one in report.results] == [("agent", ResyncOutcome.APPLIED)]
        assert (state(seen[0]), seen[0].reason) == ({"a": "2"}, ResyncReason.INITIAL)
        # and changes follow, and a later resync is a requested one
        put(other, a="3")
        wait_until(lambda: len(seen) == 2, "the change came")
        assert told(seen[1]) == [("a", "3", "2")]
        assert orchestrator.do_resync().ok
        assert seen[2].reason is ResyncReason.REQUESTED
        queue.put(None)
        consumer.join(PATIENT)


def test_c2_a_subscription_that_comes_after_the_first_do_resync_does_not_wait_for_another(
    store: MemoryStore, other: MemoryStore, orchestrator: Orchestrator
) -> None:
    # given an orchestrator that has done its resync, as an agent has it do once after all is set up
    put(other, a="1")
    with Plugin(store, "/agent/", orchestrator, timeouts=IMPATIENT) as plugin:
        plugin.wait_ready(PATIENT)
        assert orchestrator.do_resync().ok
        # when a subscription is made / then it is not left waiting for ever
        queue: Queue[Any] = Queue()
        plugin.watch("late", queue, queue, "")
        event = take(queue)
        assert (state(event), event.reason) == ({"a": "1"}, ResyncReason.INITIAL)
        event.done()


def test_c14_d29_a_refused_resync_is_in_the_report(store: MemoryStore, orchestrator: Orchestrator) -> None:
    with Plugin(store, "/agent/", orchestrator, timeouts=IMPATIENT) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue, "")
        plugin.wait_ready(PATIENT)
        seen: list[Any] = []
        refusal = ValueError("no")
        consumer = consume(queue, seen, refusal)
        report = orchestrator.do_resync()
        queue.put(None)
        consumer.join(PATIENT)
    assert [result.outcome for result in report.results] == [ResyncOutcome.FAILED]
    assert "agent" in str(report)
    error = report.results[0].error
    assert getattr(error, "errors", None) == {"agent": refusal}


def test_c12_d26_two_plugins_share_an_orchestrator_and_a_name_and_each_speaks_for_itself(
    store: MemoryStore, other: MemoryStore, orchestrator: Orchestrator
) -> None:
    # given two stores seen as one
    put(other, a="of the first")
    second = MemoryStore("second")
    second.commit([PutOp("/agent/b", b'"of the second"')])
    queue: Queue[Any] = Queue()
    with (
        second,
        Plugin(store, "/agent/", orchestrator, timeouts=IMPATIENT) as one,
        Plugin(second, "/agent/", orchestrator, timeouts=IMPATIENT) as two,
    ):
        one.wait_ready(PATIENT)
        two.wait_ready(PATIENT)
        registration = KVProtoWatchers(one, two).watch("agent", queue, queue, "")
        seen: list[Any] = []
        consumer = consume(queue, seen)
        # when all start over
        report = orchestrator.do_resync()
        # then each sends its own keys under its own name, in order
        assert [result.outcome for result in report.results] == [ResyncOutcome.APPLIED] * 2
        assert [(event.get_context().run(current_source.get), state(event)) for event in seen] == [
            (f"{store.name}#/agent/", {"a": "of the first"}),
            (f"{second.name}#/agent/", {"b": "of the second"}),
        ]
        # and one of them losing its source says nothing about the keys of either
        second.fail_with(AWAY)
        wait_until(lambda: two.status().state is TransportState.DOWN, "the loss is noticed")
        put(other, a="changed")
        wait_until(lambda: len(seen) == 3, "the change came")
        assert told(seen[2]) == [("a", "changed", "of the first")]
        # and closing what is both ends both
        registration.close()
        assert one.status().subscriptions == two.status().subscriptions == {}
        assert orchestrator.do_resync().results == ()
        queue.put(None)
        consumer.join(PATIENT)
        second.fail_with(None)


def test_c14_closing_a_registration_or_the_plugin_leaves_the_order(
    store: MemoryStore, orchestrator: Orchestrator
) -> None:
    # given three subscriptions
    plugin = Plugin(store, "/agent/", orchestrator, timeouts=IMPATIENT)
    plugin.after_init()
    plugin.wait_ready(PATIENT)
    registrations = [plugin.watch(name, None, Queue(1), "") for name in ("one", "two", "three")]
    # when one of them is closed, twice
    registrations[1].close()
    registrations[1].close()
    assert [place.resync_name for place in orchestrator._registrations] == ["one", "three"]
    # and then the plugin
    plugin.close()
    # then nobody is asked any more
    assert orchestrator.do_resync().results == ()
    with pytest.raises(ClosedError):
        plugin.watch("late", None, Queue(), "")
    assert orchestrator._registrations == []


def test_a_name_that_is_taken_takes_no_place_in_the_order(store: MemoryStore, orchestrator: Orchestrator) -> None:
    with Plugin(store, "/agent/", orchestrator, timeouts=IMPATIENT) as plugin:
        plugin.watch("agent", None, Queue(), "")
        with pytest.raises(SubscriptionError):
            plugin.watch("agent", None, Queue(), "")
        assert len(orchestrator._registrations) == 1
        # and a closed orchestrator leaves no subscription behind
        orchestrator.close()
        with pytest.raises(ClosedError):
            plugin.watch("other", None, Queue(), "")
        assert list(plugin.status().subscriptions) == ["agent"]


def test_c14_a_resync_before_the_store_could_be_read_is_not_applied(store: MemoryStore) -> None:
    # given a store that is away
    store.fail_with(AWAY)
    queue: Queue[Any] = Queue()
    with (
        Orchestrator(ack_timeout=0.05) as orchestrator,
        Plugin(store, "/agent/", orchestrator, allow_delayed_start=True, timeouts=IMPATIENT) as plugin,
    ):
        plugin.watch("agent", queue, queue, "")
        # when a resync is asked for / then the report says that it was not applied
        assert [result.outcome for result in orchestrator.do_resync().results] == [ResyncOutcome.TIMED_OUT]
        # and it comes when the store does; the late answer poisons nothing
        store.fail_with(None)
        answer(queue)
        assert plugin.status().subscriptions["agent"].state is SubscriptionState.SYNCED
        assert orchestrator.late_acks == 1


# -- the end


def test_d05_d38_close_ends_the_threads_and_leaves_the_store_open(plugin: Plugin, store: MemoryStore) -> None:
    # given a running plugin with a consumer that never reads
    before = set(threading.enumerate())
    stuck: Queue[Any] = Queue(1)
    stuck.put("in the way")
    plugin.watch("stuck", stuck, stuck, "")
    plugin.after_init()
    plugin.wait_ready(PATIENT)
    # when it is closed, twice
    plugin.close()
    plugin.close()
    # then its threads are gone, and the store works for others
    assert set(threading.enumerate()) <= before
    assert plugin.status().state is TransportState.CLOSED
    put(store, k="v")
    assert stored(store) == {"/agent/k": b'"v"'}


def test_close_without_a_start(plugin: Plugin) -> None:
    queue: Queue[Any] = Queue()
    plugin.watch("agent", queue, queue, "")
    plugin.close()
    assert queue.empty()


def test_c15_close_from_a_consumers_thread(plugin: Plugin, other: MemoryStore) -> None:
    # given a consumer that closes the plugin when it sees a change
    queue: Queue[Any] = Queue()
    plugin.watch("agent", queue, queue, "")
    plugin.after_init()
    over = threading.Event()

    def run() -> None:
        while True:
            event = queue.get(timeout=PATIENT)
            if not is_resync(event):
                plugin.close()
                assert event.done() is False
                break
            event.done()
        over.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    # when one comes / then it ends
    put(other, k="v")
    assert over.wait(PATIENT)
    thread.join(PATIENT)


def test_c15_close_from_eight_threads_at_once(plugin: Plugin, other: MemoryStore) -> None:
    plugin.after_init()
    start = threading.Barrier(8)

    def close() -> None:
        start.wait(PATIENT)
        plugin.close()

    with ThreadPoolExecutor(8) as pool:
        for closing in [pool.submit(close) for _ in range(8)]:
            closing.result(PATIENT)


def test_c15_close_while_it_is_connecting() -> None:
    # given a store whose listing takes as long as it likes
    listing, go_on = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
            listing.set()
            go_on.wait(PATIENT)
            return super().scan(prefix, keys_only=keys_only)

    queue: Queue[Any] = Queue()
    with Slow() as store:
        plugin = Plugin(store, timeouts=IMPATIENT)
        plugin.watch("agent", queue, queue, "")
        plugin.after_init()
        assert listing.wait(PATIENT)
        # when it is closed meanwhile
        with ThreadPoolExecutor(1) as pool:
            closing = pool.submit(plugin.close)
            wait_until(lambda: plugin.status().state is TransportState.CLOSED, "it is closed")
            go_on.set()
            closing.result(PATIENT)
        # then nothing that was read afterwards reaches anybody
        assert queue.empty()


def test_a_store_that_is_closed_by_the_application_ends_the_reader(plugin: Plugin, store: MemoryStore) -> None:
    plugin.after_init()
    plugin.wait_ready(PATIENT)
    store.close()
    wait_until(lambda: plugin.status().state is TransportState.DOWN, "the end is noticed")
    assert isinstance(plugin.status().last_error, ClosedError)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_i17_a_forked_child_is_refused_and_the_parent_goes_on(plugin: Plugin, other: MemoryStore) -> None:
    # given a running plugin
    queue: Queue[Any] = Queue()
    registration = plugin.watch("agent", queue, queue, "")
    plugin.after_init()
    answer(queue)
    child = os.fork()
    if not child:
        code = 1
        try:
            # when a child uses it / then it is refused, and close is silent
            for use in (
                lambda: plugin.put("k", text("v")),
                lambda: plugin.delete("k"),
                lambda: plugin.watch("new", queue, queue, ""),
                plugin.init,
                plugin.after_init,
                plugin.status,
                lambda: plugin.wait_ready(0),
            ):
                with pytest.raises(ForkedError):
                    use()
            registration.close()
            plugin.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    put(other, k="v")
    assert told(answer(queue)) == [("k", "v", None)]


def test_c16_no_value_is_in_the_log_or_the_errors(
    plugin: Plugin, store: MemoryStore, other: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    # given everything logged, and a value that must not be shown
    caplog.set_level("DEBUG", logger="datasync")
    queue = followed(plugin)
    # when it is written, read, refused, cut off and compacted
    plugin.put("k", text("canary-9"))
    answer(queue, ValueError("no"))
    answer(queue)
    cut_off(plugin, store)
    other.commit([PutOp("/agent/k", b'"canary-9" and no json')])
    other.compact()
    store.fail_with(None)
    event = answer(queue)
    with pytest.raises(Exception, match="'k'") as caught:
        next(event.get_values()[""]).get_value(StringValue())
    # then it is nowhere
    assert "canary-9" not in caplog.text
    assert "canary-9" not in repr(event) + repr(caught.value) + repr(plugin.status())


def test_c12_two_plugins_on_one_store_are_told_apart(store: MemoryStore) -> None:
    # given one store seen through two prefixes, a third view without one, and a name of the user's choice
    queue: Queue[Any] = Queue()
    for plugin, expected in (
        (Plugin(store, "/vnf-agent/vpp1/"), f"{store.name}#/vnf-agent/vpp1/"),
        (Plugin(store, "/vnf-agent/vpp2/"), f"{store.name}#/vnf-agent/vpp2/"),
        (Plugin(store), store.name),
        (Plugin(store, "/x/", name="northbound"), "northbound"),
    ):
        with plugin:
            plugin.watch("agent", queue, queue, "")
            event = take(queue)
            # then each event says which it came from, and so does the status
            assert event.get_context().run(current_source.get) == plugin.status().name == expected


def test_c15_a_start_that_found_no_thread_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a process that can have no more threads
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with MemoryStore() as store:
        plugin = Plugin(kv=store, timeouts=IMPATIENT)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                plugin.after_init()
        # when one can be had again / then the plugin starts
        plugin.after_init()
        plugin.wait_ready(PATIENT)
        plugin.close()
