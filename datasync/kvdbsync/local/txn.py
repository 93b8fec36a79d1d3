"""The common base of local transactions: operations collected in order, then committed at once."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from datasync.errors import InvalidArgumentError
from datasync.events import ChangeValue
from datasync.runtime.threads import ForkGuard
from datasync.runtime.wording import counted

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class CommitFunction(Protocol[ResultT_co]):
    """The target of a transaction: a registry's ``propagate_changes``, ``propagate_resync``, ``submit_changes``, ..."""

    def __call__(self, changes: Mapping[str, ChangeValue], /, *, ctx: contextvars.Context | None = None) -> ResultT_co:
        """Apply *changes*, in their order, as one transaction."""


class LocalTxn(Generic[ResultT]):
    """Operations on keys. The last one per key wins, and takes its place at the end of the order.

    Args:
      commit: Called once per ``commit``, with all operations.

    Threads: any; no lock is held while committing. An operation during a commit in another thread becomes part of it,
    or of the next one.
    Source: cn-infra ``datasync/kvdbsync/local``; contract C4.
    """

    def __init__(self, commit: CommitFunction[ResultT]) -> None:
        if not callable(commit):
            raise InvalidArgumentError(f"commit must be a function to call, not {type(commit).__name__}")
        self._commit = commit
        self._guard = ForkGuard(type(self).__name__)
        self._lock = threading.Lock()  # guards _changes
        self._changes: dict[str, ChangeValue] = {}

    def commit(self, ctx: contextvars.Context | None = None) -> ResultT:
        """Commit everything as one transaction; return the result of the constructor's *commit*, or raise its error.

        The transaction is empty afterwards and can be used again, also after an error. An error does not mean that
        nothing was applied (``DoneTimeout``, ``PropagationError``), so the operations are not sent again.
        """
        self._guard.check()
        with self._lock:
            changes, self._changes = self._changes, {}
        return self._commit(changes, ctx=ctx)

    def _add(self, change: ChangeValue) -> None:
        self._guard.check()
        with self._lock:
            self._changes.pop(change.get_key(), None)  # a dict would keep the place of the first operation
            self._changes[change.get_key()] = change

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {counted(len(self._changes), 'operation')}>"
