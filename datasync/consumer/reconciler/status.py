"""The status of a reconciler.

Source: contract C18, C20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
