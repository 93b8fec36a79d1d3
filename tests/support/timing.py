"""Upper limits of time that hold on a busy machine as well."""

from __future__ import annotations

import time
from pathlib import Path

#: Seconds of CPU time that one measurement takes.
SPIN = 0.02
#: CPU nanoseconds, and nanoseconds of waiting for a CPU, of the calling thread: Linux only.
SCHEDULED = Path("/proc/thread-self/schedstat")


def at_most(seconds: float) -> float:
    """*seconds* on an idle machine: more when other processes keep this thread from running at the moment.

    ``assert time.monotonic() - begun < at_most(2.0)`` measures the load after the elapsed time was read.
    """
    return seconds * slowdown()


def slowdown() -> float:
    """The factor by which this thread is slower than on an idle machine, at least 1.

    The lock of the interpreter is not counted: a thread that waits for it does not wait for a CPU.
    """
    begun, before = time.monotonic(), _scheduled()
    end = time.thread_time() + SPIN
    while time.thread_time() < end:
        pass
    if before is None or (after := _scheduled()) is None:
        return max(1.0, (time.monotonic() - begun) / SPIN)
    ran, waited = (after[place] - before[place] for place in range(2))
    return 1.0 + waited / max(ran, 1)


def _scheduled() -> tuple[int, int] | None:
    try:
        ran, waited, _ = map(int, SCHEDULED.read_text().split())
    except (OSError, ValueError):
        return None
    return ran, waited
