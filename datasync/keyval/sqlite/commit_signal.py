"""The wake-up of the streams of this process when one of its stores commits."""

from __future__ import annotations

import threading


class CommitSignal:
    """Wakes the streams of this process on one file, whichever store object commits to it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """Take it before looking at the file: a commit after that makes ``wait`` return at once."""
        return self._count

    def wake(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, count: int, timeout: float) -> None:
        with self._changed:
            if self._count == count:
                self._changed.wait(timeout)
