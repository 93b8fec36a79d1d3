"""Processes as a supervisor's tests see them: what is alive in a process group, and commands that note their lives."""

from __future__ import annotations

import sys
from pathlib import Path

#: Appends a time of the boot clock to the file of its argument, as often as it can.
_BEAT = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
while True:
    os.write(file, b"%.6f\\n" % time.clock_gettime(time.CLOCK_BOOTTIME))
    time.sleep(0.002)
"""


def beating(path: Path) -> list[str]:
    """Return a command that notes in *path* when it was alive, at times that processes of one machine can compare."""
    return [sys.executable, "-I", "-S", "-c", _BEAT, str(path)]


def beats(path: Path) -> list[float]:
    """Return the times that a command noted."""
    return [float(line) for line in lines(path)]


def lines(path: Path) -> list[str]:
    """Return the complete lines of *path*; none when it is not there."""
    return path.read_text().splitlines() if path.exists() else []


def members(group: int) -> list[int]:
    """Return the processes of a process group that run; a zombie does not."""
    assert group > 0, "the command was not started"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # it has ended meanwhile
                continue
            if int(its_group) == group and state not in "ZX":
                found.append(int(entry.name))
    return found
