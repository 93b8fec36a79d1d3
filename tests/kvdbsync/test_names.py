"""One name for one thing: whatever has a key, a value and a revision has them under these names."""

from __future__ import annotations

from queue import Queue
from typing import Any

from google.protobuf.wrappers_pb2 import Int32Value

from datasync.keyval.kvproto import ProtoWrapper
from datasync.keyval.memory import MemoryStore
from datasync.keyval.watcher import WatchResp
from datasync.kvdbsync import Plugin
from tests.conftest import take

NAMES = ("key", "value", "raw", "revision")


def test_results_of_brokers_events_and_mirrors_have_the_same_names() -> None:
    # given a value, as everything that reads or is told of it returns it
    events: Queue[Any] = Queue()
    seen: Queue[WatchResp] = Queue()
    with MemoryStore() as store, Plugin(store, "p/") as plugin:
        plugin.watch("names", events, events)
        take(events).done()
        with store.new_watcher("p/").watch(seen.put):
            plugin.put("a", Int32Value(value=7))
            watched = take(seen)
        broker, messages = store.new_broker("p/"), ProtoWrapper(store).new_broker("p/")
        found: dict[str, Any] = {
            "a get": broker.get_value("a"),
            "a list": next(broker.list_values()),
            "a version": broker.history("a")[0],
            "a get of a message": messages.get_value("a", Int32Value()),
            "a list of messages": next(messages.list_values()),
            "a watched change": watched,
        }
        event = take(events)
        (found["a change"],) = event.get_changes()
        event.done()
        found["a pair of the mirror"] = plugin.get("a")
        (found["a pair of a list of the mirror"],) = plugin.items()
        # then each has the same key, bytes and revision
        revision = broker.get_value("a").revision
        for what, one in found.items():
            assert (one.key, one.raw, one.revision) == ("a", b"7", revision), what
            assert one.value is not None, what
        # and the getters of the Go interfaces, where it is a pair or a change
        for what in found.keys() - {"a get", "a get of a message", "a version"}:
            assert (found[what].get_key(), found[what].get_revision()) == ("a", revision), what
