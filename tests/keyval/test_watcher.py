"""Watching a store without a registry: a callback per change (D33, D53; C13, C15)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from datasync.errors import (
    ClosedError,
    DecodeError,
    ForkedError,
    InvalidArgumentError,
    NotReadyError,
    StoreConnectionError,
)
from datasync.events import Op, ProtoWatchResp
from datasync.keyval import DeleteOp, PutOp
from datasync.keyval.memory import MemoryStore
from datasync.keyval.watcher import Watch, Watcher
from datasync.runtime.timeouts import Timeouts
from datasync.serializer import SerializerProto
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import plain, text


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore() as made:
        yield made


def put(store: MemoryStore, key: str, value: str) -> None:
    store.commit([PutOp(key, f'"{value}"'.encode())])


def read(change: Any) -> tuple[str, str | None, str | None]:
    """(key, value, previous value)."""
    value = plain(change.get_value(text("stale"))) if change.get_change_type() is Op.PUT else None
    buffer = text("stale")
    return change.get_key(), value, buffer.value if change.get_prev_value(buffer) else None


def test_each_change_from_now_on_comes_in_order_with_the_value_before(store: MemoryStore) -> None:
    # given a store with keys, watched under a prefix
    put(store, "/agent/a/1", "old")
    put(store, "/other/a/1", "foreign")
    seen: Queue[Any] = Queue()
    with store.new_watcher("/agent/").watch(seen.put, "a/", "c"):
        # when it changes
        put(store, "/agent/a/1", "new")
        put(store, "/agent/b/1", "not wanted")
        put(store, "/other/a/1", "foreign")
        store.commit([PutOp("/agent/a/2", b'""'), DeleteOp("/agent/a/1"), PutOp("/agent/c", b'"c"')])
        # then the wanted ones come, relative to the prefix, and nothing that was there before
        changes = [take(seen) for _ in range(4)]
        assert [read(change) for change in changes] == [
            ("a/1", "new", "old"),
            ("a/2", "", None),
            ("a/1", None, "new"),
            ("c", "c", None),
        ]
    assert all(isinstance(change, ProtoWatchResp) for change in changes)
    assert changes[0].get_revision() < changes[1].get_revision() == changes[3].get_revision()
    assert plain(changes[2].get_value(text("stale"))) == ""
    assert changes[2].get_prev_value(None) is True
    assert seen.empty()


def test_without_prefixes_all_keys_are_watched(store: MemoryStore) -> None:
    seen: Queue[Any] = Queue()
    with Watcher(store).watch(seen.put):
        put(store, "anything", "x")
        assert read(take(seen)) == ("anything", "x", None)


def test_d53_a_slow_callback_loses_nothing(store: MemoryStore) -> None:
    # given a callback that is held up, while more changes come than a channel of Go's would take
    go_on, seen = threading.Event(), []

    def slow(change: Any) -> None:
        go_on.wait(PATIENT)
        seen.append(read(change))

    with store.new_watcher().watch(slow):
        for number in range(300):
            put(store, "k", str(number))
        go_on.set()
        # then all of them come, in order
        wait_until(lambda: len(seen) == 300, "all changes came")
    assert [value for _, value, _ in seen] == [str(number) for number in range(300)]
    assert [previous for _, _, previous in seen] == [None, *(str(number) for number in range(299))]


def test_c15_a_callback_that_raises_is_logged_without_the_value_and_stops_nothing(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    # given a callback that raises at first
    caplog.set_level("DEBUG", logger="datasync")
    seen: Queue[Any] = Queue()

    def poisoned(change: Any) -> None:
        seen.put(repr(change))
        if change.key == "bad":
            raise RuntimeError("poisoned")

    # when it is called / then the next change comes
    with store.new_watcher().watch(poisoned):
        put(store, "bad", "canary-5")
        put(store, "good", "canary-5")
        shown = take(seen) + take(seen)
    assert "'bad'" in caplog.text
    assert "canary-5" not in caplog.text + shown


def test_c15_a_watch_may_be_closed_from_its_callback_and_twice(store: MemoryStore) -> None:
    # given a callback that closes its watch
    closed: Queue[str] = Queue()
    watch = store.new_watcher().watch(lambda change: (watch.close(), closed.put(change.key)))
    # when it is called / then nothing hangs, and it is called no more
    put(store, "one", "1")
    assert take(closed) == "one"
    watch.close()
    put(store, "two", "2")
    watch.close()
    assert closed.empty()


def test_d33_after_a_break_the_changes_go_on_where_they_were(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a watch whose connection breaks
    monkeypatch.setattr("datasync.runtime.timeouts.DEFAULT_TIMEOUTS", Timeouts(retry_backoff=(0.001, 0.002)))
    other = MemoryStore("shared with another client")
    mine = MemoryStore("shared with another client")
    seen: Queue[Any] = Queue()
    with other, mine, mine.new_watcher().watch(seen.put):
        put(other, "k", "1")
        assert read(take(seen)) == ("k", "1", None)
        mine.fail_with(StoreConnectionError("cut off"))
        put(other, "k", "2")
        put(other, "j", "1")
        # when it is back / then nothing is lost and nothing comes twice
        mine.fail_with(None)
        assert [read(take(seen)), read(take(seen))] == [("k", "2", "1"), ("j", "1", None)]
        # and when the history is gone, what is different is told as changes
        mine.fail_with(StoreConnectionError("cut off"))
        other.commit([DeleteOp("k"), PutOp("new", b'"1"')])
        other.compact()
        mine.fail_with(None)
        found = sorted([read(take(seen)), read(take(seen))])
        assert found == [("k", None, "2"), ("new", "1", None)]
        # and when the store begins anew as well
        other.rewind()
        put(other, "j", "1")
        put(other, "k", "3")
        found = [read(take(seen)), read(take(seen))]
        assert sorted(found) == [("k", "3", None), ("new", None, "1")] or ("j", None, "1") in found


def test_bytes_are_read_by_the_watchers_serializer(store: MemoryStore) -> None:
    seen: Queue[Any] = Queue()
    with Watcher(store, serializer=SerializerProto()).watch(seen.put):
        store.commit([PutOp("k", text("binary").SerializeToString())])
        change = take(seen)
        assert plain(change.get_value(StringValue())) == "binary"
        assert change.value == text("binary").SerializeToString()
        with pytest.raises(DecodeError):
            store.commit([PutOp("k", b"\xff")])
            take(seen).get_value(Int64Value())


@pytest.mark.parametrize(("callback", "prefixes"), [(None, ()), ("text", ()), (print, (b"a/",)), (print, (None,))])
def test_c16_a_useless_watch_is_refused(store: MemoryStore, callback: Any, prefixes: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        store.new_watcher().watch(callback, *prefixes)


def test_a_store_that_cannot_be_read_is_told_with_the_reason(store: MemoryStore) -> None:
    error = StoreConnectionError("nobody at the door")
    store.fail_with(error)
    with pytest.raises(NotReadyError, match="nobody at the door") as caught:
        store.new_watcher().watch(print, timeout=0.05)
    assert caught.value.__cause__ is error
    store.fail_with(None)


def test_a_closed_store_is_refused_at_once(store: MemoryStore) -> None:
    store.close()
    with pytest.raises(ClosedError):
        store.new_watcher().watch(print, timeout=30)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_c15_i17_a_forked_child_is_refused_at_once(store: MemoryStore) -> None:
    # given a running watch
    seen: Queue[Any] = Queue()
    watcher = store.new_watcher()
    watch = watcher.watch(seen.put)
    child = os.fork()
    if not child:
        code = 1
        try:
            # when a child uses the parent's / then it is refused, and close is silent
            watch.close()
            try:
                watcher.watch(print, timeout=30)
            except ForkedError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # and the parent's goes on
    put(store, "k", "v")
    assert read(take(seen)) == ("k", "v", None)
    watch.close()


def test_c15_a_callback_that_exits_stops_nothing(store: MemoryStore) -> None:
    seen: Queue[Any] = Queue()

    def leave(change: Any) -> None:
        seen.put(change.key)
        raise SystemExit("poisoned")

    with store.new_watcher().watch(leave):
        put(store, "a", "1")
        assert take(seen) == "a"
        put(store, "b", "1")
        assert take(seen) == "b"


def test_c15_a_watch_that_its_callback_closes_calls_it_no_more(store: MemoryStore) -> None:
    # given a callback that closes its watch at the first change of a transaction
    seen: list[str] = []
    closed = threading.Event()

    def close(change: Any) -> None:
        seen.append(change.key)
        watch.close()
        closed.set()

    watch = store.new_watcher().watch(close)
    # when there are more in it / then it does not hear of them
    store.commit([PutOp("a", b"1"), PutOp("b", b"1")])
    assert closed.wait(PATIENT)
    wait_until(lambda: not watch._reader._worker.alive, "the reader ended")
    assert seen == ["a"]


def test_c15_an_interrupt_while_a_watch_starts_leaves_no_thread(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that cannot be read, and ^C in the wait for it
    store.fail_with(StoreConnectionError("away"))

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    watch = Watch(store, "", ("",), print, SerializerProto())
    monkeypatch.setattr(watch, "_ready", Interrupted())
    # when it is started / then the reader is not left behind
    with pytest.raises(KeyboardInterrupt):
        watch.start(5)
    assert not watch._reader._worker.alive
