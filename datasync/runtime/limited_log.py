"""Log lines that a stranger can cause, limited in number, so that nobody without access can fill the log.

On floor 0 because servers of every protocol log what strangers do. Source: contract C16, C22.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

from datasync.runtime.timers import SYSTEM_CLOCK, Clock

#: Seconds between two lines of the same text.
LOG_INTERVAL = 60.0


class LimitedLog:
    """Writes a line at once, and then one of the same text per *interval* seconds, which counts those left out.

    Lines have the same text if their format string is the same: the arguments come from strangers.

    Args:
      interval: Seconds between two lines of the same text.

    Threads: any; no line is written under the lock.
    Source: contract C16.
    """

    def __init__(self, log: logging.Logger, *, interval: float = LOG_INTERVAL, clock: Clock = SYSTEM_CLOCK) -> None:
        self._log = log
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()  # guards the one below
        #: By format string: the time of the last line, and the number of lines left out since.
        self._lines: dict[str, tuple[float, int]] = {}

    def warning(self, text: str, *args: Any) -> None:
        """Log *text* with *args* as a WARNING, unless a line of this text was written within the interval."""
        self._write(logging.WARNING, text, args)

    def error(self, text: str, *args: Any) -> None:
        """Like ``warning``, as an ERROR."""
        self._write(logging.ERROR, text, args)

    def _write(self, level: int, text: str, args: tuple[Any, ...]) -> None:
        now = self._clock.monotonic()
        with self._lock:
            last, left_out = self._lines.get(text, (-math.inf, 0))
            if now - last < self._interval:
                self._lines[text] = (last, left_out + 1)
                return
            self._lines[text] = (now, 0)
        if left_out:
            text += " (and %d more since the last such line)"
            args = (*args, left_out)
        self._log.log(level, text, *args, stacklevel=3)
