"""The fields that a reader does not know, counted by name.

A program of the old version reads what one of the new version wrote, during every rolling upgrade.
Source: contract C19.
"""

from __future__ import annotations

import os
import threading
from collections import Counter

from datasync.errors import InvalidArgumentError
from datasync.runtime.logs import get_logger
from datasync.runtime.monitoring import count

log = get_logger(__name__)

#: Names that a codec counts one by one: a peer could invent new ones for ever. The rest is counted as ``OTHERS``.
MAX_NAMES = 1000
OTHERS = "(others)"

#: Guards all counts. Reentrant because a finalizer may decode.
_lock = threading.RLock()


def _renew_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


# Not taken before the fork: a module that is imported in the middle of one is only asked to release.
os.register_at_fork(after_in_child=_renew_in_child)


class UnknownFields(Counter[str]):
    """Field path without positions, such as ``interfaces[].speed``, to the number of times that it was ignored.

    Threads: any.
    """

    def __init__(self, subject: str, unknown: str) -> None:
        if unknown not in ("ignore", "error"):
            raise InvalidArgumentError('unknown must be "ignore" or "error"')
        super().__init__()
        self.subject = subject
        #: False when an unknown field is an error.
        self.ignored = unknown == "ignore"

    def note(self, path: str) -> None:
        """Count the field at *path*, and log it the first time."""
        with _lock:
            if path not in self and len(self) >= MAX_NAMES:
                path = OTHERS
            first = path not in self
            self[path] += 1
        count("unknown_fields")
        if first:
            log.warning("%s: the field %s is unknown here and ignored from now on", self.subject, path)

    def __repr__(self) -> str:
        return f"<{len(self)} unknown fields of {self.subject}>"
