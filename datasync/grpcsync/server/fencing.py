"""A sender that begins a new session gives up the one before: nothing of that may be applied any more.

Where a line goes dead without a word, the server still holds requests of it that wait for their turn, while the sender
is back over another line with its full state. Applied after that, they would undo it, and nobody would ever know.

Source: contract C3, C17.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasync.runtime.threads import CLOSE_TIMEOUT

#: Senders whose last session is remembered; those that have a call under way always are.
MAX_REMEMBERED = 10_000
#: Characters of what a peer tells of its session.
MAX_TOLD = 100


class SenderSession:
    """One session of one sender, as one call of it sees it. Threads: any."""

    def __init__(self, fence: SessionFence | None, number: int) -> None:
        self._fence = fence
        self._number = number

    def begin(self, end: Callable[[], None] | None = None) -> bool:
        """Make it the newest; False when it cannot be. *end* is called when a newer one begins.

        Older ones are told to end, and if one of them is just handing something over, that is waited for.
        """
        return self._fence is None or self._fence.begin(self._number, end)

    def enter(self) -> bool:
        """Before a request of it is handed over; False when it is not the newest any more. Else ``leave`` follows."""
        return self._fence is None or self._fence.enter(self._number)

    def leave(self) -> None:
        """It was handed over."""
        if self._fence is not None:
            self._fence.leave(self._number)

    def over(self, end: Callable[[], None]) -> None:
        """The call that gave *end* is over."""
        if self._fence is not None:
            self._fence.over(end)


class SessionFence:
    """The sessions of one sender. Threads: any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards the three below
        self._newest = 0
        self._entered: Counter[int] = Counter()
        self._ends: list[tuple[int, Callable[[], None]]] = []
        #: Calls that hold it; guarded by the lock of ``SessionFences``.
        self.users = 0

    def begin(self, number: int, end: Callable[[], None] | None) -> bool:
        with self._changed:
            if number < self._newest:
                return False
            older = [tell for one, tell in self._ends if one < number]
            self._ends = [(one, tell) for one, tell in self._ends if one >= number]
            if end is not None:
                self._ends.append((number, end))
            self._newest = number
        for tell in older:
            tell()
        with self._changed:
            return self._changed.wait_for(lambda: all(one >= number for one in self._entered), CLOSE_TIMEOUT)

    def enter(self, number: int) -> bool:
        with self._changed:
            if number != self._newest:
                return False
            self._entered[number] += 1
            return True

    def leave(self, number: int) -> None:
        with self._changed:
            self._entered[number] -= 1
            if not self._entered[number]:
                del self._entered[number]
                self._changed.notify_all()

    def over(self, end: Callable[[], None]) -> None:
        with self._changed:
            self._ends = [(one, tell) for one, tell in self._ends if tell is not end]


class SessionFences:
    """The senders that tell of their sessions, as ``name/number``, by their source and name. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the fences and how many use them
        self._fences: OrderedDict[tuple[str, str], SessionFence] = OrderedDict()

    @contextmanager
    def of(self, source: str, told: str) -> Iterator[SenderSession]:
        """For the time of one call; of a peer that tells nothing, one that nobody ends."""
        name, _, number = told.rpartition("/")
        if not name or len(told) > MAX_TOLD or not (number.isascii() and number.isdecimal()):
            yield SenderSession(None, 0)
            return
        with self._lock:
            fence = self._fences.pop((source, name), None) or SessionFence()
            self._fences[source, name] = fence  # the last one: the first are forgotten first
            fence.users += 1
            if len(self._fences) > MAX_REMEMBERED:
                self._trim_locked()
        try:
            yield SenderSession(fence, int(number))
        finally:
            with self._lock:
                fence.users -= 1

    def _trim_locked(self) -> None:
        """Forget a tenth of them at once: looking for those that are not in use takes a while."""
        idle = [key for key, fence in self._fences.items() if not fence.users]
        for key in idle[: MAX_REMEMBERED // 10]:
            del self._fences[key]
