"""The parts that a registry shares with its subscriptions, and the two kinds of things that wait in a subscription.

Source: contract C1, C4, C9.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from datasync.errors import ClosedError
from datasync.events import ResyncReason
from datasync.runtime.threads import ForkGuard, in_main_thread
from datasync.runtime.timeouts import Timeouts
from datasync.runtime.timers import Timers
from datasync.syncbase.change import ChangeResp
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.state import PrevRevisions
from datasync.syncbase.status import SourceHealth

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RegistryCore:
    """The state that a registry and its subscriptions share."""

    #: Name of the source; an event's handler reads it from ``datasync.current_source``.
    source: str
    #: The last known state: previous values, revisions.
    state: PrevRevisions
    #: True when a failed event is followed by a RESYNC, because no caller waits for its acknowledgement.
    sourced: bool
    health: SourceHealth
    guard: ForkGuard
    timers: Timers
    timeouts: Timeouts
    #: The clock's ``monotonic``, looked up once.
    now: Callable[[], float]
    #: The context of changes that no caller made.
    context: contextvars.Context = field(default_factory=contextvars.Context)
    #: The one lock of the registry: guards the state, the prefixes, and every field of every subscription.
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: Decided under the lock, to be run without it because user code runs inside: completions of futures, log lines.
    deferred: deque[Callable[[], None]] = field(default_factory=deque)

    def check_open(self) -> None:
        """Raise ``ClosedError`` after ``close``. Called under the lock."""
        if self.health.closed:
            raise ClosedError(f"the registry {self.source!r} is closed")

    def __reduce__(self) -> NoReturn:
        self.guard.__reduce__()

    def run_deferred(self) -> None:
        """Run what was deferred. Called without the lock: users' callbacks and log handlers run in here."""
        while self.deferred:
            try:
                act = self.deferred.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                act()
            except BaseException:  # a future logs the Exceptions of callbacks: this is sys.exit() or ^C
                if in_main_thread():
                    raise
                log.exception("%s: a callback tried to end a thread that is not its own", self.source)


@dataclass(slots=True)
class PendingTransaction:
    """A transaction that waits for delivery, and the caller that waits for its acknowledgement.

    Immutable: all subscriptions that receive the same changes share one object.
    """

    changes: Sequence[ChangeResp]
    waiter: PropagationFuture | None
    context: contextvars.Context


@dataclass(slots=True)
class PendingResync:
    """A RESYNC that is due. ``held`` until the orchestrator asks for it; ``not_before`` is a monotonic time.

    ``undecided`` while ``watch`` still looks whether the state has a key for the subscription.
    """

    reason: ResyncReason
    held: bool = False
    undecided: bool = False
    not_before: float = 0.0
    context: contextvars.Context | None = None
    waiters: list[PropagationFuture] = field(default_factory=list)
