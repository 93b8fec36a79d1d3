"""The parts that a registry shares with its subscriptions, and the two kinds of things that wait in a subscription.

Source: contract C1, C4, C9.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Queue
from typing import Any, NamedTuple, NoReturn, Protocol

from datasync.errors import ClosedError, DatasyncError
from datasync.events import ResyncReason
from datasync.runtime.backoff import Backoff
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard, in_main_thread
from datasync.runtime.timeouts import Timeouts
from datasync.runtime.timers import Timer, Timers
from datasync.syncbase.change import ChangeResp
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.state import PrevRevisions
from datasync.syncbase.status import SourceHealth

log = get_logger(__name__)

#: Changes in one event, unless one transaction is larger.
MAX_BATCH = 1000
#: Pending changes of one subscription; beyond this they are replaced by one RESYNC. Also the limit on the callers that
#: wait for one RESYNC.
MAX_PENDING = 10_000
#: Seconds that a put waits for the lock of a queue, which other threads hold for an instant only.
QUEUE_LOCK_TIMEOUT = 0.1


#: Reasons about the source, which replace a reason about the subscription.
_SOURCE_REASONS = {ResyncReason.COMPACTED, ResyncReason.RECONNECTED, ResyncReason.REWOUND}


class _Deferred(threading.local):
    """The acts that this thread has decided on under the lock: nobody else runs them, nor waits for them."""

    def __init__(self) -> None:
        self.acts: deque[Callable[[], object]] = deque()


class FullQueue:
    """A queue that was found full, and the subscriptions that wait for room in it, oldest first."""

    __slots__ = ("backoff", "queue", "timer", "waiting")

    def __init__(self, queue: Queue[Any], backoff: Backoff) -> None:
        self.queue = queue
        self.backoff = backoff
        self.waiting: dict[WaitsForRoom, None] = {}
        self.timer: Timer | None = None


class WaitsForRoom(Protocol):
    """A subscription whose queue was full."""

    def retry(self) -> None:
        """Put what waits, as far as there is room."""


class FullQueues:
    """The full queues of a registry: one look per queue, however many subscriptions wait for it. Under the lock."""

    def __init__(self, lock: threading.RLock, timers: Timers, timeouts: Timeouts, now: Callable[[], float]) -> None:
        self._lock = lock
        self._timers = timers
        self._backoff = timeouts.full_queue_backoff
        self._now = now
        self._by_id: dict[int, FullQueue] = {}

    def wait_locked(self, queue: Queue[Any], waiter: WaitsForRoom) -> None:
        """Have *waiter* retry when there is room in *queue*."""
        full = self._by_id.get(id(queue))
        if full is None:
            full = self._by_id[id(queue)] = FullQueue(queue, Backoff(*self._backoff, spread=(1.0, 1.0)))
            self._look_later_locked(full)
        full.waiting[waiter] = None

    def leave_locked(self, waiter: WaitsForRoom, *queues: Queue[Any] | None) -> None:
        """End the wait of *waiter* for *queues*; without effect if it does not wait."""
        for queue in queues:
            full = self._by_id.get(id(queue))
            if full is not None:
                full.waiting.pop(waiter, None)
                if not full.waiting and full.timer is not None:
                    self._timers.cancel(full.timer)
                    del self._by_id[id(queue)]

    def _look_later_locked(self, full: FullQueue) -> None:
        full.timer = self._timers.set(self._now() + full.backoff.next(), lambda: self._look(full))

    def _look(self, full: FullQueue) -> None:
        with self._lock:
            full.timer = None
            waiting = list(full.waiting)
        for waiter in waiting:
            if not has_room(full.queue):
                break
            with self._lock:
                if full.waiting.pop(waiter, waiter) is waiter:  # closed meanwhile
                    continue
            waiter.retry()
        with self._lock:
            if len(full.waiting) < len(waiting):
                full.backoff.reset()
            if full.waiting:
                self._look_later_locked(full)
            else:
                del self._by_id[id(full.queue)]


def has_room(queue: Queue[Any]) -> bool:
    """Return False if a put on *queue* would fail or block. Without the lock: this is code of the user.

    Blocks for a finalizer that interrupted this thread in the middle of a call of the queue.
    """
    try:
        return not interrupted(queue) and not queue.full()
    except Exception:  # a queue class without a working ``full()``: the put will tell
        return True


def interrupted(queue: Queue[Any]) -> bool:
    """Return True if the lock of *queue* stays taken, as when a finalizer interrupted a call of the queue."""
    mutex = getattr(queue, "mutex", None)  # ``SimpleQueue`` has none, and may be called by finalizers
    if mutex is None:
        return False
    if not mutex.acquire(timeout=QUEUE_LOCK_TIMEOUT):
        return True
    mutex.release()
    return False


#: Called with the revision and the changes of a transaction, or with None for a full state that replaced everything.
Observer = Callable[[int, "Sequence[ChangeResp] | None"], object]


@dataclass(slots=True)
class RegistryCore:
    """The state that a registry and its subscriptions share."""

    #: Name of the source; an event's handler reads it from ``datasync.current_source``.
    source: str
    #: The last known state: previous values, revisions.
    state: PrevRevisions
    #: True when a reader feeds the registry.
    sourced: bool
    health: SourceHealth
    guard: ForkGuard
    timers: Timers
    timeouts: Timeouts
    #: The clock's ``monotonic``, looked up once.
    now: Callable[[], float]
    #: The one lock of the registry: guards the state, the prefixes, the timers, and every field of every subscription.
    #: No object of ours takes a lock when it is collected. What users call in a finalizer may arrive in the middle of
    #: our own locked code: an RLock knows, and ``postpone`` then leaves the call to the delivery worker.
    lock: threading.RLock
    full_queues: FullQueues
    #: The context of changes that no caller made.
    context: contextvars.Context = field(default_factory=contextvars.Context)
    observers: tuple[Observer, ...] = ()
    _deferred: _Deferred = field(default_factory=_Deferred)

    def later(self, act: Callable[[], object]) -> None:
        """Have this thread run *act* once it has released the lock: completions of futures, log lines, user code."""
        self._deferred.acts.append(act)

    def postpone(self, call: Callable[[], object]) -> bool:
        """Return False, or True if a finalizer interrupts the holder of the lock: the delivery worker makes the *call*.

        Every public method that takes the lock to change something asks this first.
        """
        if not self.lock._is_owned():  # type: ignore[attr-defined]  # as ``threading.Condition`` does
            return False
        self.timers.soon(call)
        return True

    def submit(self, future: PropagationFuture, apply: Callable[[], None]) -> PropagationFuture:
        """Call *apply* and return *future*. A finalizer that interrupts the registry has it called later."""

        def noted() -> None:
            try:
                apply()
            except Exception as error:  # the finalizer has the future only
                future.set_exception(error)

        if not self.postpone(noted):
            apply()
        return future

    def check_waitable(self, what: str) -> None:
        """Raise ``DatasyncError`` if a finalizer interrupts the holder of the lock, and cannot be given a result."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            raise DatasyncError(f"{self.source}: {what} cannot be called by this finalizer: it interrupts the registry")

    def notify_observers_locked(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        """Call every observer."""
        for observer in self.observers:
            observer(revision, changes)

    def check_open(self) -> None:
        """Raise ``ClosedError`` after ``close``. Called under the lock."""
        if self.health.closed:
            raise ClosedError(f"the registry {self.source!r} is closed")

    def __reduce__(self) -> NoReturn:
        self.guard.__reduce__()

    def run_deferred(self) -> None:
        """Run what this thread deferred. Called without the lock: users' callbacks and log handlers run in here."""
        acts = self._deferred.acts
        raised: BaseException | None = None
        while acts:
            try:
                acts.popleft()()
            except BaseException as error:  # a future logs the Exceptions of callbacks: this is sys.exit() or ^C
                if in_main_thread():
                    raised = raised or error  # at the end: what was decided is done
                else:
                    log.exception("%s: a callback tried to end a thread that is not its own", self.source)
        if raised is not None:
            raise raised


@dataclass(slots=True)
class PendingTransaction:
    """A transaction that waits for delivery, and the caller that waits for its acknowledgement.

    Immutable: all subscriptions that receive the same changes share one object.
    """

    changes: Sequence[ChangeResp]
    waiter: PropagationFuture | None
    context: contextvars.Context


class Waiter(NamedTuple):
    """A caller that waits for a RESYNC: with the *changes* of its transaction, None when it wants the whole RESYNC."""

    future: PropagationFuture
    changes: Sequence[ChangeResp] | None = None


@dataclass(slots=True)
class PendingResync:
    """A RESYNC that is due. ``held`` until the orchestrator asks for it; ``not_before`` is a monotonic time.

    ``undecided`` while ``watch`` still looks whether the state has a key for the subscription.
    ``failed_at`` is the monotonic time of the answer that rejected the RESYNC before; None when there was none.
    """

    reason: ResyncReason
    held: bool = False
    undecided: bool = False
    not_before: float = 0.0
    failed_at: float | None = None
    context: contextvars.Context | None = None
    waiters: list[Waiter] = field(default_factory=list)

    def strengthen(self, later: ResyncReason) -> None:
        """Take the stronger reason. The first RESYNC stays INITIAL, and REWOUND; else the last about the source counts.

        A reason about the subscription gives way to one about the source.
        """
        if self.reason not in (ResyncReason.INITIAL, ResyncReason.REWOUND) and later in _SOURCE_REASONS:
            self.reason = later

    def join(self, newer: PendingResync) -> None:
        """Take over what became due while this RESYNC was being put, in vain."""
        self.waiters += newer.waiters
        self.context = self.context if newer.context is None else newer.context
        self.strengthen(newer.reason)
