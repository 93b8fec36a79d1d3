"""The sources, views and reconcilers of this process and their counts, for metrics and probes.

Registries, views and reconcilers enrol themselves; a metrics library that is installed reads them, and the tallies
of the sources. Nothing here knows such a library, and without one there are no tallies: the data path pays nothing.

Source: contract C22.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from bisect import bisect_left
from typing import Any

#: Upper bounds of the durations that a tally counts, in seconds; one more count is for what took longer.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0)


class Durations:
    """Durations by size: ``counts[n]`` of at most ``BOUNDS[n]`` seconds, the last one of more; their ``total``.

    Threads: one at a time notes; any thread may read the numbers, which only grow.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """The number of durations."""
        return sum(self.counts)

    def note(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Tally:
    """The counts of *owner*, a source or reconciler. The numbers only grow, so that a reader needs no lock.

    Threads: the holder of its owner's lock writes; any thread reads.
    """

    __slots__ = ("accepted", "counts", "kind", "name", "owner", "timed")

    def __init__(self, kind: str, name: str, owner: object) -> None:
        self.kind, self.name = kind, name
        self.owner = weakref.ref(owner)
        #: By the name of what was counted and its label: ``("resyncs", "initial")``.
        self.counts: dict[tuple[str, str], int] = {}
        #: Of changes that were accepted, from their arrival: a slot of its own, because they are what is frequent.
        self.accepted = Durations()
        #: By the name of what was timed.
        self.timed: dict[str, Durations] = {}

    def count(self, what: str, label: str = "", number: int = 1) -> None:
        """Count one of *what*, or a *number* of them."""
        self.counts[what, label] = self.counts.get((what, label), 0) + number

    def time(self, what: str, seconds: float) -> None:
        """Note that one of *what* took *seconds*."""
        durations = self.timed.get(what)
        if durations is None:
            durations = self.timed[what] = Durations()
        durations.note(seconds)


class Monitor:
    """The one of the process that hands out tallies; this one has none. A metrics library puts its own in its place."""

    def tally(self, kind: str, name: str, owner: object) -> Tally | None:
        """Return the tally for *owner*, the source or reconciler *name*; None while nobody counts."""
        return None

    def exposition(self, accept: str) -> tuple[str, bytes] | None:
        """Return content type and text of all metrics, in the form that the header *accept* asks for; None: none."""
        return None

    def hold(self) -> None:
        """Take the locks that a child of ``os.fork()`` must not inherit from another thread."""

    def release(self, *, in_child: bool) -> None:
        """Release what ``hold`` took; in a child, begin with nothing."""


#: The kinds of objects that count: they have a method ``measure``.
COUNTING = ("source", "reader", "reconciler", "mirror")

_started = time.time()
_monitor = Monitor()
#: Guards the one below, and its counts. Reentrant, because a finalizer may decode something.
_lock = threading.RLock()
#: Of what belongs to no source or reconciler; None while nobody counts, or nothing was counted yet.
_tally: Tally | None = None
#: The monitor whose locks the thread that forks holds.
_held: Monitor | None = None
#: Kind and object by its ``id``. A dict instead of a ``WeakSet``, which cannot be copied while others add to it.
_enrolled: dict[int, tuple[str, weakref.ref[Any]]] = {}


def monitor() -> Monitor:
    """Return the monitor of the process."""
    return _monitor


def count(what: str) -> None:
    """Count one of *what* that belongs to no source or reconciler, such as a value that does not decode."""
    global _tally
    with _lock:
        if _tally is None:
            _tally = _monitor.tally("process", "", count)
        if _tally is not None:
            _tally.count(what)


def install(new: Monitor) -> None:
    """Make *new* the monitor; what is enrolled already is asked to count."""
    global _monitor, _tally
    with _lock:
        _monitor, _tally = new, None
    for kind in COUNTING:
        for one in enrolled(kind):
            one.measure(new)


def enrol(kind: str, one: Any) -> None:
    """Add *one*, of a kind such as ``source``, ``view`` or ``mirror``, to those of this process while it lives."""
    number = id(one)
    _enrolled[number] = (kind, weakref.ref(one, lambda _: _enrolled.pop(number, None)))


def dismiss(one: Any) -> None:
    """Remove *one*, which was closed."""
    _enrolled.pop(id(one), None)


def enrolled(kind: str) -> list[Any]:
    """Return the objects of *kind* that were enrolled in this process, in that order."""
    found = (reference() for its_kind, reference in list(_enrolled.values()) if its_kind == kind)
    return [one for one in found if one is not None]


def started_at() -> float:
    """Return the time since which this process runs, in seconds since the epoch: at the import, or at the fork."""
    return _started


# These hooks are registered before those of any module that makes or enrols something: so a child begins with nothing
# before others renew what it inherits, and no thread waits for such a module's lock with that of the monitor in hand.


def _before_fork() -> None:
    global _held
    current = _monitor
    current.hold()
    _held = current


def _after_in_parent() -> None:
    global _held
    current, _held = _held, None
    if current is not None:
        current.release(in_child=False)


def _begin_in_child() -> None:
    global _held, _lock, _started, _tally
    _lock, _tally = threading.RLock(), None  # another thread of the parent may have held it
    _enrolled.clear()  # these belong to the parent
    _started = time.time()
    current, _held = _held, None
    if current is not None:
        current.release(in_child=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_begin_in_child)
