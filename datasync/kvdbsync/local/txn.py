"""What both kinds of local transaction share: operations gathered in order, then handed over at once."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from datasync.errors import InvalidArgumentError
from datasync.events import ChangeValue
from datasync.runtime.threads import ForkGuard

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class CommitFunction(Protocol[ResultT_co]):
    """Where a transaction goes: a registry's ``propagate_changes``, ``propagate_resync``, ``submit_changes``, ..."""

    def __call__(self, changes: Mapping[str, ChangeValue], /, *, ctx: contextvars.Context | None = None) -> ResultT_co:
        """Apply *changes*, in their order, as one transaction."""
        ...


class LocalTxn(Generic[ResultT]):
    """Operations on keys; the last one per key wins, and its place in the order is that of that last one.

    Args:
      commit: Called once per ``commit``, with all operations.

    Threads: any; no lock is held while committing. An operation that meets a commit in another thread is in it, or
    waits for the next.
    Source: cn-infra ``datasync/kvdbsync/local``; contract section 2.
    """

    def __init__(self, commit: CommitFunction[ResultT]) -> None:
        if not callable(commit):
            raise InvalidArgumentError(f"commit must be a function to call, not {type(commit).__name__}")
        self._commit = commit
        self._guard = ForkGuard(type(self).__name__)
        self._lock = threading.Lock()  # guards _changes
        self._changes: dict[str, ChangeValue] = {}

    def commit(self, ctx: contextvars.Context | None = None) -> ResultT:
        """Hand everything over as one transaction, and return or raise what *commit* of the constructor does.

        The transaction is empty then, and can be used again, also when this raises: an error does not mean that
        nothing was applied (``DoneTimeout``, ``PropagationError``), so what was sent is never sent again by itself.
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
        return f"<{type(self).__name__} of {len(self._changes)} operation(s)>"
