"""Loggers whose handlers and filters cannot stop the code that logs, and lines that strangers cannot fill the log with.

Source: contract C15, C16, C22.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

#: Seconds between two lines of the same text.
LOG_INTERVAL = 60.0
#: Characters of a user's text in a line.
MAX_TEXT = 2000


def get_logger(name: str) -> logging.Logger:
    """Return the logger *name*. An exception of a handler or filter is printed, as ``logging`` itself does, not raised.

    Otherwise a log line between two steps would leave the second one undone. ^C and ``sys.exit()`` are raised.
    """
    logger = logging.getLogger(name)

    def handle_safely(record: logging.LogRecord) -> None:
        try:
            type(logger).handle(logger, record)  # as found now: an application may have replaced it since
        except Exception:
            # Not the record: its arguments may be what raised.
            if logging.raiseExceptions and sys.stderr is not None:
                sys.stderr.write(f"a log handler or filter of {name} raised:\n")
                traceback.print_exc(file=sys.stderr)

    logger.handle = handle_safely  # type: ignore[method-assign]
    return logger


class LimitedLog:
    """Writes a line at once, and then one of the same text per *interval* seconds, which counts those left out.

    Lines have the same text if their format string is the same: the arguments come from strangers.

    Args:
      interval: Seconds between two lines of the same text.
      now: The monotonic clock.

    Threads: any; no line is written under the lock. Source: contract C16.
    """

    def __init__(
        self, log: logging.Logger, *, interval: float = LOG_INTERVAL, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._interval = interval
        self._now = now
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
        now = self._now()
        with self._lock:
            last, left_out = self._lines.get(text, (-math.inf, 0))
            if now - last < self._interval:
                self._lines[text] = (last, left_out + 1)
                return
            self._lines[text] = (now, 0)
        if left_out:
            text += " (and %d more since the last such line)"
            args = (*args, left_out)
        write(text, *args, stacklevel=3)


def one_line(text: str) -> str:
    """Return *text*, which is a user's, as one line that every handler can write: escaped, and cut at ``MAX_TEXT``."""
    shown = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    if shown.isprintable():
        return shown
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in shown)
