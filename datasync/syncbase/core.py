"""The parts that a registry shares with its subscriptions, its reading half, and what waits in a subscription.

Source: contract C1, C4, C9.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from datasync.api import WAIT_TIMEOUT
from datasync.commits import HasRevision, MirrorPosition, WriteResult, note_own_write, revision_of
from datasync.errors import ClosedError, DatasyncError, DoneTimeout, UnknownOutcome, UnsupportedError
from datasync.events import ResyncReason
from datasync.runtime.closing import Closable
from datasync.runtime.full_queues import FullQueues
from datasync.runtime.logs import get_logger
from datasync.runtime.monitoring import Tally
from datasync.runtime.threads import ForkGuard, in_main_thread
from datasync.runtime.timeouts import Timeouts, check_timeout
from datasync.runtime.timers import Timers
from datasync.runtime.waiters import Waiters
from datasync.syncbase.change import ChangeResp, StateKeyVal
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.state import FrozenState, PrevRevisions
from datasync.syncbase.status import SourceHealth

log = get_logger(__name__)

#: Changes in one event, unless one transaction is larger.
MAX_BATCH = 1000
#: Pending changes of one subscription; beyond this they are replaced by one RESYNC. Also the limit on the callers that
#: wait for one RESYNC.
MAX_PENDING = 10_000

#: Reasons about the source, which replace a reason about the subscription.
_SOURCE_REASONS = {ResyncReason.COMPACTED, ResyncReason.RECONNECTED, ResyncReason.REWOUND}


class _Deferred(threading.local):
    """The acts that this thread has decided on under the lock: nobody else runs them, nor waits for them."""

    def __init__(self) -> None:
        self.acts: deque[Callable[[], object]] = deque()


class Awaited(NamedTuple):
    """The goal of a wait: a *position* of the mirror, or that it has lost the keys that are *gone*."""

    position: MirrorPosition
    gone: tuple[str, ...] | None = None


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
    #: Callers that wait for a revision, or for the answers of a subscription.
    waiters: Waiters
    #: False when the source has no revisions of its own: those of the state mean nothing to its writers.
    has_revisions: bool = True
    #: False when a wait for a revision could last until something under the prefix of the mirror is written.
    tells_every_revision: bool = False
    #: The number of times that the source went back in time.
    rewinds: int = 0
    #: The context of changes that no caller made.
    context: contextvars.Context = field(default_factory=contextvars.Context)
    observers: tuple[Observer, ...] = ()
    #: What the source counts, while metrics are installed.
    tally: Tally | None = None
    _deferred: _Deferred = field(default_factory=_Deferred)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call *observer* for every transaction; return what ends that."""
        with self.lock:
            self.observers = (*self.observers, observer)

        def forget() -> None:
            with self.lock:
                self.observers = tuple(one for one in self.observers if one is not observer)

        return forget

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

    def awaited(self, write: int | HasRevision) -> Awaited:
        """Return what the state has once *write* is in it.

        A write that did not raise the revision above the one that was read before shows that the source went back in
        time: then the next listing is waited for.

        Raises:
          UnsupportedError: The source has no revisions.
          InvalidArgumentError: *write* has none.
        """
        revision = revision_of(write)
        if not self.has_revisions:
            raise UnsupportedError(f"{self.source} has no revisions to wait for")
        if not isinstance(write, WriteResult) or write.seen is None:
            return Awaited(MirrorPosition(self.rewinds, revision))
        went_back = revision < write.seen.revision or (revision == write.seen.revision and write.changed)
        return Awaited(MirrorPosition(write.seen.rewinds + went_back, revision), write.gone)

    def has_reached(self, awaited: Awaited) -> bool:
        """Return True if the state has *awaited*, and was not replaced by an older one since. Called under the lock.

        Raises:
          UnknownOutcome: The source went back in time; the write may be lost.
          ClosedError: The registry or its source was closed.
        """
        self.check_open()
        rewinds, revision = awaited.position
        if self.rewinds > rewinds:
            text = f"{self.source} went back in time to revision {self.state.revision}"
            raise UnknownOutcome(f"{text}: the write of revision {revision} may be lost, read it again")
        if self.rewinds == rewinds:
            if self.state.revision >= revision:
                return True
            if awaited.gone is not None and not any(self.state.get(key) for key in awaited.gone):
                return True
        self.check_read(False)
        return False

    def check_read(self, ready: bool | None = None) -> None:
        """Raise ``ClosedError`` if the source is not *ready*, and is not read any more. Called under the lock."""
        if self.health.ended is not None and not (self.health.ready if ready is None else ready):
            raise ClosedError(f"{self.source} is not read any more: {self.health.ended}")

    def late(self, revision: int, timeout: float) -> DoneTimeout:
        """Return the error of a wait for *revision* that took too long."""
        lost = self.health.lost_by
        text = f"{self.source} has revision {self.state.revision}, not {revision}, after {timeout:g} s"
        error = DoneTimeout(text if lost is None else f"{text}: {lost}")
        error.__cause__ = lost
        return error

    def wake_locked(self) -> None:
        """Release the callers whose wait is over."""
        if self.waiters.waiting:
            self.waiters.look_locked()

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


