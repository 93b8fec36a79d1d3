"""The commit times of the revisions that a store has read."""

from __future__ import annotations

import threading

#: Revisions whose commit times a store remembers: enough for all readers that are between two streams.
MAX_REVISIONS = 256


class CommitTimes:
    """The commit times of recently read revisions. If another file was copied over this one, they differ.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _times
        self._times: dict[int, float] = {}

    def note(self, revision: int, found: float | None) -> None:
        """Remember the commit time that was read for *revision*."""
        with self._lock:
            self._times.pop(revision, None)
            if found is not None:
                self._times[revision] = found
            if len(self._times) > MAX_REVISIONS:
                del self._times[next(iter(self._times))]

    def of(self, revision: int) -> float | None:
        """Return the remembered commit time of *revision*, or None."""
        with self._lock:
            return self._times.get(revision)
