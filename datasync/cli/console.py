"""How the command looks: in colour on a terminal, plain in a file, a pipe, and where ``NO_COLOR`` is set."""

from __future__ import annotations

import os
import sys

from rich.console import Console

#: Columns where there is no terminal to ask.
PLAIN_WIDTH = 100


def make_console() -> Console:
    """A console on standard output."""
    if not sys.stdout.isatty():
        return Console(color_system=None, highlight=False, width=PLAIN_WIDTH)
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown"):
        return Console(color_system=None, highlight=False)
    return Console(highlight=False)
