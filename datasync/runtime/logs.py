"""Loggers whose handlers and filters cannot stop the code that logs."""

from __future__ import annotations

import logging
import sys
import traceback


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
