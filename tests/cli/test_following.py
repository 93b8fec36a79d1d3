"""The watch behind ``datasync watch``: bounded, whatever its reader does (contract C8)."""

from __future__ import annotations

import time

import pytest

from datasync.cli.following import MAX_WAITING, STATE, Notice, follow
from datasync.cli.targets import refuse_server
from datasync.errors import UnsupportedError
from datasync.keyval.memory import MemoryStore
from tests.conftest import take, wait_until


def test_c8_a_reader_that_is_slow_makes_nothing_grow_and_misses_nothing() -> None:
    store = MemoryStore()
    broker = store.new_broker()
    # given more keys than may wait, and nobody who takes them
    keys = [f"a/{number:05d}" for number in range(MAX_WAITING + 500)]
    for key in keys:
        broker.put(key, b"old")
    with follow(store, "a/") as watch:
        wait_until(lambda: watch.queue.full(), "the queue is full")
        # when as many changes follow
        for key in keys:
            broker.put(key, b"new")
        assert watch.queue.qsize() <= MAX_WAITING
        # then the reader gets the whole state, and then every change, in order
        state = [take(watch.queue) for _ in keys]
        assert [(one.kind, one.key, one.value) for one in state] == [(STATE, key, b"old") for key in keys]
        assert take(watch.queue) is None
        changes = [take(watch.queue) for _ in keys]
        assert [(one.key, one.previous, one.value) for one in changes] == [(key, b"old", b"new") for key in keys]


def test_c15_a_watch_whose_queue_is_full_closes() -> None:
    store = MemoryStore()
    for number in range(MAX_WAITING + 2):
        store.new_broker().put(f"a/{number}", b"v")
    watch = follow(store, "a/")
    wait_until(lambda: watch.queue.full(), "the queue is full")
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 30  # the thread has ended: close() waits for it
    assert isinstance(take(watch.queue), Notice)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "HTTPS://host/", "grpc://user:secret@host:1", "grpcs://host"])
def test_what_needs_a_store_refuses_a_server_and_tells_no_secret(url: str) -> None:
    with pytest.raises(UnsupportedError, match="exec works on a store, not on a server") as caught:
        refuse_server(url, "exec", "give the URL of its store")
    assert "secret" not in str(caught.value)
    refuse_server("etcd://host", "exec", "")
