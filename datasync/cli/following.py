"""Watching keys for a subcommand: the present state first, then each change.

Source: contract C13.
"""

from __future__ import annotations

from queue import Full, Queue
from typing import NamedTuple

from datasync.events import ResyncReason
from datasync.keyval.api import Store
from datasync.keyval.watcher import START_TIMEOUT, Watch, WatchResp
from datasync.serializer import SerializerJSON
from datasync.tools.records import key_bytes

#: The kinds of a notice: a key of the present state, and what can happen to a key.
STATE, PUT, DELETE = "state", "put", "delete"
#: Notices that wait on the queue at most.
MAX_WAITING = 1000
#: Seconds between two looks whether the watch was closed, while the queue is full.
CLOSE_CHECK = 0.2


class Notice(NamedTuple):
    """A key of the present state, or one that changed; *key* is absolute."""

    kind: str
    key: str
    revision: int
    value: bytes | None
    previous: bytes | None

    def __repr__(self) -> str:
        return f"<{self.kind} of {self.key!r} at revision {self.revision}>"


class StateFirst(Watch):
    """A watch that also puts the pairs of the first listing on the queue, and None when these are complete.

    The queue is bounded. A reader of it that is slow delays the reader of the store, which goes on after the last
    revision that it has, or compares states if the store has forgotten that revision: so nothing grows, and no change
    is left out while the store remembers it (contract C8, C13).
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.queue: Queue[Notice | None] = Queue(MAX_WAITING)
        self._start = prefix
        super().__init__(store, prefix, ("",), self._changed, SerializerJSON())

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        super().feed_snapshot(revision, entries, reason)  # the first one only ends the wait of start()
        if reason is ResyncReason.INITIAL:
            for key in sorted(entries, key=key_bytes):
                at, value = entries[key]
                self._put(Notice(STATE, self._start + key, at, value, None))
            self._put(None)

    def _changed(self, change: WatchResp) -> None:
        kind = DELETE if change.value is None else PUT
        self._put(Notice(kind, self._start + change.key, change.revision, change.value, change.previous))

    def _put(self, notice: Notice | None) -> None:
        """Put *notice* on the queue. While that is full the store is not read, and ``close`` ends the wait."""
        while not self._closed:
            try:
                self.queue.put(notice, timeout=CLOSE_CHECK)
                return
            except Full:
                continue


def follow(store: Store, prefix: str) -> StateFirst:
    """Watch the keys of *store* under *prefix*. Raises ``NotReadyError`` or another error if it cannot be read."""
    # Report a read error at once: the watch itself would retry. Read only the watched prefix, because the user may
    # have no permission for other keys.
    next(iter(store.scan(prefix, keys_only=True)), None)
    watch = StateFirst(store, prefix)
    watch.start(START_TIMEOUT)
    return watch
