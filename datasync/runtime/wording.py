"""Phrases that many messages share."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return *count* with *noun*, or with *plural* (by default *noun* with an *s*) unless *count* is 1: ``2 keys``."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def below(prefix: str) -> str:
    """Return what a listing of *prefix* shows: ``'app/'``, or ``all keys`` where it is empty."""
    return repr(prefix) if prefix else "all keys"
