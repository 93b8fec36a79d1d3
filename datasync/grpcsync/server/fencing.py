"""Fencing of sessions: when a sender starts a new session, no request of an older one is applied any more.

After a half-open connection the server may still hold requests that wait for their turn, while the sender has already
reconnected and sent its full state. Applied afterwards, these requests would silently undo that state.

Source: contract C3, C17.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasync.runtime.threads import CLOSE_TIMEOUT, SteppedCondition

#: Senders whose newest session is remembered. Senders with a running call are always remembered.
MAX_REMEMBERED = 10_000
#: Maximum length of the session metadata, in characters.
MAX_SESSION_TEXT = 100


class SenderSession:
    """The session that one call belongs to; one without a fence is always the newest. Threads: any."""

    def __init__(self, fence: SessionFence | None, number: int) -> None:
        self._fence = fence
        self._number = number

    def begin(self, end: Callable[[], None] | None = None) -> bool:
        """Make this session the newest one, end the older ones, and wait for their submissions to finish.

        *end* is called when a newer session begins. Returns False if there is a newer session already, or a submission
        of an older one does not finish in time.
        """
        return self._fence is None or self._fence.begin(self._number, end)

    def enter(self) -> bool:
        """Start a submission. False if the session is not the newest one; otherwise ``leave`` must follow."""
        return self._fence is None or self._fence.enter(self._number)

    def leave(self) -> None:
        """Finish a submission."""
        if self._fence is not None:
            self._fence.leave(self._number)

    def over(self, end: Callable[[], None]) -> None:
        """Note that the call which passed *end* to ``begin`` is over."""
        if self._fence is not None:
            self._fence.over(end)


class SessionFence:
    """Lets only the newest session of one sender submit requests. Threads: any."""

    def __init__(self) -> None:
        self._changed = SteppedCondition()  # guards the three below
        self._newest = 0
        self._entered: Counter[int] = Counter()
        self._ends: list[tuple[int, Callable[[], None]]] = []
        #: Running calls of the sender; guarded by the lock of ``SessionFences``.
        self.users = 0

    def begin(self, number: int, end: Callable[[], None] | None) -> bool:
        with self._changed:
            if number < self._newest:
                return False
            older = [call for one, call in self._ends if one < number]
            self._ends = [(one, call) for one, call in self._ends if one >= number]
            if end is not None:
                self._ends.append((number, end))
            self._newest = number
        for call in older:
            call()
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
            self._ends = [(one, call) for one, call in self._ends if call is not end]


class SessionFences:
    """The fences of all senders, by source and sender name. Threads: any."""

    def __init__(self) -> None:
        # Guards the fences and their numbers of users. Reentrant: the collector may end a call, which holds a fence.
        self._lock = threading.RLock()
        self._fences: OrderedDict[tuple[str, str], SessionFence] = OrderedDict()

    @contextmanager
    def of(self, source: str, text: str) -> Iterator[SenderSession]:
        """Hold the session *text*, as ``name/number``, of a sender of *source* during one call.

        A sender without valid session metadata gets a session without a fence.
        """
        name, _, number = text.rpartition("/")
        if not name or len(text) > MAX_SESSION_TEXT or not (number.isascii() and number.isdecimal()):
            yield SenderSession(None, 0)
            return
        with self._lock:
            fence = self._fences.pop((source, name), None) or SessionFence()
            self._fences[source, name] = fence  # moves it to the end: the least recently used one is forgotten first
            fence.users += 1
            if len(self._fences) > MAX_REMEMBERED:
                self._trim_locked()
        try:
            yield SenderSession(fence, int(number))
        finally:
            with self._lock:
                fence.users -= 1

    def _trim_locked(self) -> None:
        """Forget a tenth of the fences at once, because the search for unused ones is slow."""
        idle = [key for key, fence in self._fences.items() if not fence.users]
        for key in idle[: MAX_REMEMBERED // 10]:
            del self._fences[key]
