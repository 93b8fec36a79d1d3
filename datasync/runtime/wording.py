"""Phrases that many messages share."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return *count* with *noun*, or with *plural* (by default *noun* with an *s*) unless *count* is 1: ``2 keys``."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"
