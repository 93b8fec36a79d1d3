"""The log of datasync as one JSON object a line, with the fields that its records have."""

from __future__ import annotations

import json
import logging

FIELDS = ("source", "subscription", "state", "keys", "key", "error")


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level and message, and what datasync knows of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of *record*."""
        line = {"time": record.created, "level": record.levelname, "message": record.getMessage()}
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure() -> logging.Handler:
    """Write what datasync logs to the standard error, one object a line; return the handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    log = logging.getLogger("datasync")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler
