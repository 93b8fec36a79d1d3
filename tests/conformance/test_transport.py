"""What every transport that writes promises to its application: contract C12, C15–C18."""

from __future__ import annotations

import threading
from queue import Queue
from typing import Any

import pytest

from datasync.errors import ClosedError, InvalidArgumentError, NotReadyError
from datasync.events import Op
from datasync.keyval import Capability
from datasync.kvdbsync.plugin import Plugin
from datasync.options import with_client_lifetime_ttl, with_prefix, with_ttl
from datasync.syncbase.status import TransportState
from tests.conformance.transports import Stored, Trait
from tests.conftest import PATIENT, take, wait_until
from tests.support.registries import as_json, is_resync, plain, state, text, told

pytestmark = pytest.mark.needs(Trait.WRITES)


def follow(plugin: Plugin, name: str = "agent", *prefixes: str) -> Queue[Any]:
    """A subscription whose first RESYNC is answered."""
    queue: Queue[Any] = Queue()
    plugin.watch(name, queue, queue, *(prefixes or ("",)))
    first = take(queue)
    assert is_resync(first)
    first.done()
    return queue


def next_change(queue: Queue[Any]) -> list[tuple[str, str | None, str | None]]:
    event = take(queue)
    event.done()
    return told(event)


def next_changes(queue: Queue[Any], count: int) -> list[tuple[str, str | None, str | None]]:
    """*count* changes, in however many events they come."""
    found: list[tuple[str, str | None, str | None]] = []
    while len(found) < count:
        found += next_change(queue)
    return found


def lacks(transport: Stored, capability: Capability) -> bool:
    return capability not in transport.store.capabilities


def test_what_it_writes_comes_back_as_changes_and_is_there_for_others(transport: Stored) -> None:
    # given a subscriber, and another transport on the same data
    queue = follow(transport.plugin)
    with Plugin(transport.other, transport.prefix) as other:
        others = follow(other)
        # when one writes / then both see it; before the next write, since not every store keeps a history
        for write, change in (
            (lambda: transport.plugin.put("a/1", text("1")), ("a/1", "1", None)),
            (lambda: transport.plugin.put("a/1", text("2")), ("a/1", "2", "1")),
            (lambda: transport.plugin.delete("a/1"), ("a/1", None, "2")),
        ):
            assert write()
            assert [next_change(one) for one in (queue, others)] == [[change], [change]]


def test_c17_delete_tells_truly_whether_something_was_deleted(transport: Stored) -> None:
    plugin = transport.plugin
    for key in ("a/1", "a/2", "b/1"):
        plugin.put(key, text("v"))
    assert plugin.delete("a/1")
    assert not plugin.delete("a/1")
    assert not plugin.delete("a"), "only with_prefix() makes it a prefix"
    assert plugin.delete("a", with_prefix())
    assert not plugin.delete("a", with_prefix())
    assert [pair.key for pair in transport.other.scan(transport.prefix)] == [f"{transport.prefix}b/1"]


def test_what_is_under_another_prefix_is_neither_seen_nor_touched(transport: Stored) -> None:
    # given the key of another application in the same store
    queue = follow(transport.plugin)
    # when everything under the plugin's prefix is deleted, and the other key changes
    transport.plugin.put("k", text("v"))
    assert next_change(queue) == [("k", "v", None)]
    foreign = next(iter(transport.other.scan("another application's key")))
    assert transport.plugin.delete("k", with_prefix())
    assert next_change(queue) == [("k", None, "v")]
    # then it is as it was, and nobody was told
    assert transport.other.read(foreign.key) == foreign
    assert transport.plugin.registry.get(foreign.key) is None
    assert queue.empty()


