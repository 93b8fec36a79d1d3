"""Keys of every shape through every layer: each arrives as it is, or is refused and nothing is written (C16, C23)."""

from __future__ import annotations

import json
import subprocess
import sys
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import DatasyncError, InvalidArgumentError
from datasync.events import ResyncEvent
from datasync.keyval import Capability, Store
from datasync.kvdbsync import Plugin
from datasync.options import with_prefix
from tests.conformance.conftest import Limits, NewStore
from tests.conformance.transports import Transport
from tests.conftest import take, wait_until
from tests.support.running import environment
from tests.support.stores import state

#: What it is, to the key.
TEXTS = {
    "spaces": "a b c ",
    "percent": "a%41%2f%zz",
    "slashes": "/a//b/",
    "dots": "a/../b/./..",
    "star": "*a?[b]",
    "NUL": "a\0b",
    "beyond ASCII": "é€😀",
    "long": "k" * 10_000,
    "line ends": "a\r\nb",
}
#: Bytes that are not UTF-8, as ``os.fsdecode`` returns them.
ODD = b"a/\xff".decode("utf-8", "surrogateescape")
#: What a store may refuse whose keys are paths.
UNLIKE_PATHS = [TEXTS[what] for what in ("slashes", "dots", "NUL", "line ends")]
KEYS = [pytest.param(key, id=what) for what, key in {**TEXTS, "not UTF-8": ODD}.items()]


def takes(store: Store, key: str) -> bool:
    """Put *key*; False if the store refuses it, in every call and without writing anything."""
    broker = store.new_broker()
    try:
        broker.put(key, b'"v"')
        return True
    except InvalidArgumentError:
        pass
    for call in (broker.get_value, broker.delete, lambda one: broker.new_txn().delete(one).commit()):
        with pytest.raises(InvalidArgumentError):
            call(key)
    assert state(store) == {}
    return False


@pytest.mark.parametrize("key", KEYS)
def test_c16_a_key_of_any_shape_goes_through_broker_plugin_and_list_or_is_refused(
    store: Store, new_store: NewStore, limits: Limits, key: str
) -> None:
    # given a key that the store takes
    if not takes(store, key):
        assert key == ODD or (not limits.any_key and key in UNLIKE_PATHS)
        return
    # then it is read, listed and mirrored under the same name
    broker = store.new_broker()
    assert list(broker.list_keys()) == [key]
    assert [pair.key for pair in broker.list_values(key)] == [key]
    assert broker.get_value(key).found
    assert list(store.new_broker(key[:1]).list_keys()) == [key[1:]]
    with Plugin(kv=store) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue)
        event = take(queue)
        assert isinstance(event, ResyncEvent)
        assert [pair.get_key() for pair in event.get_values()[""]] == [key]
        event.done()
        # and can be written back, changed and deleted through every layer
        plugin.put(key, StringValue(value="w"))
        change = take(queue)
        assert [one.get_key() for one in change.get_changes()] == [key]
        change.done()
    if Capability.CAS in store.capabilities:
        assert broker.compare_and_swap(key, b'"w"', b'"x"')
    assert broker.delete(key, with_prefix())
    assert state(store) == {}


def line_of(key: str) -> bytes:
    """The line of *key*: its bytes, or a JSON string where control characters would make it another number of lines."""
    if any(ord(one) < 0x20 for one in key):
        return json.dumps(key).encode() + b"\n"
    return key.encode("utf-8", "surrogateescape") + b"\n"


def test_c16_the_command_lists_every_key_on_one_line(store: Store, url: str) -> None:
    if url.startswith("memory"):
        return
    # given all keys that the store takes, at once: each start of the command takes longer than the rest
    broker = store.new_broker()
    taken = [key for key in (*TEXTS.values(), ODD) if takes(store, key) and broker.delete(key)]
    for key in taken:
        broker.put(key, b'"v"')
    listed = list(broker.list_keys())
    assert sorted(listed) == sorted(taken)
    # when the command lists them / then each is one line, in the order of the store
    command = [sys.executable, "-m", "datasync", "list", url, "--keys"]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(line_of(key) for key in listed)


@pytest.mark.parametrize("key", KEYS)
def test_c16_a_key_of_any_shape_reaches_the_subscriber_of_a_transport_or_is_refused(
    transport: Transport, key: str
) -> None:
    # given a subscriber to everything
    queue: Queue[Any] = Queue()
    transport.watch("agent", queue, queue)
    # when the key is written
    try:
        future = transport.commit({key: "v"})
    except InvalidArgumentError:
        return
    # then it arrives as it is, or its writer is told
    seen: list[str] = []
    while not seen:
        wait_until(lambda: not queue.empty() or refused(future), "the key arrives, or is refused")
        if queue.empty():
            return
        event = take(queue)
        if isinstance(event, ResyncEvent):
            seen += [pair.get_key() for pairs in event.get_values().values() for pair in pairs]
        else:
            seen += [change.get_key() for change in event.get_changes()]
        event.done()
    assert seen == [key]


def refused(future: Any) -> bool:
    return future is not None and future.done() and isinstance(future.exception(), DatasyncError)
