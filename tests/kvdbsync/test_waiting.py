"""Read your writes through a store: its results, the mirror, the subscriber, a view, an aggregate (C17, C21)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync import Consumer, View, codecs
from datasync.aggregator import AggregatedRegistration, KVProtoWatchers, KVProtoWriters
from datasync.commits import Batch, WriteResult
from datasync.errors import (
    AggregateError,
    ClosedError,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    PropagationError,
    Rejected,
    StoreConnectionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.keyval import Store, connect
from datasync.keyval.driver import Stream
from datasync.keyval.kvproto import ProtoWrapper
from datasync.keyval.memory import MemoryStore
from datasync.keyval.types import Capability
from datasync.kvdbsync.plugin import Plugin
from datasync.options import with_prefix
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import text
from tests.support.servers import etcd34, etcd35  # noqa: F401

#: A reader that comes back soon, and keys that stay owed.
IMPATIENT = Timeouts(retry_backoff=(0.001, 0.005), failure_backoff=(PATIENT, PATIENT))


@pytest.fixture(
    params=["memory", "sqlite", *(pytest.param(name, marks=pytest.mark.etcd) for name in ("etcd34", "etcd35"))]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid4().hex}"
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/store.db"
    found: str = request.getfixturevalue(request.param).url
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with connect(url) as made:
        yield made


@pytest.fixture
def plugin(store: Store) -> Iterator[Plugin[Any]]:
    """A plugin of JSON values below a prefix of its own."""
    with Plugin(store, f"/{uuid4().hex}/", codec=codecs.json) as made:
        made.wait_ready(PATIENT)
        yield made
        assert not made.registry._core.waiters.waiting, "a waiter is left behind"


def test_c17_c21_every_write_returns_its_revision_and_a_delete_tells_truly(store: Store) -> None:
    # given brokers of bytes and of messages
    broker, prefix = store.new_broker(f"/{uuid4().hex}/"), f"/{uuid4().hex}/"
    proto = ProtoWrapper(store).new_broker(prefix)
    # when they write
    results = [
        broker.put("a", b"1"),
        proto.put("b", text("1")),
        broker.new_txn().put("c", b"1").put("d", b"2").commit(),
        broker.delete("a"),
        proto.delete("b"),
        broker.delete("c", with_prefix()),
    ]
    # then each has the revision at which the store has it
    revisions = [result.revision for result in results]
    assert revisions == sorted(set(revisions))
    assert broker.get_value("d").revision == revisions[2]
    assert all(results)
    # and a delete of nothing is false, at the revision at which there was nothing
    nothing = broker.delete("a")
    assert not nothing
    assert isinstance(nothing, WriteResult)
    assert nothing.revision >= revisions[-1]
    assert not proto.delete("b", with_prefix())


def test_c21_the_mirror_has_what_was_waited_for(store: Store, plugin: Plugin[Any]) -> None:
    for number in range(30):
        plugin.wait_for(plugin.put("k", {"n": number}), PATIENT)
        found = plugin.get("k")
        assert found is not None
        assert found.value == {"n": number}
    plugin.wait_for(plugin.put_raw("raw", b"7"), PATIENT)
    assert [pair.key for pair in plugin.items()] == ["k", "raw"]
    plugin.wait_for(plugin.delete("k"), PATIENT)
    assert plugin.get("k") is None
    # a write of another client of the store counts as well
    broker = store.new_broker(plugin._prefix)
    plugin.wait_for(broker.new_txn().put("x", b"1").put("y", b"2").commit(), PATIENT)
    assert plugin.get("y") is not None
    # and all keys under a prefix
    plugin.wait_for(plugin.delete("x", with_prefix()), PATIENT)
    assert plugin.get("x") is None
    plugin.wait_for(plugin.delete("x"), PATIENT)


def test_c21_a_delete_of_nothing_does_not_wait_for_word_of_strangers(store: Store, plugin: Plugin[Any]) -> None:
    # given keys of others, of whose revisions a store may tell late
    plugin.wait_for(plugin.put("k", 1), PATIENT)
    registration = plugin.watch("w", *[(events := Queue[Any]())] * 2)
    take(events).done()
    store.new_broker(f"/{uuid4().hex}").put("elsewhere", b"1")
    # when nothing is deleted / then the mirror agrees
    for nothing in (plugin.delete("x"), plugin.delete("x", with_prefix())):
        assert not nothing
        plugin.wait_for(nothing, PATIENT)
        registration.wait_synced(nothing, PATIENT)


class _HeldStream(Stream):
    """A stream whose batches wait for *gate*."""

    def __init__(self, stream: Stream, gate: threading.Event) -> None:
        self._stream, self._gate = stream, gate

    def __iter__(self) -> Iterator[Batch | None]:
        for batch in self._stream:
            assert self._gate.wait(PATIENT)
            yield batch

    def cancel(self) -> None:
        self._stream.cancel()


class HeldStore(MemoryStore):
    """A store whose streams deliver while ``gate`` is set."""

    gate: threading.Event

    def stream(self, prefix: str, after: int) -> Stream:
        return _HeldStream(super().stream(prefix, after), self.gate)


def test_c21_a_delete_of_nothing_waits_for_what_others_put_and_deleted_before() -> None:
    # given a mirror that is behind: it has not seen yet that another client put a key and deleted it
    with HeldStore() as store:
        store.gate = gate = threading.Event()
        gate.set()
        with Plugin(store, "p/", codec=codecs.json) as plugin, ThreadPoolExecutor(2) as threads:
            plugin.wait_for(plugin.put("k", 1), PATIENT)
            plugin.wait_for(plugin.delete("k"), PATIENT)
            registration = plugin.watch("w", None, Queue())
            gate.clear()
            broker = store.new_broker("p/")
            broker.put("k", b"2")
            broker.delete("k")
            # when nothing is deleted / then the mirror is waited for, which would show the older value afterwards
            nothing = plugin.delete("k")
            assert not nothing
            waits = [threads.submit(plugin.wait_for, nothing, PATIENT)]
            waits.append(threads.submit(registration.wait_synced, nothing, PATIENT))
            waiting = plugin.registry._core.waiters.waiting
            try:
                wait_until(lambda: len(waiting) == 2 or any(wait.done() for wait in waits), "both wait")
                assert not any(wait.done() for wait in waits)
            finally:
                gate.set()
            waits[0].result(PATIENT)
            assert plugin.registry.revision >= nothing.revision


def test_c21_the_subscriber_has_answered_what_was_waited_for(plugin: Plugin[Any]) -> None:
    applied: dict[str, Any] = {}

    def handle(event: Any) -> None:
        pairs = (
            [pair for pairs in event.get_values().values() for pair in pairs]
            if hasattr(event, "get_values")
            else event.get_changes()
        )
        for pair in pairs:
            if pair.value == "bad":
                raise Rejected({pair.key: "no"})
            applied[pair.key] = pair.value

    queue: Queue[Any] = Queue()
    registration = plugin.watch("w", queue, queue)
    with Consumer(plugin, "c", handle=handle) as consumer:
        for number in range(20):
            consumer.wait_synced(plugin.put("k", number), PATIENT)
            assert applied["k"] == number
        with pytest.raises(PropagationError) as told:
            consumer.wait_synced(plugin.put("b", "bad"), PATIENT)
        assert list(told.value.reasons["c"]) == ["b"]
    # and one that answers nothing is late
    with pytest.raises(DoneTimeout, match="'w' has not answered"):
        registration.wait_synced(timeout=0.01)


def test_c21_a_view_has_what_it_has_put_although_other_keys_are_bad(store: Store, plugin: Plugin[Any]) -> None:
    plugin.put_raw("p/bad", b"{")
    with View(plugin, "view", "p/") as view:
        view.wait_synced(PATIENT)
        for number in range(20):
            view.put("p/k", {"n": number}, PATIENT)
            assert view["p/k"] == {"n": number}
        # when the bad one is mended / then it is good
        view.put("p/bad", [1], PATIENT)
        assert view["p/bad"] == [1]
        assert not view.problems
        # and a key that never arrives is not written
        with pytest.raises(InvalidArgumentError, match="'q/k' is under no prefix of the view 'view'"):
            view.put("q/k", 1)
        assert not store.new_broker(plugin._prefix).get_value("q/k").found


def test_c21_a_plugin_with_an_orchestrator_can_be_waited_for(store: Store) -> None:
    orchestrator, events = Orchestrator(), Queue[Any]()
    with orchestrator, Plugin(store, f"/{uuid4().hex}/", orchestrator, codec=codecs.json) as plugin:
        registration = plugin.watch("w", events, events)
        written = plugin.put("k", 1)
        plugin.wait_for(written, PATIENT)
        with ThreadPoolExecutor(2) as threads:
            wait = threads.submit(registration.wait_synced, written, PATIENT)
            asked = threads.submit(orchestrator.do_resync)
            assert not wait.done()
            take(events).done()
            asked.result(PATIENT)
            wait.result(PATIENT)


def test_c21_a_plugin_that_was_not_started_or_is_closed_says_so(store: Store) -> None:
    plugin: Plugin[Any] = Plugin(store, codec=codecs.json)
    with pytest.raises(NotReadyError, match=r"was not started: call after_init\(\)"):
        plugin.wait_for(1)
    plugin.close()
    with pytest.raises(ClosedError):
        plugin.wait_for(1)


# Faults of a store.


@pytest.fixture
def memory() -> Iterator[MemoryStore]:
    with MemoryStore(uuid4().hex) as made:
        yield made
        made.fail_with(None)


def test_c21_a_write_outside_the_prefix_is_waited_for(memory: MemoryStore) -> None:
    with Plugin(memory, "p/", codec=codecs.json) as plugin:
        plugin.wait_for(memory.new_broker().put("elsewhere", b"1"), PATIENT)
        assert plugin.items() == []


def test_c21_a_store_that_is_lost_and_comes_back_is_waited_for(memory: MemoryStore) -> None:
    other = MemoryStore(memory.name.removeprefix("memory://"))
    with other, Plugin(memory, codec=codecs.json, timeouts=IMPATIENT) as plugin, ThreadPoolExecutor(1) as threads:
        plugin.wait_ready(PATIENT)
        memory.fail_with(StoreConnectionError("nobody at the door"))
        wait_until(lambda: plugin.registry.status().last_error, "the store is lost")
        written = other.new_broker().put("k", b"1")
        with pytest.raises(DoneTimeout, match="nobody at the door"):
            plugin.wait_for(written, 0.01)
        wait = threads.submit(plugin.wait_for, written, PATIENT)
        memory.fail_with(None)
        wait.result(PATIENT)


def test_c21_a_store_that_is_closed_ends_the_wait() -> None:
    store = MemoryStore()
    with Plugin(store, codec=codecs.json) as plugin, ThreadPoolExecutor(1) as threads:
        plugin.wait_ready(PATIENT)
        wait = threads.submit(plugin.wait_for, 1000, PATIENT)
        wait_until(lambda: plugin.registry._core.waiters.waiting, "it waits")
        store.close()
        with pytest.raises(ClosedError, match="is not read any more"):
            wait.result(PATIENT)


def test_c21_what_was_written_after_a_rewind_is_waited_for_and_what_was_before_may_be_lost(memory: MemoryStore) -> None:
    other = MemoryStore(memory.name.removeprefix("memory://"))
    with other, Plugin(memory, codec=codecs.json, timeouts=IMPATIENT) as plugin:
        # given a mirror at a high revision, and a view
        for number in range(20):
            lost = plugin.put("k", number)
        plugin.wait_for(lost, PATIENT)
        with View(plugin, "view") as view:
            view.wait_synced(PATIENT)
            # when the store loses everything while the reader is away, and is written to
            reads, plugin._kv.stream = plugin._kv.stream, _away  # type: ignore[method-assign]
            memory.fail_with(StoreConnectionError("away"))
            wait_until(lambda: plugin.registry.status().last_error, "the store is lost")
            memory.fail_with(None)
            other.rewind()
            written = plugin.put("k", "new")
            assert written.revision < plugin.registry.revision
            # then the old mirror is not taken for one that has it
            with pytest.raises(DoneTimeout):
                plugin.wait_for(written, 0.05)
            with pytest.raises(DoneTimeout, match="'k' was written, and the view 'view' did not receive it within"):
                view.put("k", "newer", 0.05)
            plugin._kv.stream = reads  # type: ignore[method-assign]
            view.put("k", "newest", PATIENT)
            assert view["k"] == "newest"
            plugin.wait_for(written, PATIENT)
            # and nobody says that the mirror has what was written before
            with pytest.raises(UnknownOutcome, match="may be lost, read it again"):
                plugin.wait_for(lost, PATIENT)


def _away(prefix: str, after: int) -> Any:
    raise StoreConnectionError("away")


class PlainStore(MemoryStore):
    """A store without revisions and without history."""

    capabilities: ClassVar[frozenset[Capability]] = MemoryStore.capabilities - {Capability.REVISION, Capability.HISTORY}


def test_c21_a_store_without_revisions_says_so_before_anything_is_written() -> None:
    with PlainStore() as store, Plugin(store, codec=codecs.json) as plugin, View(plugin, "view") as view:
        view.wait_synced(PATIENT)
        with pytest.raises(UnsupportedError, match="has no revisions to wait for"):
            plugin.wait_for(1)
        with pytest.raises(UnsupportedError, match="'k': the store has no revisions to wait for"):
            view.put("k", 1)
        assert not store.new_broker().get_value("k").found


# Aggregates.


def test_c12_c21_an_aggregate_waits_for_each_member(tmp_path: Path) -> None:
    with (
        connect("memory://") as first,
        connect(f"sqlite://{tmp_path}/store.db") as second,
        Plugin(first) as one,
        Plugin(second) as two,
    ):
        watchers, writers = KVProtoWatchers(one, two), KVProtoWriters(one, two)
        events: Queue[Any] = Queue()
        registration = watchers.watch("w", events, events)
        for _ in range(2):
            take(events).done()
        registration.wait_synced(timeout=PATIENT)
        # given a write to both, whose results are those of the members
        results = writers.put("k", text("1"))
        assert [bool(result) for result in results] == [True, True]
        with ThreadPoolExecutor(1) as threads:
            wait = threads.submit(registration.wait_synced, results, PATIENT)
            take(events).done()
            assert not wait.done()
            take(events).done()
            wait.result(PATIENT)
        # and one member alone
        result = one.put("k", text("2"))
        take(events).done()
        registration.wait_synced([result, None], PATIENT)
        # when members fail / then all failures are told
        assert writers.delete("k")
        for _ in range(2):
            take(events).done(ValueError("no"))
        with pytest.raises(AggregateError) as failed:
            registration.wait_synced(timeout=PATIENT)
        assert [type(error) for error in failed.value.errors] == [PropagationError] * 2
        # and a revision of nobody is refused
        for wrong in (7, result, [7], [1, 2, 3]):
            with pytest.raises(InvalidArgumentError, match="an aggregate of 2 members takes one revision for each"):
                registration.wait_synced(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            registration.wait_synced(timeout=float("nan"))
    with pytest.raises(AggregateError) as failed:
        registration.wait_synced(timeout=0)
    assert [type(error) for error in failed.value.errors] == [ClosedError] * 2


def test_c12_c21_the_time_of_an_aggregate_is_the_time_of_all() -> None:
    # given two members that never answer
    with Registry("one") as one, Registry("two") as two:
        for registry in (one, two):
            registry.submit_changes({"k": Change("k", StringValue(value="1"))})
        events: Queue[Any] = Queue()
        registration = KVProtoWatchers(one, two).watch("w", events, events)
        # when
        with pytest.raises(AggregateError) as late:
            registration.wait_synced(timeout=0.05)
        # then both are late, the second one after no time of its own
        first, second = late.value.errors
        assert isinstance(first, DoneTimeout)
        assert isinstance(second, DoneTimeout)
        assert str(second).endswith("after 0 s")


def test_c12_c21_an_empty_aggregate_has_nothing_to_wait_for_and_a_foreign_member_cannot() -> None:
    AggregatedRegistration().wait_synced(timeout=0)
    AggregatedRegistration().wait_synced([], 0)

    class Foreign:
        def register(self, resync_name: str, key_prefix: str) -> None: ...
        def unregister(self, key_prefix: str) -> None: ...
        def close(self) -> None: ...
        def __enter__(self) -> Any: ...
        def __exit__(self, *_: object) -> None: ...

    with pytest.raises(UnsupportedError, match="a Foreign cannot wait for its subscriber"):
        AggregatedRegistration([Foreign()]).wait_synced()


def test_c12_c21_aggregates_of_aggregates_wait(memory: MemoryStore) -> None:
    with Registry("local") as local, Plugin(memory) as plugin:
        registration = KVProtoWatchers(KVProtoWatchers(local, plugin)).watch("w", *[Queue[Any]()] * 2)
        inner: Callable[..., None] = registration.wait_synced
        with pytest.raises(AggregateError):
            inner([[None, None]], 0.01)
