"""The signal that wakes the streams of this process when one of its stores commits."""

from __future__ import annotations

from datasync.runtime.threads import SteppedCondition


class CommitSignal:
    """Wakes the streams of this process on one file, for the commits of every store object. Threads: any."""

    def __init__(self) -> None:
        self._changed = SteppedCondition()
        #: The number of signals. Read it before the file: ``wait`` returns at once if a commit follows.
        self.count = 0

    def wake(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait(self, count: int, timeout: float) -> None:
        with self._changed:
            if self.count == count:
                self._changed.wait(timeout)
