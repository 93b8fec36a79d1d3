"""The status of a reconciler.

Source: contract C18, C20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from datasync.errors import error_text
from datasync.runtime.logs import get_logger, one_line

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeyProblem:
    """A key whose last call failed: its ``error``, and the failed ``attempts`` since its value changed.

    ``next_in`` is the seconds to the next one, None when the key waits for a new value.
    """

    error: BaseException
    attempts: int
    next_in: float | None


@dataclass(frozen=True, slots=True)
class ReconcilerStatus:
    """``waiting`` keys, of which ``live`` ones, ``running`` calls, calls that were ``ok`` and that ``failed``.

    ``synced`` is False until everything that the sources sent was called; ``leading`` is False in a standby.
    """

    synced: bool
    leading: bool
    waiting: int
    live: int
    running: int
    ok: int
    failed: int
    problems: Mapping[str, KeyProblem]
    held: tuple[str, ...]


def say_failed(name: str, key: str, error: BaseException, delay: float) -> None:
    """Log that the call for *key* failed, with the text of the user's *error*; infinity as *delay* for no retry."""
    again = f"again in {delay:.1f} s" if delay < math.inf else "not again before its value changes"
    extra = {"subscription": name, "key": key, "state": "failing", "error": type(error).__name__}
    log.warning("%s: %r failed with %s; %s", name, key, one_line(error_text(error)), again, extra=extra)
