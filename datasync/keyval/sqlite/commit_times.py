"""The commit times of the revisions that a store has read."""

from __future__ import annotations

import threading

#: Revisions of which a store remembers what they looked like: enough for all who may be between two streams.
MAX_REVISIONS = 256


class CommitTimes:
    """The marks of the revisions that were read last: a file whose content was exchanged may have others there.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the dictionary
        self._times: dict[int, float] = {}

    def note(self, revision: int, found: float | None) -> None:
        """*revision* was read, and had this mark."""
        with self._lock:
            self._times.pop(revision, None)
            if found is not None:
                self._times[revision] = found
            if len(self._times) > MAX_REVISIONS:
                del self._times[next(iter(self._times))]

    def of(self, revision: int) -> float | None:
        """The mark that *revision* had; None when that is not known."""
        with self._lock:
            return self._times.get(revision)
