"""``python -m tests.interop send ADDRESS`` or ``… serve``: builds the Go peer if need be, and becomes it."""

from __future__ import annotations

import os
import sys

import pytest

from tests.interop.golang import go_peer


def main() -> None:
    try:
        program = go_peer()
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:  # what a test would say
        sys.exit(str(missing))
    os.execv(program, [str(program), *sys.argv[1:]])


if __name__ == "__main__":
    main()
