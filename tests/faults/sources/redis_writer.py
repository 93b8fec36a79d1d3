"""The only writer of a Redis source that uses the library, and the history that the server itself has.

The writer connects to the servers directly, and finds out for each transaction whether it was applied, whatever happens
to the servers. History and data are read by bare commands, and the log is decoded here again.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from datasync.errors import CompactedError, InvalidArgumentError, StoreConnectionError, StoreError, UnknownOutcome
from datasync.keyval.redis import RedisStore
from datasync.keyval.types import PutOp
from tests.faults.history import Op1, Truth, TruthCommit, brief
from tests.faults.sources.scripted_store import as_op

#: Outside the watched prefix.
MARKER = "marker"
#: Seconds within which servers must respond to the writer again.
BACK = 40.0

T = TypeVar("T")
#: Sends a command to the server that is the master now.
Ask = Callable[..., Any]


class RedisWriter:
    """Records what it writes. A transaction without a response is settled by its token, which the log confirms.

    Args:
      ask: Sends a bare command to the master.
      tag: What is in front of every key.
    """

    def __init__(self, store: RedisStore, prefix: str, truth: Truth, ask: Ask, tag: bytes = b"") -> None:
        self.store = store
        #: The highest revision that was ever written, in all epochs of the store.
        self.highest = 0
        self._prefix = prefix
        self._truth = truth
        self._ask = ask
        self._tag = tag
        self._count = 0

    def write(self, ops: Sequence[tuple[str, bytes | None]]) -> int:
        """Commit (key, value) pairs, None for a delete, and record the commit; return its revision, 0 for none.

        Raises:
          InvalidArgumentError: The driver or the server refuses them.
        """
        self._count += 1
        there = self._truth.state
        effect = [
            Op1(key, None if value is None else brief(value)) for key, value in ops if value is not None or key in there
        ]
        revision = self._commit(
            [PutOp(MARKER, b"%d" % self._count), *(as_op(self._prefix + key, value) for key, value in ops)]
        )
        self.highest = max(self.highest, revision)
        if revision and effect:
            self._truth.record(revision, effect)
        return revision

    def foreign(self) -> int:
        """Write outside the prefix: the revision increases, and nothing must be delivered."""
        return self.write([])

    def reread(self) -> None:
        """Record what the servers lost: the truth is what the log has, which answers again."""
        commits, last = self._patiently(self._log)
        known = {commit.revision: commit for commit in self._truth.epochs[-1].commits}
        base = last
        for revision in sorted(known):
            if revision > last or known[revision] != commits.get(revision, known[revision]):
                base = min(base, revision - 1)
                break
        if base < max(known, default=0):
            self._truth.rewind(base)

    def rewound(self, base: int) -> None:
        """Record that the store has lost everything above *base*."""
        self._truth.rewind(base)

    def revision(self) -> int:
        """The revision that the server has."""
        return self._patiently(lambda: self._log()[1])

    def compact(self, revision: int | None = None) -> None:
        try:
            self.store.compact(revision)
        except (CompactedError, StoreError):
            pass  # the server is down

    def held(self) -> dict[str, bytes]:
        """The pairs under the prefix, read key by key."""
        prefix = self._tag + self._prefix.encode()
        found: dict[str, bytes] = {}
        cursor: Any = b"0"
        while True:
            cursor, keys = self._patiently(partial(self._ask, "SCAN", cursor, "MATCH", prefix + b"*", "COUNT", 500))
            for key in keys:
                value = self._patiently(partial(self._ask, "GET", key))
                if value is not None:
                    found[key[len(prefix) :].decode()] = brief(value)
            if cursor == b"0":
                return found

    def check(self) -> None:
        """Check that the data is what was recorded."""
        held, state = self.held(), dict(self._truth.state)
        assert held == state, "the record of the writer is not what the server holds"

    def account(self) -> list[TruthCommit] | None:
        """The commits under the prefix that the log still has, in full; None if it has none."""
        commits, _ = self._patiently(self._log)
        return [commits[revision] for revision in sorted(commits)] or None

    def _log(self) -> tuple[dict[int, TruthCommit], int]:
        prefix = self._tag + self._prefix.encode()
        last = self._ask("HGET", self._tag + b"datasync:state", "last")  # first: no later entry is skipped
        entries = self._ask("XRANGE", self._tag + b"datasync:log", "-", "+")
        found: dict[int, TruthCommit] = {}
        for name, flat in entries:
            payload = dict(zip(flat[::2], flat[1::2], strict=True))[b"o"]
            revision, ops = int(name.split(b"-")[0]), []
            while payload:
                kind, key_size, value_size = struct.unpack(">cII", payload[:9])
                key, value = payload[9 : 9 + key_size], payload[9 + key_size : 9 + key_size + value_size]
                payload = payload[9 + key_size + value_size :]
                if key.startswith(prefix):
                    ops.append(Op1(key[len(prefix) :].decode(), brief(value) if kind == b"P" else None))
            if ops:
                found[revision] = TruthCommit(revision, tuple(ops))
        return found, int(last or 0)

    def _commit(self, ops: list[Any]) -> int:
        deadline = time.monotonic() + BACK
        while True:
            try:
                return self.store.commit(ops).revision
            except InvalidArgumentError:
                raise
            except UnknownOutcome as error:
                return self._settle(error.token)
            except StoreConnectionError:  # it was not sent
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _settle(self, token: str) -> int:
        """The revision of the transaction with *token*; 0 if it was not applied and never will be."""
        applied = self._patiently(lambda: self.store.committed(token))
        found = self._patiently(lambda: self._revision_of(token.encode()))
        assert applied == bool(found), "committed() does not say what the log says"
        return found

    def _revision_of(self, token: bytes) -> int:
        for name, flat in self._ask("XREVRANGE", self._tag + b"datasync:log", "+", "-"):
            if flat[1] == token:
                return int(name.split(b"-")[0])
        return 0

    def _patiently(self, ask: Callable[[], T]) -> T:
        from redis.exceptions import RedisError

        deadline = time.monotonic() + BACK
        while True:
            try:
                return ask()
            except (StoreError, RedisError, OSError, StopIteration):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
