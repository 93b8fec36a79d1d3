"""The console of the command: colours on a terminal, plain text in a file or pipe and with ``NO_COLOR``."""

from __future__ import annotations

import os
import sys

from rich.console import Console

#: Columns of the output when it is not a terminal.
PLAIN_WIDTH = 100


def make_console() -> Console:
    """Return a console on standard output."""
    terminal = sys.stdout.isatty()
    plain = not terminal or os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return Console(color_system=None if plain else "auto", highlight=False, width=None if terminal else PLAIN_WIDTH)