@pytest.mark.parametrize(
    "args",
    [
        ("k", None),
        ("k", "text"),
        ("", text("v")),
        (None, text("v")),
        ("k", text("v"), with_prefix()),
        ("k", text("v"), 5),
        ("k", text("v"), with_ttl(1), with_ttl(2)),
        ("k", text("v"), with_ttl(1), with_client_lifetime_ttl()),
    ],
)
def test_c16_d52_a_bad_put_is_refused_and_nothing_is_written(transport: Stored, args: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        transport.plugin.put(*args)
    assert list(transport.other.scan(transport.prefix)) == []


def test_c17_a_value_with_a_ttl_ends_as_a_delete_with_its_value(transport: Stored) -> None:
    if lacks(transport, Capability.TTL):
        pytest.skip("this store has no ttl")
    queue = follow(transport.plugin)
    transport.plugin.put("short", text("v"), with_ttl(1))
    transport.plugin.put("stays", text("v"))
    assert next_changes(queue, 2) == [("short", "v", None), ("stays", "v", None)]
    event = take(queue)
    (change,) = event.get_changes()
    assert (change.get_key(), change.get_change_type()) == ("short", Op.DELETE)
    buffer = text("")
    assert change.get_prev_value(buffer)
    assert plain(buffer) == "v"
    event.done()


def test_c17_a_value_of_a_clients_lifetime_ends_with_its_store(transport: Stored) -> None:
    if lacks(transport, Capability.LEASE):
        pytest.skip("this store has no lease")
    # given a value that lives as long as the store's client
    with Plugin(transport.other, transport.prefix) as other:
        others = follow(other)
        transport.plugin.put("mine", text("v"), with_client_lifetime_ttl())
        assert next_change(others) == [("mine", "v", None)]
        # when the plugin is closed it stays, and when the store is closed it is gone
        transport.plugin.close()
        assert transport.other.read(f"{transport.prefix}mine") is not None
        transport.store.close()
        assert next_change(others) == [("mine", None, "v")]


def test_it_says_when_it_is_not_started_and_when_it_is_closed(transport: Stored) -> None:
    plugin = Plugin(transport.store, transport.prefix)
    with pytest.raises(NotReadyError, match="'k'"):
        plugin.put("k", text("v"))
    with pytest.raises(NotReadyError):
        plugin.wait_ready(0.01)
    plugin.after_init()
    plugin.put("k", text("v"))
    plugin.close()
    for use in (
        lambda: plugin.put("k", text("w")),
        lambda: plugin.delete("k"),
        lambda: plugin.watch("agent", Queue(), None),
        lambda: plugin.wait_ready(0),
        plugin.after_init,
    ):
        with pytest.raises(ClosedError):
            use()
    assert next(iter(transport.other.scan(transport.prefix))).value == as_json("v")


def test_c18_status_from_the_start_to_the_end(transport: Stored) -> None:
    plugin = transport.plugin
    plugin.wait_ready(PATIENT)
    status = plugin.status()
    assert (status.state, status.name, status.last_error) == (TransportState.READY, transport.source, None)
    assert status.silence is not None
    queue = follow(plugin)
    before = plugin.status().revision
    plugin.put("k", text("v"))
    next_change(queue)
    assert plugin.status().revision > before
    plugin.close()
    assert plugin.status().state is TransportState.CLOSED


def test_c15_an_agent_can_come_and_go_and_leaves_no_thread(transport: Stored) -> None:
    # given the threads of a store that was used once
    with Plugin(transport.other, transport.prefix) as warm:
        warm.wait_ready(PATIENT)
    before = {thread.name for thread in threading.enumerate() if thread.name.startswith("datasync")}
    # when agents come and go
    for number in range(10):
        with Plugin(transport.other, transport.prefix) as plugin:
            queue = follow(plugin)
            plugin.put("k", text(str(number)))
            assert next_change(queue)[0][1] == str(number)
    # then no thread is left
    wait_until(
        lambda: {one.name for one in threading.enumerate() if one.name.startswith("datasync")} <= before,
        "their threads are gone",
    )


def test_c13_an_agent_that_was_away_starts_with_the_state_as_it_is(transport: Stored) -> None:
    # given an agent that has seen a state and went away
    with Plugin(transport.other, transport.prefix) as plugin:
        queue = follow(plugin)
        plugin.put("kept", text("1"))
        plugin.put("gone", text("1"))
        next_changes(queue, 2)
    # when things change meanwhile
    transport.commit({"kept": "2", "gone": None, "new": "1"})
    # then it starts with what is
    with Plugin(transport.other, transport.prefix) as plugin:
        fresh: Queue[Any] = Queue()
        plugin.watch("agent", fresh, fresh, "")
        event = take(fresh)
        assert state(event) == {"kept": "2", "new": "1"}
        event.done()
        transport.commit({"kept": "3"})
        assert next_change(fresh) == [("kept", "3", "2")]
