"""The order of the work on keys: what is next, what is planned for later, and which keys are in a worker's hands.

Live changes come before the backlog (a first pass, a RESYNC, retries), which gets at least one turn in four, so that
neither starves the other. A key is in the queue once, in the higher of its classes, and never in two hands at once.

Source: contract C20; the rules of client-go's work queue, with two classes.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

#: Turns of live keys between two turns of the backlog.
LIVE_TURNS = 3
NEVER = math.inf


@dataclass(slots=True)
class Plan:
    """A key that becomes ready at the monotonic time *at*; a retry also needs a token."""

    at: float
    ticket: int
    live: bool
    retry: bool


class WorkQueue:
    """The fair queue. Call with the owner's lock held.

    Args:
      now: The monotonic clock.
      rate, burst: Retries per second, and the most at once after a calm.
    """

    # fmt: off
    __slots__ = (
        "_active", "_again", "_backlog", "_burst", "_live", "_now", "_plans", "_rate", "_retries", "_ticket", "_timed",
        "_tokens", "_tokens_at", "_turns", "waited",
    )
    # fmt: on

    def __init__(self, now: Callable[[], float], rate: float = 10.0, burst: int = 100) -> None:
        self._now = now
        # Not dicts: taking the first item of a dict that shrinks at its front takes longer each time.
        # The values are the times since which the keys are ready, 0.0 while nobody wants to know.
        self._live: OrderedDict[str, float] = OrderedDict()
        self._backlog: OrderedDict[str, float] = OrderedDict()
        #: Called with the seconds that a key was ready when it is taken.
        self.waited: Callable[[float], None] | None = None
        self._turns = 0  # of live keys, since the last one of the backlog
        self._active: set[str] = set()
        self._again: dict[str, bool] = {}  # keys in hand that are to come again, True for live
        self._plans: dict[str, Plan] = {}
        # (time, ticket, key), one heap for retries; an entry whose ticket is not that of the plan is outdated.
        self._timed: list[tuple[float, int, str]] = []
        self._retries: list[tuple[float, int, str]] = []
        self._ticket = 0
        self._rate, self._burst = rate, burst
        self._tokens, self._tokens_at = float(burst), now()

    def __contains__(self, key: str) -> bool:
        """Return True if *key* is ready or in hand; a plan does not count."""
        return key in self._live or key in self._backlog or key in self._active

    def __len__(self) -> int:
        """Return the number of ready keys, and of those in hand that are to come again."""
        return len(self._live) + len(self._backlog) + len(self._again)

    @property
    def active(self) -> int:
        """The number of keys in hand."""
        return len(self._active)

    @property
    def live(self) -> int:
        """The number of ready live keys."""
        return len(self._live)

    @property
    def retries(self) -> int:
        """The number of keys that are planned to be tried again."""
        return sum(plan.retry for plan in list(self._plans.values()))

    def add(self, key: str, live: bool = False) -> None:
        """Make *key* ready. A retry that is planned is dropped: this turn is one."""
        if self._plans:
            self._drop_retry(key)
        if key in self._active:
            self._again[key] = live or self._again.get(key, False)
        elif live:
            if key not in self._live:
                self._live[key] = self._backlog.pop(key, 0.0) or self._ready_at()
        elif key not in self._live and key not in self._backlog:
            self._backlog[key] = self._ready_at()

    def plan(self, key: str, at: float, *, live: bool = False, retry: bool = False, later: bool = False) -> None:
        """Make *key* ready at the time *at*, unless it is ready now, or planned earlier.

        Args:
          later: Replace an earlier plan.
        """
        if key in self._live or key in self._backlog or key in self._again:
            return
        planned = self._plans.get(key)
        if planned is not None and planned.at <= at and not later:
            return
        self._ticket += 1
        self._plans[key] = Plan(at, self._ticket, live or (planned is not None and planned.live), retry)
        heapq.heappush(self._retries if retry else self._timed, (at, self._ticket, key))

    def due_in(self, key: str) -> float | None:
        """Return the seconds until *key* becomes ready; 0.0 when it is, None when it is not planned."""
        if key in self:
            return 0.0
        planned = self._plans.get(key)
        return None if planned is None else max(0.0, planned.at - self._now())

    def take(self) -> str | None:
        """Take the next key in hand, until ``finish``; None when no key is ready."""
        if self._plans:
            self._release()
        live, backlog = self._live, self._backlog
        if live and (self._turns < LIVE_TURNS or not backlog):
            key, since = live.popitem(last=False)
            self._turns = self._turns + 1 if backlog else 0
        elif backlog:
            key, since = backlog.popitem(last=False)
            self._turns = 0
        else:
            return None
        if since and self.waited is not None:
            self.waited(self._now() - since)
        self._active.add(key)
        return key

    def finish(self, key: str) -> None:
        """Give *key* out of hand; it is ready again if it was added meanwhile."""
        self._active.remove(key)
        if key in self._again:
            self.add(key, self._again.pop(key))

    def set_aside(self, key: str, at: float) -> None:
        """Give *key* out of hand, and make it ready at the time *at*, or when it is hastened."""
        self._active.remove(key)
        self.plan(key, at, live=True, later=True)

    def hasten(self, key: str) -> None:
        """Make *key* ready now if it is planned."""
        planned = self._plans.pop(key, None)
        if planned is not None:
            self.add(key, planned.live)

    def next_at(self) -> float:
        """Return the time at which the next planned key becomes ready; infinity without one."""
        at = min(self._first(self._timed), retry := self._first(self._retries))
        if at == retry < NEVER and self._tokens_now() < 1.0:
            at = max(at, self._tokens_at + (1.0 - self._tokens) / self._rate)
            at = min(at, self._first(self._timed))
        return at

    def _ready_at(self) -> float:
        return 0.0 if self.waited is None else self._now()

    def _release(self) -> None:
        """Make the planned keys ready whose time has come."""
        now = self._now()
        while self._first(self._timed) <= now:
            self._pop(self._timed)
        while self._first(self._retries) <= now and self._tokens_now() >= 1.0:
            self._tokens -= 1.0
            self._pop(self._retries)

    def _pop(self, heap: list[tuple[float, int, str]]) -> None:
        key = heapq.heappop(heap)[2]
        self.add(key, self._plans.pop(key).live)

    def _first(self, heap: list[tuple[float, int, str]]) -> float:
        while heap and ((plan := self._plans.get(heap[0][2])) is None or plan.ticket != heap[0][1]):
            heapq.heappop(heap)
        return heap[0][0] if heap else NEVER

    def _tokens_now(self) -> float:
        now = self._now()
        self._tokens = min(self._tokens + (now - self._tokens_at) * self._rate, float(self._burst))
        self._tokens_at = now
        return self._tokens

    def _drop_retry(self, key: str) -> None:
        planned = self._plans.get(key)
        if planned is not None and planned.retry:
            del self._plans[key]
