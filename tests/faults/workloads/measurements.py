"""What is measured around the watchers: samples of the process, footprints before and after, how long a close takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.history import Closing, Course, Footprint, Sample
from tests.support.timing import at_most

#: Seconds between two samples, and seconds that what is ending may take until the last footprint.
EVERY, GRACE = 0.1, 3.0
#: Seconds that a ``close()`` may take beyond what is in flight.
CLOSE_BOUND = 2.0

_PAGE = os.sysconf("SC_PAGE_SIZE")


def footprint(server_watchers: int | None) -> Footprint:
    """The threads and descriptors of this process; grpc's own threads end when they like."""
    names = tuple(thread.name for thread in threading.enumerate() if not _foreign(thread))
    return Footprint(len(names), len(os.listdir("/proc/self/fd")), server_watchers, names)


def footprint_after(before: Footprint, server_watchers: Callable[[], int | None]) -> Footprint:
    """The footprint once it is no larger than *before*, or when there is no more hope that it will be."""
    deadline = time.monotonic() + GRACE
    while True:
        after = footprint(server_watchers())
        more = (after.server_watchers or 0) > (before.server_watchers or 0)
        if after.threads <= before.threads and after.descriptors <= before.descriptors and not more:
            return after
        if time.monotonic() > deadline:
            return after
        time.sleep(0.02)


def threads_left(before: set[threading.Thread]) -> list[str]:
    """The names of threads that were not there *before*, and do not end."""
    deadline = time.monotonic() + GRACE
    while True:
        left = [thread for thread in threading.enumerate() if thread not in before and not _foreign(thread)]
        if not left or time.monotonic() > deadline:
            return [thread.name for thread in left]
        left[0].join(0.05)


def close(what: str, closes: Callable[[], object], course: Course, in_flight: float) -> None:
    """Call *closes* and note how long it took; *in_flight* is for how long a put that is under way may go on."""
    began = time.monotonic()
    try:
        closes()
    finally:
        course.closings.append(Closing(what, time.monotonic() - began, at_most(CLOSE_BOUND) + in_flight))


def sample(pending: dict[str, int], written: int, recorded: int) -> Sample:
    """This process now."""
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    descriptors = len(os.listdir("/proc/self/fd"))
    return Sample(time.monotonic(), rss, threading.active_count(), descriptors, pending, written, recorded)


def _foreign(thread: threading.Thread) -> bool:
    module = getattr(getattr(thread, "_target", None), "__module__", None) or ""
    return isinstance(thread, threading._DummyThread) or module.partition(".")[0] == "grpc"
