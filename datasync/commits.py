"""The transactions that a reader passes from a store to a registry.

Source: contract C1, C4, C13.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from datasync.events import ResyncReason


class Commit(NamedTuple):
    """One transaction of a store: *ops* are (key, value) in its order, None for a delete, each key once."""

    revision: int
    ops: Sequence[tuple[str, bytes | None]]

    def __repr__(self) -> str:
        return f"Commit(revision={self.revision}, keys={[key for key, _ in self.ops]!r})"


class Batch(NamedTuple):
    """Whole commits in order, and the revision up to which the stream is complete with them.

    A batch without commits is a bookmark: there were no other changes up to *revision*.
    """

    revision: int
    commits: Sequence[Commit]


class ReaderSink(Protocol):
    """The receiver of a reader, such as a ``syncbase.Registry``. Called from the reader's thread only."""

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        """Take the full state: key to (revision, value). The sink keeps the dict."""

    def feed_changes(self, batch: Batch) -> None:
        """Take commits that follow the last snapshot or batch without a gap."""

    def source_lost(self, error: BaseException) -> None:
        """Note that the store cannot be read; the next snapshot or batch means that it can be read again."""
