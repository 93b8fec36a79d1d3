"""Positions and tokens: what a revision alone does not say, and the fate of a write without a response (C17, C23)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from datasync.errors import CompactedError, InvalidArgumentError, UnknownOutcome, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.memory import MemoryStore
from datasync.keyval.positions import MAX_POSITIONS, Position, Positions, check_remembered, check_token, new_token
from datasync.keyval.sqlite import SQLiteStore
from datasync.keyval.types import PutOp, RewoundError
from tests.support.stores import state

HERE = Position(7, "6-aa", "epoch")


def test_c23_the_same_commit_passes_the_check() -> None:
    HERE.check(HERE, "store")
    HERE.check(HERE._replace(token=""), "store")  # trimmed meanwhile
    HERE._replace(token="").check(HERE, "store")  # never told


@pytest.mark.parametrize("found", [HERE._replace(token="6-bb"), HERE._replace(epoch="another")])
def test_c23_another_commit_under_the_same_revision_is_a_rewind(found: Position) -> None:
    with pytest.raises(RewoundError, match="store: revision 7 has changed"):
        HERE.check(found, "store")


def test_positions_are_remembered_by_revision_and_are_bounded() -> None:
    positions = Positions()
    for revision in range(MAX_POSITIONS + 10):
        positions.note(Position(revision, f"{revision}-aa"))
    positions.note(Position(100))
    assert positions.of(9) is positions.of(100) is None
    assert positions.of(10) == Position(10, "10-aa")


def test_a_token_says_after_which_revision_its_commit_was_sent() -> None:
    token = new_token(41)
    assert check_token(token) == 41
    assert token != new_token(41)
    check_remembered(token, 42, "store")
    with pytest.raises(CompactedError, match="store: the history that would have the commit was trimmed"):
        check_remembered(token, 43, "store")


@pytest.mark.parametrize("token", ["", "x", "12", "-0123456789abcdef", "1-0123", "²-0123456789abcdef", None, 7])
def test_c16_what_is_no_token_is_refused(token: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a token is that of an UnknownOutcome"):
        check_token(token)


@pytest.fixture
def memory() -> Iterator[MemoryStore]:
    with MemoryStore() as store:
        yield store


@pytest.mark.parametrize("applied", [True, False])
def test_c17_an_unknown_outcome_can_be_settled(memory: MemoryStore, applied: bool) -> None:
    # given a write whose response was lost
    memory.lose_response(applied=applied)
    with pytest.raises(UnknownOutcome) as caught:
        memory.new_broker().put("a", b"1")
    # when the caller asks / then it is told truly, also when others wrote since
    memory.commit([PutOp("b", b"2")])
    assert memory.committed(caught.value.token) is applied
    assert ("a" in state(memory)) is applied
    # and once the history does not go back that far, it is told that nobody knows
    memory.commit([PutOp("b", b"3")])
    memory.compact()
    with pytest.raises(CompactedError):
        memory.committed(caught.value.token)


def test_c17_a_store_without_tokens_says_so(memory: MemoryStore) -> None:
    with pytest.raises(UnsupportedError, match="keeps no tokens"):
        Store.committed(memory, "1-0123456789abcdef")


@pytest.mark.parametrize("applied", [True, False])
def test_c17_an_unknown_outcome_of_a_file_can_be_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, applied: bool
) -> None:
    path = tmp_path / "store.db"
    with closing(SQLiteStore(path)) as store:
        # given a disk that fails in the commit
        class Failing:
            def __init__(self, connection: sqlite3.Connection) -> None:
                self._connection = connection

            def __getattr__(self, name: str) -> Any:
                return getattr(self._connection, name)

            def execute(self, sql: str, *arguments: Any) -> Any:
                if sql == "COMMIT":
                    if applied:
                        self._connection.execute(sql)
                    raise sqlite3.OperationalError("disk I/O error")
                return self._connection.execute(sql, *arguments)

        end = SQLiteStore._end

        def fail(self: SQLiteStore, now: Any) -> None:
            now.connection = Failing(now.connection)
            end(self, now)

        monkeypatch.setattr(SQLiteStore, "_end", fail)
        with pytest.raises(UnknownOutcome) as caught:
            store.commit([PutOp("a", b"1")])
        monkeypatch.undo()
        # when the caller, or another process, asks later / then it is told truly
        store.commit([PutOp("b", b"2")])
        assert store.committed(caught.value.token) is applied
        with closing(SQLiteStore(path)) as other:
            assert other.committed(caught.value.token) is applied
            assert ("a" in state(other)) is applied
        store.commit([PutOp("b", b"3")])
        store.compact()
        with pytest.raises(CompactedError):
            store.committed(new_token(1))
