"""What a reader tells the log about its source, and that a log that breaks does not stop it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest

from datasync.errors import StoreConnectionError
from datasync.keyval import PutOp, reader
from datasync.keyval.memory import MemoryStore
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.status import TransportState
from tests.conftest import take, wait_until
from tests.support.registries import as_json, is_resync, told


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    with MemoryStore(uuid4().hex) as made:
        yield made


@pytest.fixture
def plugin(store: MemoryStore) -> Iterator[Plugin]:
    with Plugin(kv=store, timeouts=Timeouts(retry_backoff=(0.001, 0.002))) as made:
        made.wait_ready(10.0)
        yield made


def put(store: MemoryStore, key: str, value: str) -> None:
    store.commit([PutOp(key, as_json(value) or b"")])


@pytest.mark.parametrize("before", ["a commit was read", "nothing was ever written"])
def test_c22_the_log_says_once_that_a_store_is_lost_and_once_that_it_is_back(
    store: MemoryStore, plugin: Plugin, caplog: pytest.LogCaptureFixture, before: str
) -> None:
    # given a store that is read
    caplog.set_level("DEBUG", logger="datasync")
    if before == "a commit was read":
        put(store, "a", "1")
        wait_until(lambda: plugin.registry.get("a"), "the commit was read")

    def lines(words: str, level: int) -> list[str]:
        return [one.getMessage() for one in caplog.records if words in one.getMessage() and one.levelno == level]

    # when it is lost for several attempts
    store.fail_with(StoreConnectionError("the store is away"))
    wait_until(lambda: len(lines("retrying", logging.DEBUG)) >= 5, "the reader has tried again")
    assert not lines("retrying", logging.INFO)
    assert plugin.status().state is TransportState.DOWN
    # and comes back
    store.fail_with(None)
    put(store, "b", "2")
    wait_until(lambda: lines("is back after", logging.WARNING), "a line says so")
    # then one line told the loss, and one the end of it, with the seconds
    wait_until(lambda: plugin.status().state is TransportState.READY, "the plugin is ready")
    assert len(lines("retrying", logging.WARNING)) == 1
    assert len(lines("is back after", logging.WARNING)) == 1
    # and the next loss is told again
    store.fail_with(StoreConnectionError("the store is away again"))
    wait_until(lambda: len(lines("retrying", logging.WARNING)) == 2, "the second loss is told")


def test_c13_a_log_filter_that_breaks_does_not_stop_the_reader(store: MemoryStore, plugin: Plugin) -> None:
    # given a filter that breaks at every line of the reader
    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that is broken")

    queue: Queue[Any] = Queue()
    put(store, "a", "1")
    plugin.watch("agent", queue, queue, "")
    event = take(queue)
    assert is_resync(event)
    event.done()
    reader.log.addFilter(broken)
    try:
        # when the store is lost and comes back with a change
        store.fail_with(StoreConnectionError("the store is away"))
        wait_until(lambda: plugin.status().state is TransportState.DOWN, "the loss was noticed")
        store.fail_with(None)
        put(store, "b", "2")
        # then the change comes
        event = take(queue)
        while ("b", "2", None) not in told(event):
            event.done()
            event = take(queue)
    finally:
        reader.log.removeFilter(broken)
