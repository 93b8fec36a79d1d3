"""Watching keys for a subcommand: the present state first, then each change.

Source: contract C13.
"""

from __future__ import annotations

from queue import Queue
from typing import NamedTuple

from datasync.events import ResyncReason
from datasync.keyval.api import Store
from datasync.keyval.watcher import START_TIMEOUT, Watch, WatchResp
from datasync.serializer import SerializerJSON
from datasync.tools.records import key_bytes

#: The kinds of a notice: a key of the present state, and what can happen to a key.
STATE, PUT, DELETE = "state", "put", "delete"


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
    """A watch that also puts the pairs of the first listing on the queue, and None when these are complete."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.queue: Queue[Notice | None] = Queue()
        self._start = prefix
        super().__init__(store, prefix, ("",), self._changed, SerializerJSON())

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        if reason is ResyncReason.INITIAL:
            for key in sorted(entries, key=key_bytes):
                at, value = entries[key]
                self.queue.put(Notice(STATE, self._start + key, at, value, None))
            self.queue.put(None)
        super().feed_snapshot(revision, entries, reason)

    def _changed(self, change: WatchResp) -> None:
        kind = DELETE if change.value is None else PUT
        self.queue.put(Notice(kind, self._start + change.key, change.revision, change.value, change.previous))


def follow(store: Store, prefix: str) -> StateFirst:
    """Watch the keys of *store* under *prefix*. Raises ``NotReadyError`` or another error if it cannot be read."""
    # Report a read error at once: the watch itself would retry. Read only the watched prefix, because the user may
    # have no permission for other keys.
    next(iter(store.scan(prefix, keys_only=True)), None)
    watch = StateFirst(store, prefix)
    watch.start(START_TIMEOUT)
    return watch
