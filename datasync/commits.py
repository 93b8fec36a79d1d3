"""Transactions as a reader passes them from a store to a registry.

Source: contract C1, C4, C13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from datasync.events import ResyncReason


class Commit(NamedTuple):
    """One transaction of the store's history: *ops* are (key, value) in its order, None for a delete, a key once."""

    revision: int
    ops: Sequence[tuple[str, bytes | None]]

    def __repr__(self) -> str:
        return f"Commit(revision={self.revision}, keys={[key for key, _ in self.ops]!r})"


class Batch(NamedTuple):
    """Whole commits in order, and the revision up to which the stream is complete with them.

    No commits: a bookmark, the word that nothing else happened up to *revision*.
    """

    revision: int
    commits: Sequence[Commit]


class ReaderSink(Protocol):
    """Where a reader puts what it reads, called from the reader's thread only: a ``syncbase.Registry`` is one."""

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        """The full state: key to (revision, value). The dict is the sink's own from now on."""
        ...

    def feed_changes(self, batch: Batch) -> None:
        """Commits that follow the last snapshot or batch without a gap."""
        ...

    def source_lost(self, error: BaseException) -> None:
        """The store cannot be read; the next snapshot or batch says that it can be again."""
        ...
