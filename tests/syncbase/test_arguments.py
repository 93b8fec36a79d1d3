"""Arguments are checked before anything changes: C16, C19."""

from __future__ import annotations

from functools import partial
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import InvalidArgumentError
from datasync.events import Op
from datasync.keyval.memory import MemoryStore
from datasync.kvdbsync import Plugin
from datasync.kvdbsync.local import ProtoTxn
from datasync.syncbase.change import MAX_REVISION, Change, ChangeBytes, KeyVal, KeyValBytes
from datasync.syncbase.registry import Registry
from datasync.syncbase.state import PrevRevisions
from tests.support.registries import text

BAD_TIMEOUTS = [None, float("nan"), "2", True]


@pytest.fixture
def registry() -> Any:
    with Registry("arguments") as one:
        yield one


@pytest.mark.parametrize("timeout", BAD_TIMEOUTS)
def test_c16_an_invalid_timeout_is_refused_before_the_change_is_applied(registry: Registry, timeout: Any) -> None:
    calls = [
        partial(registry.propagate_changes, {"a": Change("a", text("v"))}, timeout=timeout),
        partial(registry.submit_changes, {"a": Change("a", text("v"))}, timeout=timeout),
        partial(registry.propagate_resync, {"a": KeyVal("a", text("v"))}, timeout=timeout),
        partial(registry.submit_resync, {"a": KeyVal("a", text("v"))}, timeout=timeout),
        ProtoTxn(partial(registry.propagate_changes, timeout=timeout)).put("a", text("v")).commit,
        partial(registry.wait_ready, timeout),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError, match="timeout must be a number of seconds"):
            call()
    assert (registry.get("a"), registry.revision) == (None, 0)


@pytest.mark.parametrize("timeout", [0, -1, 5, float("inf"), 1e300])
def test_c9_every_number_of_seconds_is_a_timeout(registry: Registry, timeout: float) -> None:
    future = registry.submit_changes({"a": Change("a", text("v"))}, timeout=timeout)
    assert future.result().revision == 1
    assert future.result(timeout).revision == 1
    with pytest.raises(InvalidArgumentError, match="NaN"):
        future.result(float("nan"))


@pytest.mark.parametrize("timeout", BAD_TIMEOUTS)
def test_c16_watchers_and_plugins_refuse_an_invalid_timeout(timeout: Any) -> None:
    with MemoryStore() as store, Plugin(kv=store) as plugin:
        with pytest.raises(InvalidArgumentError, match="timeout"):
            plugin.wait_ready(timeout)
        with pytest.raises(InvalidArgumentError, match="timeout"):
            store.new_watcher().watch(print, timeout=timeout)


@pytest.mark.parametrize("empty", [KeyVal("a", None), KeyValBytes("a", None)])
def test_c16_a_resync_with_a_key_without_a_value_is_refused(registry: Registry, empty: Any) -> None:
    registry.propagate_resync({"b": KeyVal("b", text("kept"))})
    for call in (registry.submit_resync, registry.submit_changes):
        with pytest.raises(InvalidArgumentError, match="'a' has no value"):
            call({"a": empty, "c": KeyVal("c", text("v"))})
    assert [pair.key for pair in registry.items("")] == ["b"]
    # but a change that deletes is no pair of a state, and is left out
    registry.propagate_resync({"a": Change("a", op=Op.DELETE), "c": KeyVal("c", text("v"))})
    assert [pair.key for pair in registry.items("")] == ["c"]


@pytest.mark.parametrize(
    "value", [None, 7, "text", object(), StringValue(), KeyVal("a", None), ChangeBytes("a", op=Op.DELETE)]
)
def test_c16_a_state_takes_only_values_that_can_be_read(value: Any) -> None:
    state = PrevRevisions()
    state.put("a", b'"kept"')
    for put in (state.put, lambda key, one: state.put_with_revision(key, one, 9)):
        with pytest.raises(InvalidArgumentError, match="'a'"):
            put("a", value)
    pair = state.get("a")
    assert pair is not None
    assert pair.get_value(StringValue()).value == "kept"
    assert state.revision == 1


@pytest.mark.parametrize("key", ["", None, 7])
def test_c16_a_state_takes_only_keys(key: Any) -> None:
    state = PrevRevisions()
    for call in (lambda: state.put(key, b""), lambda: state.delete(key)):
        with pytest.raises(InvalidArgumentError, match="a key must"):
            call()


def test_c6_after_the_highest_revision_the_counter_goes_on(registry: Registry) -> None:
    # given a change with the highest revision that there is
    registry.propagate_changes({"a": Change("a", text("v"), MAX_REVISION)})
    # when others follow without one / then each has a revision of its own, which a copy of it may have too
    assert registry.propagate_changes({"a": Change("a", text("w"))}).revision == MAX_REVISION + 1
    assert registry.propagate_changes({"b": Change("b", text("w"))}).revision == MAX_REVISION + 2
    # and what is higher is refused everywhere
    for revision in (2**63 - 1, 2**63, -1, True, 1.0):
        for kind, value in ((Change, text("v")), (KeyVal, text("v")), (ChangeBytes, b""), (KeyValBytes, b"")):
            with pytest.raises(InvalidArgumentError, match="whole number"):
                kind("a", value, revision)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="whole number"):
            PrevRevisions().put_with_revision("a", b"", revision)  # type: ignore[arg-type]


def test_c11_a_watch_without_prefixes_is_of_everything_and_can_be_narrowed(registry: Registry) -> None:
    queue: Queue[Any] = Queue()
    registration = registry.watch("agent", queue, queue)
    assert registry.status().subscriptions["agent"].prefixes == ("",)
    assert registry.propagate_changes({}).unwatched == ()
    registration.unregister("")
    assert registry.propagate_changes({"a": Change("a", text("v"))}).unwatched == ("a",)
