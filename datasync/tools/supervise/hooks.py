"""Commands of the user around a change: the renderer, the check, and the reload."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from datasync.errors import ClosedError, DatasyncError
from datasync.runtime.closing import Closable
from datasync.tools.supervise.child import Child, Ending


class HookFailedError(DatasyncError):
    """A command around a change failed; it is run again."""

    retryable = True


class Hooks(Closable):
    """Runs commands of a shell one after the other, each as a guarded child. Threads: one; ``close`` any."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._lock = threading.Lock()  # guards the two below
        self._running: Child | None = None
        self._closed = False

    def run(self, what: str, command: str, variables: Mapping[str, str]) -> None:
        """Run *command* with the variables of this process and *variables*; its output is ours.

        Raises:
          HookFailedError: Its exit code is not 0.
          ClosedError: ``close`` was called.
        """
        with self._lock:
            if self._closed:
                raise ClosedError(f"the {what} command is not run any more")
            child = self._running = Child(["sh", "-c", command], {**os.environ, **variables}, ending=self._ending)
        try:
            code = child.wait()
        finally:
            child.close()
        with self._lock:
            self._running = None
            if self._closed:
                raise ClosedError(f"the {what} command was ended")
        if code != 0:
            raise HookFailedError(f"the {what} command failed with exit code {code}")

    def close(self) -> None:
        """End the command that runs; the next one is not run. May be called twice."""
        with self._lock:
            self._closed = True
            child = self._running
        if child is not None:
            child.end()
