"""The writes that calls made themselves: a key that was written is not called with the value from before.

Source: contract C20, C21.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from datasync.api import WAIT_TIMEOUT
from datasync.consumer.view.condition import leaves

#: Held keys beyond which those whose time is over are dropped.
MANY = 1000


class _Write(NamedTuple):
    source: str
    revision: int
    #: Monotonic time from which on it holds up nothing.
    until: float


class OwnWrites:
    """The keys that calls have written, each until the source has delivered that write, or for ``WAIT_TIMEOUT``.

    Args:
      watcher: Only what is written through it, or through a member of it, is known to arrive.
      prefixes: The prefixes of the keys that are called.
      lock: The owner's lock. It is held in every call but that of ``observe``.
      now: The monotonic clock.
    """

    def __init__(
        self, watcher: object, prefixes: tuple[str, ...], lock: threading.RLock, now: Callable[[], float]
    ) -> None:
        self._mirrors = {id(mirror): mirror for mirror in _mirrors_of(watcher)}
        self._prefixes = prefixes or ("",)
        self._lock = lock
        self._now = now
        self._seen: dict[str, int] = {}  # source to the revision that it has delivered
        self._keys: dict[str, _Write] = {}
        self._deleted: dict[str, _Write] = {}  # by prefix
        #: Keys whose calls wait.
        self.waiting: set[str] = set()

    def observe(self, mirror: Any, key: str, revision: int, prefix: bool) -> None:
        """Note that a call wrote *key*, or with *prefix* deleted every key that begins with it."""
        if id(mirror) not in self._mirrors or not (prefix or key.startswith(self._prefixes)):
            return
        with self._lock:
            if self._seen.get(mirror.name, 0) >= revision:
                return
            now = self._now()
            if len(self._keys) >= MANY:
                self._keys = {one: write for one, write in self._keys.items() if write.until > now}
            written = self._deleted if prefix else self._keys
            written[key] = _Write(mirror.name, revision, now + WAIT_TIMEOUT)

    def held_until(self, key: str) -> float:
        """Return the time until which *key* is not to be called; 0 for a key that may be called now."""
        if not self._keys and not self._deleted:
            return 0.0
        now = self._now()
        writes = [self._keys.get(key), *(write for prefix, write in self._deleted.items() if key.startswith(prefix))]
        return max((write.until for write in writes if write is not None and write.until > now), default=0.0)

    def deliver(self, source: str, revision: int) -> list[str]:
        """Note that *source* has delivered everything up to *revision*. Return the keys that need not wait any more."""
        self._seen[source] = revision
        for written in (self._keys, self._deleted):
            for key in [k for k, write in written.items() if write.source == source and write.revision <= revision]:
                del written[key]
        ready = [key for key in self.waiting if not self.held_until(key)]
        self.waiting.difference_update(ready)
        return ready


def _mirrors_of(watcher: Any) -> Iterator[object]:
    """Return the mirrors that *watcher* and its members fill; what writes to their sources names them."""
    for leaf in leaves(watcher):
        inner = getattr(leaf, "watcher", None)  # of an adapter, which also has a writer
        yield from [getattr(leaf, "registry", leaf)] if inner is None else _mirrors_of(inner)
