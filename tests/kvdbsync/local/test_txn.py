"""Transactions inside the process (contract section 2; D20, D21, D22)."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from datasync.errors import ForkedError, InvalidArgumentError
from datasync.events import ChangeValue, Op
from datasync.kvdbsync import local
from datasync.kvdbsync.local import BytesTxn, ProtoTxn
from datasync.serializer import SerializerProto
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take


class Recorder:
    """A commit function that remembers, and fails when told to."""

    def __init__(self) -> None:
        self.calls = list[tuple[dict[str, ChangeValue], Any]]()
        self.error: Exception | None = None

    def __call__(self, changes: Mapping[str, ChangeValue], /, *, ctx: contextvars.Context | None = None) -> int:
        self.calls.append((dict(changes), ctx))
        if self.error:
            raise self.error
        return len(self.calls)

    def last(self) -> list[tuple[str, Op, str]]:
        return [
            (key, change.get_change_type(), change.get_value(StringValue()).value)
            for key, change in self.calls[-1][0].items()
        ]


def text(value: str) -> StringValue:
    return StringValue(value=value)


def protos(commit: Recorder) -> tuple[ProtoTxn[int], Callable[[str, str], object]]:
    txn = ProtoTxn(commit)
    return txn, lambda key, value: txn.put(key, text(value))


def byteses(commit: Recorder) -> tuple[BytesTxn[int], Callable[[str, str], object]]:
    txn = BytesTxn(commit, SerializerProto())
    return txn, lambda key, value: txn.put(key, text(value).SerializeToString())


KINDS = pytest.mark.parametrize("kind", [protos, byteses])
operations = st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.sampled_from(["1", "2"])), max_size=12)


@KINDS
@given(ops=operations)
def test_d22_the_last_operation_per_key_wins_and_keeps_its_place(kind: Any, ops: list[tuple[str, str | None]]) -> None:
    # given operations, several on one key
    commit = Recorder()
    txn, put = kind(commit)
    model: dict[str, str | None] = {}
    for key, value in ops:
        if value is None:
            txn.delete(key)
        else:
            put(key, value)
        model.pop(key, None)
        model[key] = value
    # when they are committed
    assert txn.commit() == 1
    # then there is one per key: the last, in the order of the last ones; and a delete has no value (D21)
    assert commit.last() == [
        (key, Op.PUT if value is not None else Op.DELETE, value or "") for key, value in model.items()
    ]


@KINDS
def test_d22_what_was_committed_is_not_sent_again(kind: Any) -> None:
    # given a transaction that was committed
    commit = Recorder()
    txn, put = kind(commit)
    put("a", "1")
    txn.commit()
    # when it is used again
    put("b", "2")
    txn.commit()
    # then only what is new is sent
    assert commit.last() == [("b", Op.PUT, "2")]
    # and without anything new, nothing
    txn.commit()
    assert commit.calls[-1][0] == {}


@KINDS
def test_d22_a_commit_that_failed_is_not_repeated_by_the_next_one(kind: Any) -> None:
    # given a commit that raises, after it may have applied something
    commit = Recorder()
    txn, put = kind(commit)
    put("a", "1")
    commit.error = TimeoutError("no answer")
    with pytest.raises(TimeoutError):
        txn.commit()
    # when the transaction is used again
    commit.error = None
    put("b", "2")
    txn.commit()
    # then the first operation does not come back
    assert commit.last() == [("b", Op.PUT, "2")]


@KINDS
def test_the_context_is_handed_over(kind: Any) -> None:
    commit = Recorder()
    txn, _ = kind(commit)
    context = contextvars.copy_context()
    txn.commit(context)
    txn.commit()
    assert commit.calls[0][1] is context
    assert commit.calls[1][1] is None


def test_transactions_are_chainable() -> None:
    commit = Recorder()
    assert ProtoTxn(commit).put("a", text("1")).delete("b").put("c", text("2")).commit() == 1
    assert [key for key, _, _ in commit.last()] == ["a", "b", "c"]
    assert BytesTxn(commit).put("a", b'"1"').delete("b").commit() == 2
    assert commit.last() == [("a", Op.PUT, "1"), ("b", Op.DELETE, "")]


def test_d20_changing_a_message_after_put_changes_nothing() -> None:
    # given a message with a repeated field that was put
    commit = Recorder()
    value = ListValue()
    value.append("before")
    data = bytearray(b'["before"]')
    ProtoTxn(commit).put("k", value).commit()
    BytesTxn(commit).put("k", data).commit()  # type: ignore[arg-type]
    # when the caller goes on with it
    value.append("after")
    data[:] = b'["after" ]'
    # then the transactions do not see that, and a used buffer is cleared before it is filled
    for changes, _ in commit.calls:
        buffer = ListValue()
        buffer.append("stale")
        assert list(changes["k"].get_value(buffer)) == ["before"]


def test_c16_an_unusable_operation_is_refused_and_leaves_the_transaction_alone() -> None:
    # given a transaction with an operation
    commit = Recorder()
    txn = ProtoTxn(commit).put("a", text("1"))
    wrong: Any
    # when something unusable is added
    for key, wrong in [("", text("1")), (None, text("1")), ("k", None), ("k", b"bytes"), ("k", "text")]:
        with pytest.raises(InvalidArgumentError):
            txn.put(key, wrong)  # type: ignore[arg-type]
    for wrong in (None, "text", text("1")):
        with pytest.raises(InvalidArgumentError):
            BytesTxn(commit).put("k", wrong)
    with pytest.raises(InvalidArgumentError):
        txn.delete("")
    # then the rest is still there
    txn.commit()
    assert commit.last() == [("a", Op.PUT, "1")]


def test_d22_no_lock_is_held_while_committing() -> None:
    # given a commit that comes back to its own transaction
    seen: list[str] = []

    def commit(changes: Mapping[str, ChangeValue], /, *, ctx: contextvars.Context | None = None) -> None:
        seen.extend(changes)
        if "again" not in changes:
            txn.put("again", text("1")).commit()

    txn = ProtoTxn(commit)
    # when it is committed / then nothing hangs, and what came in meanwhile is a transaction of its own
    txn.put("first", text("1")).commit()
    assert seen == ["first", "again"]


def test_threads_that_put_and_commit_lose_and_repeat_nothing() -> None:
    # given a transaction that four threads fill while it is committed again and again
    commit = Recorder()
    txn = ProtoTxn(commit)
    filled = threading.Event()

    def fill(thread: int) -> None:
        for number in range(250):
            txn.put(f"{thread}/{number}", text("v"))

    def drain() -> None:
        while not filled.is_set():
            txn.commit()

    with ThreadPoolExecutor(5) as pool:
        draining = pool.submit(drain)
        for future in [pool.submit(fill, thread) for thread in range(4)]:
            future.result(PATIENT)
        filled.set()
        draining.result(PATIENT)
    txn.commit()
    # then every operation was sent exactly once
    sent = [key for changes, _ in commit.calls for key in changes]
    assert sorted(sent) == sorted(f"{thread}/{number}" for thread in range(4) for number in range(250))


# -- with a real registry ---------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry("local") as made:
        yield made


def test_c4_a_transaction_arrives_as_one_event(registry: Registry) -> None:
    # given a subscriber
    changes: Queue[Any] = Queue()
    registry.watch("agent", changes, None, "a/")
    # when a transaction is submitted
    future = ProtoTxn(registry.submit_changes).put("a/1", text("1")).put("a/2", text("2")).delete("a/0").commit()
    # then it comes whole, and the delete of nothing is told to the caller (C6)
    event = take(changes)
    assert [(change.get_key(), change.get_value(StringValue()).value) for change in event.get_changes()] == [
        ("a/1", "1"),
        ("a/2", "2"),
    ]
    event.done()
    assert future.result(PATIENT).ignored == ("a/0",)


def test_a_transaction_can_be_a_resync(registry: Registry) -> None:
    # given a registry with a key
    ProtoTxn(registry.propagate_changes).put("a/old", text("1")).commit()
    # when a transaction makes itself the full state; D15: its deletes are no values
    ProtoTxn(registry.propagate_resync).put("a/new", text("2")).delete("a/gone").commit()
    # then that is all there is
    assert [pair.get_key() for pair in registry.items()] == ["a/new"]
    BytesTxn(registry.propagate_resync).commit()
    assert registry.items() == []


def test_the_default_registry_is_one_for_the_process() -> None:
    from datasync.kvdbsync.local import registry as module

    assert local.DEFAULT_REGISTRY is module.DEFAULT_REGISTRY
    assert local.DEFAULT_REGISTRY.name == "local"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_i17_a_forked_child_has_a_default_registry_of_its_own() -> None:
    # given a registry and a transaction of the parent's
    parents = local.DEFAULT_REGISTRY
    txn = ProtoTxn(parents.propagate_changes)
    child = os.fork()
    if not child:
        code = 1
        try:
            # when a child uses the module's registry / then it works, and the parent's objects are refused
            ProtoTxn(local.DEFAULT_REGISTRY.propagate_changes).put("k", text("v")).commit()
            for use in (txn.commit, lambda: parents.get("k")):
                with pytest.raises(ForkedError):
                    use()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert local.DEFAULT_REGISTRY is parents
    assert parents.get("k") is None


@pytest.mark.parametrize("kind", [ProtoTxn, BytesTxn])
def test_c16_a_commit_function_that_cannot_be_called_is_refused_at_once(kind: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="commit must be a function to call, not NoneType"):
        kind(None)
