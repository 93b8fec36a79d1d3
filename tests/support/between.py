"""The end of a process that stands between a client and its server."""

from __future__ import annotations

import signal
import subprocess
from types import TracebackType

#: Seconds within which a process that was told to end must have ended.
STOP_TIMEOUT = 5.0


class ProcessBetween:
    """Ends the process that a subclass starts and keeps in ``_process``. A context manager that stops it."""

    _process: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """End it in order; connections that are open are closed."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.send_signal(signal.SIGCONT)  # a frozen process does not receive SIGTERM
            process.send_signal(how)
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT)
