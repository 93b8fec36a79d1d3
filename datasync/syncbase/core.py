"""What the parts of a registry hold in common, and the two kinds of things that wait in a subscription.

Source: contract C1, C4, C9.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from datasync.events import ResyncReason
from datasync.runtime.threads import ForkGuard, in_main_thread
from datasync.runtime.timers import Alarms
from datasync.syncbase.change import ChangeResp
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.state import PrevRevisions

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Shared:
    """What a registry and its subscriptions have in common."""

    #: Name of the source: ``datasync.current_source`` inside an event's context.
    source: str
    #: The source's state: previous values, revisions.
    revisions: PrevRevisions
    #: True when failed events are followed by a RESYNC, because no caller waits for their answer.
    sourced: bool
    #: False until the source was read for the first time.
    ready: bool
    guard: ForkGuard
    alarms: Alarms
    #: The context of changes that no caller made.
    context: contextvars.Context
    #: The registry's one lock: guards the state, the prefixes, and every field of every subscription.
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: What was decided under the lock and runs users' code: the completion of futures, lines for the log.
    later: deque[Callable[[], None]] = field(default_factory=deque)

    def complete(self) -> None:
        """Do what was left for later. Called without the lock: users' callbacks and log handlers run in here."""
        while self.later:
            try:
                act = self.later.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                act()
            except BaseException:  # an Exception of a callback is logged by the future; this is sys.exit() or ^C
                if in_main_thread():
                    raise
                log.exception("%s: a callback tried to end a thread that is not its own", self.source)


@dataclass(slots=True)
class Pending:
    """A transaction that waits to be delivered, and the caller that waits for its answer.

    It never changes: all subscriptions that get the same share it.
    """

    changes: Sequence[ChangeResp]
    waiter: PropagationFuture | None
    context: contextvars.Context


@dataclass(slots=True)
class ResyncWish:
    """A RESYNC that is due. ``held`` until the orchestrator asks, ``not_before`` a monotonic time."""

    reason: ResyncReason
    held: bool = False
    not_before: float = 0.0
    context: contextvars.Context | None = None
    waiters: list[PropagationFuture] = field(default_factory=list)
