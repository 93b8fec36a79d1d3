"""The clock of leases and TTLs: monotonic as ``time.monotonic``, but it also counts the time of a suspended machine.

A lease that a server, or another process, ends by such a clock must not look alive here when a laptop wakes up. Waits
and timeouts inside the process keep ``time.monotonic``: a suspended machine had no time for what they wait for.

Source: contract C15, C23.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial


def _number() -> int | None:
    # On macOS time.monotonic stops in sleep, and this clock does not. On Windows time.monotonic counts sleep already.
    number: int | None = getattr(time, "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME", None)
    if number is None:
        return None
    try:
        time.clock_gettime(number)
    except OSError:  # an old or emulated kernel
        return None
    return number


#: The clock of ``time.clock_gettime``, for another process of this machine; None where it is ``time.monotonic``.
NUMBER = _number()

_read: Callable[[], float] = time.monotonic if NUMBER is None else partial(time.clock_gettime, NUMBER)


def now() -> float:
    """Return the seconds since an arbitrary moment, usually the boot; comparable between processes of one boot.

    Threads: any. Call it as ``boot_clock.now()``, so that a test can replace it.
    """
    return _read()
