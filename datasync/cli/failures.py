"""Errors of the system in words."""

from __future__ import annotations

import os


def text_of(error: BaseException) -> str:
    """Return what failed: an ``OSError`` of a file without its number, any other error as it is."""
    if not isinstance(error, OSError) or error.strerror is None or not isinstance(error.filename, (str, bytes)):
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"
