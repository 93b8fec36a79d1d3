"""Each store against a dict: any history of writes and closings leaves what the dict says (C3, C4, I2–I5)."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from datasync.keyval import Condition, DeleteOp, PutOp, Store, WriteOp, connect
from datasync.options import with_prefix
from tests.support.postgres import PostgresServer, postgres  # noqa: F401 - a fixture
from tests.support.stores import all_after, fold, state

#: Few and alike, so that operations meet: prefixes of one another, beyond the BMP, and what patterns would trip over.
KEYS = ["a", "a/", "a/b", "a/B", "a%", "ab", "a_", "b", "é", "\U0001f600", "a\0", "\uffff"]

keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"1", b"2", b"\0\xff"])
puts = st.builds(PutOp, keys, values)
deletes = st.builds(DeleteOp, keys)
prefix_deletes = st.builds(DeleteOp, keys, st.just(True))
branches = st.lists(puts | deletes, max_size=3, unique_by=lambda op: op.key)
limits = st.integers(0, 3)
conditions = st.builds(Condition, keys, st.none() | values)


def put_by(ops: list[WriteOp]) -> set[str]:
    """The keys whose last operation is a put."""
    found: set[str] = set()
    for op in ops:
        if isinstance(op, PutOp):
            found.add(op.key)
        else:
            found = {key for key in found if key != op.key and not (op.prefix and key.startswith(op.key))}
    return found


def apply(model: dict[str, bytes], ops: list[WriteOp]) -> dict[str, bytes]:
    """*model* after *ops*, one after another."""
    after = dict(model)
    for op in ops:
        if isinstance(op, PutOp):
            after[op.key] = op.value
        else:
            for key in [key for key in after if key == op.key or (op.prefix and key.startswith(op.key))]:
                del after[key]
    return after


class StoreMachine(RuleBasedStateMachine):
    """Two clients of one store, and a dict for what it should hold."""

    url: str

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.mkdtemp()
        place = self.url.format(folder=self.folder, name=uuid4().hex)
        self.stores: list[Store] = [connect(place), connect(place)]
        self.place = place
        self.model: dict[str, bytes] = {}
        self.revision = self.current()
        # Every state that there was, by revision.
        self.past: dict[int, dict[str, bytes]] = {self.revision: {}}
        # The revision of each key's last put.
        self.put_at: dict[str, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for store in self.stores:
                store.close()
            shutil.rmtree(self.folder)

    def current(self) -> int:
        return self.stores[0].scan("-", keys_only=True).revision

    def wrote(self, after: dict[str, bytes], ops: list[WriteOp]) -> None:
        revision = self.current()
        assert revision >= self.revision
        if after != self.model:
            assert revision > self.revision
        self.model, self.revision = after, revision
        self.past[revision] = after
        known = self.put_at | dict.fromkeys(put_by(ops), revision)
        self.put_at = {key: at for key, at in known.items() if key in after}

    @rule(client=st.integers(0, 1), ops=st.lists(puts | deletes, max_size=6, unique_by=lambda op: op.key))
    def commit(self, client: int, ops: list[WriteOp]) -> None:
        result = self.stores[client].commit(ops)
        gone = [op for op in ops if isinstance(op, DeleteOp) and op.key in self.model]
        assert (result.succeeded, result.deleted) == (True, len(gone))
        self.wrote(apply(self.model, ops), ops)
        assert result.revision == self.revision

    @rule(client=st.integers(0, 1), ops=st.lists(puts | deletes | prefix_deletes, max_size=6))
    def commit_whatever_the_order(self, client: int, ops: list[WriteOp]) -> None:
        before, after = self.model, apply(self.model, ops)
        result = self.stores[client].commit(ops)
        assert result.deleted == len(before.keys() - after.keys())
        self.wrote(after, ops)

    @rule(client=st.integers(0, 1), checks=st.lists(conditions, min_size=1, max_size=3), ops=st.lists(puts, max_size=2))
    def commit_if(self, client: int, checks: list[Condition], ops: list[WriteOp]) -> None:
        holds = all(self.model.get(check.key) == check.value for check in checks)
        result = self.stores[client].commit(ops, checks)
        assert result.succeeded is holds
        done = ops if holds else []
        self.wrote(apply(self.model, done), done)
        assert result.revision == self.revision

    @rule(client=st.integers(0, 1), ops=branches, otherwise=branches, key=keys, offset=st.sampled_from([0, 0, 1]))
    def commit_a_branch(self, client: int, ops: list[WriteOp], otherwise: list[WriteOp], key: str, offset: int) -> None:
        at = self.put_at.get(key, self.revision) + offset
        done = ops if self.put_at.get(key) == at else otherwise
        after = apply(self.model, done)
        result = self.stores[client].commit(ops, [Condition(key, None, at)], otherwise)
        assert result.succeeded is (self.put_at.get(key) == at)
        assert result.deleted == len(self.model.keys() - after.keys())
        self.wrote(after, done)
        assert result.revision == self.revision

    @rule(client=st.integers(0, 1), steps=st.lists(st.tuples(keys, st.none() | values), max_size=8))
    def transact(self, client: int, steps: list[tuple[str, bytes | None]]) -> None:
        txn = self.stores[client].new_broker("a").new_txn()
        ops: list[Any] = []
        for key, value in steps:
            txn = txn.delete(key) if value is None else txn.put(key, value)
            ops.append(DeleteOp("a" + key) if value is None else PutOp("a" + key, value))
        txn.commit()
        self.wrote(apply(self.model, ops), ops)

    @rule(client=st.integers(0, 1), key=keys)
    def delete_prefix(self, client: int, key: str) -> None:
        after = apply(self.model, [DeleteOp(key, True)])
        assert bool(self.stores[client].new_broker().delete(key, with_prefix())) is (after != self.model)
        self.wrote(after, [DeleteOp(key, True)])

    @rule(client=st.integers(0, 1), key=keys)
    def read(self, client: int, key: str) -> None:
        pair = self.stores[client].read(key)
        assert (None if pair is None else pair.value) == self.model.get(key)
        assert (None if pair is None else pair.revision) == self.put_at.get(key)

    @rule(client=st.integers(0, 1), key=keys, data=st.data())
    def read_at_any_revision(self, client: int, key: str, data: st.DataObject) -> None:
        revision = data.draw(st.sampled_from(sorted(self.past)))
        pair = self.stores[client].read_at(key, revision)
        assert (None if pair is None else pair.value) == self.past[revision].get(key)
        assert pair is None or pair.revision <= revision

    @rule(client=st.integers(0, 1), prefix=keys | st.just(""), after=keys | st.just(""), limit=limits, data=st.data())
    def list_a_part_of_any_state(self, client: int, prefix: str, after: str, limit: int, data: st.DataObject) -> None:
        revision = data.draw(st.sampled_from([0, *sorted(self.past)]))
        then = self.past[revision] if revision else self.model
        expected = sorted((key, value) for key, value in then.items() if key.startswith(prefix) and key > after)
        scan = self.stores[client].scan_page(prefix, after=after, limit=limit, revision=revision)
        assert scan.revision == (revision or self.revision)
        assert [(pair.key, pair.value) for pair in scan] == expected[: limit or None]

    @rule(client=st.integers(0, 1), key=keys)
    def history(self, client: int, key: str) -> None:
        versions = {one.revision: one.value for one in self.stores[client].new_broker().history(key)}
        value = None
        for revision in sorted(self.past):
            value = versions.pop(revision, value)
            assert value == self.past[revision].get(key)
        assert versions == {}

    @rule(client=st.integers(0, 1), prefix=keys | st.just(""))
    def list(self, client: int, prefix: str) -> None:
        pairs = [(pair.key, pair.value) for pair in self.stores[client].scan(prefix)]
        assert pairs == sorted((key, value) for key, value in self.model.items() if key.startswith(prefix))

    @rule(client=st.integers(0, 1), prefix=keys | st.just(""), data=st.data())
    def stream_after_any_earlier_revision(self, client: int, prefix: str, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.past)))
        begun = {key: value for key, value in self.past[start].items() if key.startswith(prefix)}
        batches = all_after(self.stores[client], prefix, start, self.revision)
        assert batches[-1].revision == self.revision
        assert fold(batches, begun) == {key: value for key, value in self.model.items() if key.startswith(prefix)}
        for commit in (commit for batch in batches for commit in batch.commits):
            assert commit.revision in self.past, "a commit is whole: no state in between has a revision"

    @rule(client=st.integers(0, 1))
    @precondition(lambda self: self.stores)
    def reopen(self, client: int) -> None:
        self.stores[client].close()
        self.stores[client] = connect(self.place)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if hasattr(self, "stores"):
            assert state(self.stores[0]) == self.model


def machine(url: str) -> Any:
    case = type("Machine", (StoreMachine,), {"url": url}).TestCase
    case.settings = settings(parent=settings.default, max_examples=40, stateful_step_count=25)
    return case


TestMemory = machine("memory://{name}")
TestSQLite = machine("sqlite://{folder}/store.db?synchronous=off")


@pytest.mark.postgres
@pytest.mark.timeout(300)
def test_a_store_in_postgresql(postgres: PostgresServer) -> None:  # noqa: F811
    run_state_machine_as_test(
        type("PostgresMachine", (StoreMachine,), {"url": postgres.url + "?schema=s{name}"}),
        settings=settings(parent=settings.default, max_examples=5, stateful_step_count=25),
    )
