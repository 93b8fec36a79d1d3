"""A time in which nobody uses or opens a connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from datasync.keyval.sqlite.database import opening


class Holdable(Protocol):
    """A connection that a standstill can keep others from using."""

    def hold(self, deadline: float) -> bool:
        """Keep others from using it until ``release``. Return False if it stays in use until *deadline*."""

    def release(self) -> None:
        """Undo ``hold``, however often it was called, and even if an exception interrupted it."""


HeldT = TypeVar("HeldT", bound=Holdable)


class Standstill(Generic[HeldT]):
    """A time in which connections are held, so that nobody uses them, and none is opened.

    An exception, such as ^C, may interrupt every step: ``begin`` may be called again, and ``end`` releases everything.

    Threads: one.
    """

    def __init__(self) -> None:
        # True for those that are held.
        self._asked: dict[HeldT, bool] = {}

    @property
    def held(self) -> list[HeldT]:
        return [one for one, held in self._asked.items() if held]

    @property
    def busy(self) -> list[HeldT]:
        """Those that stayed in use."""
        return [one for one, held in self._asked.items() if not held]

    def begin(self, deadline: float, find: Callable[[], Iterable[HeldT]]) -> None:
        """Hold what *find* returns; do not wait longer than until *deadline* for all of them together."""
        first = True
        while True:
            # A thread acquires its connection's lock first and this lock second. So this lock is released while we wait
            # for a connection, and another round waits for the connections that were created meanwhile.
            opening.acquire()
            wanted = [one for one in find() if not self._asked.get(one)]
            if not wanted or (not first and all(one in self._asked for one in wanted)):
                return
            opening.release()
            first = False
            for one in sorted(wanted, key=id):  # in one order, so that two threads do not wait for each other
                self._asked[one] = False
                self._asked[one] = one.hold(deadline)

    def end(self) -> None:
        with suppress(RuntimeError):
            while True:  # as often as it was acquired
                opening.release()
        for one in self._asked:
            one.release()
        self._asked.clear()