class Mirror(Closable):
    """The last known state of a source, for those who read it or wait for it: the reading half of a registry.

    Threads: any; no lock is held while waiting.
    """

    _core: RegistryCore
    _state: PrevRevisions

    def get(self, key: str) -> StateKeyVal | None:
        """Return the last known pair of *key*, None when there is none. A cache: no network access."""
        self._core.guard.check()
        return self._state.get(key)

    def items(self, prefix: str = "") -> list[StateKeyVal]:
        """Return the last known pairs under *prefix*, all of one moment."""
        return list(self.snapshot(prefix)[1])

    def snapshot(self, prefix: str = "") -> tuple[int, Iterator[StateKeyVal]]:
        """Return the current revision, and the pairs under *prefix* at it. They are made lazily, while you iterate."""
        revision, state = self.frozen()
        return revision, self._state.pairs(state, prefix)

    def frozen(self) -> tuple[int, FrozenState]:
        """Return the current revision, and a copy of the state at it, which all readers share until it changes."""
        self._core.guard.check()
        with self._core.lock:
            return self._state.revision, self._state.freeze()

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return self._core.health.closed

    @property
    def lost(self) -> bool:
        """True while the source cannot be reached."""
        return self._core.health.lost_by is not None

    @property
    def revision(self) -> int:
        """The revision of the last known state."""
        return self._state.revision

    @property
    def position(self) -> MirrorPosition:
        """The revision of the last known state, and how often the source went back in time before it."""
        return MirrorPosition(self._core.rewinds, self._state.revision)

    def own_write(
        self, key: str, revision: int, changed: bool, seen: MirrorPosition, *, prefix: bool = False
    ) -> WriteResult:
        """Return the result of a write to the source by the owner of this mirror, and tell who wants to know of it.

        Args:
          seen: The position before the write.
          prefix: True when every key that begins with *key* was to be deleted.
        """
        if changed:
            note_own_write(self, key, revision, prefix=prefix)
        if changed or self._core.tells_every_revision:
            return WriteResult(revision, changed, seen)
        # A put and a delete by others before this one may still arrive: the price of a wait that ends.
        found = self.items(key) if prefix else [self.get(key)]
        return WriteResult(revision, False, seen, tuple(pair.key for pair in found if pair is not None))

    @property
    def has_revisions(self) -> bool:
        """True if the source has revisions of its own, for which its writers can wait."""
        return self._core.has_revisions

    @property
    def size(self) -> int:
        """The number of keys in the last known state."""
        return len(self._state)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the source was read for the first time.

        Raises:
          NotReadyError: It was not read within *timeout* seconds; the last error of the source is the cause.
          ClosedError, ForkedError.
        """
        self._core.guard.check()
        timeout = check_timeout(timeout)
        self._core.check_waitable("wait_ready()")
        self._core.health.released.wait(timeout)
        with self._core.lock:
            self._core.check_open()
            self._core.health.check_ready(self._core.source, timeout)

    def wait_for(self, write: int | HasRevision, timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until the state has *write*: the result of a write to the source, or a revision.

        Raises:
          DoneTimeout: It does not after *timeout* seconds; the last error of a source that is lost is the cause.
          UnknownOutcome: The source went back in time meanwhile: the write may be lost.
          UnsupportedError: The source has no revisions.
          ClosedError: The registry or the source was closed.
          InvalidArgumentError, ForkedError.
        """
        core = self._core
        core.guard.check()
        timeout = check_timeout(timeout)
        core.check_waitable("wait_for()")
        awaited = core.awaited(write)
        if not core.waiters.wait(lambda: core.has_reached(awaited), timeout):
            raise core.late(awaited.position.revision, timeout)


@dataclass(slots=True)
class PendingTransaction:
    """A transaction that waits for delivery, and the caller that waits for its acknowledgement.

    Immutable: all subscriptions that receive the same changes share one object.
    """

    changes: Sequence[ChangeResp]
    waiter: PropagationFuture | None
    context: contextvars.Context
    #: Monotonic time at which it came in; 0 while nobody counts.
    came_at: float = 0.0


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
