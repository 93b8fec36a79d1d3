"""Log lines of servers and of threads: strangers cannot fill the log with them, and a broken handler ends no thread.

On floor 0 because transports of every protocol write such lines. Source: contract C15, C16, C22.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Any

from datasync.runtime.timers import SYSTEM_CLOCK, Clock

#: Seconds between two lines of the same text.
LOG_INTERVAL = 60.0


def log_safely(write: Callable[..., None], text: str, *args: Any, depth: int = 2) -> None:
    """Call *write*, a method of a logger, with *text* and *args*; an error of the application's handlers is dropped.

    For threads that must go on, and between a change of state and what has to follow it. The record names the caller,
    with *depth* the one that many calls up.

    Threads: any.
    """
    try:
        write(text, *args, stacklevel=depth)
    except Exception:  # there is no other place to report it
        return


class LimitedLog:
    """Writes a line at once, and then one of the same text per *interval* seconds, which counts those left out.

    Lines have the same text if their format string is the same: the arguments come from strangers.

    Args:
      interval: Seconds between two lines of the same text.

    Threads: any; no line is written under the lock, and an error of the application's handlers is dropped.
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
        self._write(self._log.warning, text, args)

    def error(self, text: str, *args: Any) -> None:
        """Like ``warning``, as an ERROR."""
        self._write(self._log.error, text, args)

    def _write(self, write: Callable[..., None], text: str, args: tuple[Any, ...]) -> None:
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
        log_safely(write, text, *args, depth=4)
