"""A loop that makes something outside equal to the store: one call per real difference, key by key.

Source: contract C10, C12, C15, C20.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasync.api import KeyValProtoWatcher
from datasync.codecs.api import Codec
from datasync.commits import HasRevision, observe_own_writes
from datasync.consumer.answered import wait_answered
from datasync.consumer.guard import DeleteGuard
from datasync.consumer.pairs import JSON, decoded
from datasync.consumer.reconciler.answers import Answer, acknowledge, send
from datasync.consumer.reconciler.applied import Applied, digests_of
from datasync.consumer.reconciler.arguments import check_arguments
from datasync.consumer.reconciler.depends import Dependencies, Mapper
from datasync.consumer.reconciler.intake import Inbox, Intake, count_sources
from datasync.consumer.reconciler.leading import Leader, Leading
from datasync.consumer.reconciler.meter import Meter
from datasync.consumer.reconciler.own_writes import OwnWrites
from datasync.consumer.reconciler.retry import Retry
from datasync.consumer.reconciler.state_file import StateFile
from datasync.consumer.reconciler.status import KeyProblem, ReconcilerStatus, say_failed
from datasync.consumer.reconciler.work import Call, Work
from datasync.consumer.reconciler.work_queue import NEVER
from datasync.errors import (
    ClosedError,
    DecodeError,
    DoneTimeout,
    InvalidArgumentError,
    PropagationError,
    Rejected,
    RetryAfter,
)
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.monitoring import dismiss
from datasync.runtime.threads import CLOSE_TIMEOUT, Flag, ForkGuard, SteppedCondition, Worker, close_all
from datasync.runtime.timers import SYSTEM_CLOCK, Clock
from datasync.runtime.wording import counted

log = get_logger(__name__)

T = TypeVar("T")

#: Seconds that a worker waits for events to be taken over, before it goes on with the backlog.
PATIENCE = 0.05
#: Seconds between two looks whether this process leads.
LEADER_POLL = 0.25
#: Random factors of ``every``.
DRIFT_JITTER = (0.9, 1.1)


class Reconciler(Closable, Generic[T]):
    """Calls *apply* once for each real difference between what a watcher delivers and what was applied before.

    ``apply(key, value, previous)`` gets the decoded value, None for a delete, and the value that was applied last, None
    where there is none or an earlier process applied it. One key is never in two calls at once. An exception rejects
    that key alone, which is called again after a while; ``RetryAfter`` and ``Permanent`` say when. ``RetryAfter`` as
    the return value means: applied, and call again later. *apply* must bear to be called again with the same value.

    A key that *apply* itself wrote, through *watcher*, is not called before that write came back, or 5 s have passed.

    Changes come before the backlog, which is the first pass, a RESYNC, and retries, and which gets one turn in four. A
    RESYNC is acknowledged when it was taken over. A CHANGE is acknowledged when its keys had their calls, but after
    ``DEFAULT_NOTIF_TIMEOUT`` at the latest; so a caller that waits receives the rejected keys.

    The threads start at once: one for events and times, and *workers* that make the calls.

    Args:
      watcher: A plugin, a registry, an adapter, or an aggregate of several.
      name: The resync name.
      prefixes: Prefixes of the keys; everything when none is given.
      apply: See above; called by *workers* threads.
      codec: Decodes values; one that cannot be decoded is a problem of its key until it changes.
      workers: Number of calls at once.
      retry: When keys that failed are called again; ``Retry()`` by default.
      every: Seconds, give or take a tenth, after which every key is called again, against drift.
      depends: Prefix of other keys to ``f(key, value)``, which returns the keys that depend on it; also a pair of the
        function and the codec of these values. It is called with the old and with the new value.
      state: Path of a file that remembers what was applied, so that a restart calls nothing that is unchanged and sees
        the deletes that it missed. One process at a time may use it.
      known: Keys that exist already in what is being configured, or a mapping of them to the bytes of their values.
      on_synced: Called once, after the first complete pass, by a worker.
      deadline: Seconds after which a WARNING names a call that has not returned.
      leader: Calls are made only while its ``is_leader`` is True; until then everything is kept ready. After each
        election, told by its ``token`` if it has one, every key is called: another process may have applied others.
      max_delete: The most deletes of one RESYNC, a number or a share of the keys; more are held until ``release()``.
      settle: Seconds without a change that a changed key waits for, and the most that it waits.
      clock: Replaces the monotonic clock, in tests.

    Raises:
      SubscriptionError: The name is taken, or a prefix is given twice.
      InvalidArgumentError: An argument is not valid.
      ClosedError, ForkedError.

    Threads: any.
    Source: contract C20.
    """

    def __init__(
        self,
        watcher: KeyValProtoWatcher,
        name: str,
        *prefixes: str,
        apply: Callable[[str, T | None, T | None], object],
        codec: Codec[T] = JSON,
        workers: int = 1,
        retry: Retry | None = None,
        every: float | None = None,
        depends: Mapping[str, Mapper | tuple[Mapper, Codec[Any]]] | None = None,
        state: str | Path | None = None,
        known: Iterable[str] | Mapping[str, bytes] | None = None,
        on_synced: Callable[[], object] | None = None,
        deadline: float | None = None,
        leader: Leader | None = None,
        max_delete: int | float | None = None,
        settle: tuple[float, float] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_arguments(name, apply, codec, workers, every, deadline, settle)
        prefixes = prefixes or ("",)  # as RESYNCs name it
        self.name = name
        #: The source of the events.
        self.watcher = watcher
        self._apply = apply
        self._codec = codec
        self._every = every
        self._on_synced = on_synced
        self._deadline = deadline
        self._leading = Leading(leader, name)
        self._settles = settle is not None
        self._clock = clock
        self._guard = ForkGuard(f"the reconciler {name!r}")
        # Guards all below, the work and the intake's counts. An RLock, because a finalizer may call in.
        self._lock = threading.RLock()
        self._synced = SteppedCondition(self._lock)
        self._taking = threading.RLock()  # held by the thread that takes events over; taken before the other
        self._idle: list[Flag] = []
        self._closed = False
        self._ok = self._failed = 0
        self._open: list[Answer] = []
        self._drift_at = self._next_drift()

        dependencies = Dependencies(depends, codec)
        guard = DeleteGuard(max_delete)
        self._inbox = Inbox()
        # Before the file is opened: of two with one name the second one must not replace the first one's file.
        self._registration = watcher.watch(name, self._inbox, self._inbox, *prefixes, *dependencies.prefixes)
        try:
            self._file = None if state is None else StateFile(state, name, (*prefixes, *dependencies.prefixes))
        except BaseException:
            self._registration.close()
            raise
        digests = {} if self._file is None else self._file.digests
        listed = {key: value for key, value in digests.items() if dependencies.match(key, prefixes)}
        digests = {key: value for key, value in digests.items() if key not in listed} | digests_of(known or ())
        self._applied, others = Applied(self._file, digests), Applied(self._file, listed)
        own = OwnWrites(watcher, prefixes, self._lock, clock.monotonic)
        self._work = Work(self._applied, guard, retry or Retry.default(), settle, clock.monotonic, own)
        self._intake = Intake(
            name, prefixes, codec, dependencies, self._work, others, self._lock,
            count_sources(self._registration), self._wake_workers, clock.monotonic,
        )  # fmt: skip
        self._meter = Meter(
            name, workers, self._work, self._lock, clock.monotonic, lambda: bool(self._leading), self.release
        )
        self._reader = Worker(f"consumer-events-{name}", self._read, wake=self._inbox.wake.set)
        self._workers: list[Worker] = []
        self._running = workers
        try:
            self._reader.start()
            for number in range(workers):
                flag = Flag()
                worker = Worker(f"consumer-work-{name}-{number}", partial(self._work_on, flag), wake=flag.set)
                self._workers.append(worker)
                worker.start()
        except BaseException:
            self.close()
            raise

    # For the owner.

    def requeue(self, *keys: str, after: float = 0.0) -> None:
        """Call *keys* again, at once or *after* so many seconds, also without a difference. Unknown keys are ignored.

        A call that is made earlier for another reason takes the place of one that was asked for later.
        """
        self._guard.check()
        if not 0.0 <= after < NEVER:
            raise InvalidArgumentError("after must be a number of seconds, at least 0")
        with self._lock:
            self._work.request(keys, after=after, live=True)
        self._wake_workers()

    def reconcile_all(self) -> None:
        """Call every key again, also without a difference, behind the changes that come in."""
        self._guard.check()
        with self._lock:
            self._work.request(None)
        self._wake_workers()

    def release(self) -> list[str]:
        """Let the deletes go on that ``max_delete`` holds; return their keys."""
        self._guard.check()
        with self._lock:
            keys = self._work.release()
        self._wake_workers()
        return keys

    @property
    def problems(self) -> dict[str, KeyProblem]:
        """The keys whose last call failed, or whose value cannot be decoded."""
        self._guard.check()
        with self._lock:
            return {
                key: KeyProblem(failure.error, failure.attempts, self._work.queue.due_in(key))
                for key, failure in self._work.failures.items()
            }

    @property
    def held(self) -> tuple[str, ...]:
        """The keys whose deletes are held."""
        self._guard.check()
        with self._lock:
            return tuple(self._work.guard.held)

    def status(self) -> ReconcilerStatus:
        """Return counts and problems; never a value."""
        problems, held = self.problems, self.held
        with self._lock:
            return ReconcilerStatus(
                synced=self._in_sync_locked(),
                leading=bool(self._leading),
                waiting=len(self._work.queue),
                live=self._work.queue.live,
                running=self._work.queue.active,
                ok=self._ok,
                failed=self._failed,
                problems=problems,
                held=held,
            )

    @property
    def idle(self) -> bool:
        """True when no event or key waits, and no retry is due. Changes that settle wait, unless time stands still."""
        with self._lock:
            work, now = self._work, self._clock.monotonic()
            quiet = work.quiet if self._clock.runs else not (len(work.queue) or work.queue.active)
            return quiet and not self._inbox.unfinished_tasks and work.queue.next_at() > now

    def wait_synced(self, timeout: float, revision: int | HasRevision | None = None) -> None:
        """Wait until each source was heard, and everything that came in was applied, *revision* too if it is given.

        Raises:
          DoneTimeout: There were calls to be made after *timeout* seconds, or a source was not heard.
          Rejected: All calls were made, but some keys failed.
          ClosedError, ForkedError; with *revision* also UnknownOutcome, UnsupportedError.
        """
        self._guard.check()
        until = time.monotonic() + timeout
        with suppress(PropagationError):  # this object knows better what failed
            if revision is not None:
                wait_answered(self._registration, self.name, revision, timeout)
        with self._lock:
            left = max(0.0, until - time.monotonic())
            if not self._synced.wait_for(lambda: self._closed or self._in_sync_locked(), left):
                keys = len(self._work.queue) + self._work.queue.active
                reason = f"{counted(keys, 'key')} left" if keys else "no full state yet, or changes that settle"
                raise DoneTimeout(f"{self.name!r} is not in sync after {timeout:g} s: {reason}", (self.name,))
            if self._closed:
                raise ClosedError(f"the reconciler {self.name!r} is closed")
            if self._work.failures:
                raise Rejected({key: failure.error for key, failure in self._work.failures.items()})

    def close(self, timeout: float = 60.0) -> None:
        """End the subscription and the threads; wait for calls in progress up to *timeout* seconds.

        What was not called is left to the next start. May be called twice, and by *apply*, where it does not wait.
        """
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            self._synced.notify_all()
        dismiss(self._meter)
        try:
            self._registration.close()
        finally:
            for worker in (self._reader, *self._workers):
                worker.signal()
            self._reader.close(CLOSE_TIMEOUT)
            close_all(self._workers, timeout)

    # The thread that takes events over.

    def _read(self, worker: Worker) -> None:
        inbox = self._inbox
        while True:
            inbox.wake.clear()  # before the queue is read
            if worker.stopping.is_set():
                return
            self._take_over()
            until = self._tick()
            self._clock.wait(inbox.wake, None if until == NEVER else until)

    def _take_over(self, timeout: float = -1) -> None:
        """Take over what is in the inbox; wait up to *timeout* seconds for another thread that is doing so."""
        if not self._taking.acquire(timeout=timeout):
            return
        try:
            while not self._inbox.empty():
                event = self._inbox.get_nowait()
                late = not self._settles and bool(self._leading)
                try:
                    answer = self._intake.take(event, late=late)
                    if answer is not None:
                        with self._lock:
                            self._open.append(answer)
                except Exception as error:
                    log.warning("%s: an event could not be taken over: %s", self.name, type(error).__name__)
                    acknowledge(event, error, self.name)
                self._inbox.task_done()
                send(self._work.outbox, self.name)
        finally:
            self._taking.release()

    def _tick(self) -> float:
        """Do what is due; return the time at which to look again."""
        late: list[str] = []
        # Workers that are busy do not look, and the leadership may be lost and won again within one call.
        elected = not self._idle and self._leading.look()[1]
        with self._lock:
            now = self._clock.monotonic()
            if elected:
                self._work.request(None)
                self._wake_workers()
                self._wake_workers()
            for answer in self._open:
                if answer.deadline <= now:
                    answer.expire()
            self._open = [answer for answer in self._open if answer.open]
            until = min((answer.deadline for answer in self._open), default=NEVER)
            if self._drift_at <= now:
                self._work.request(None)
                self._drift_at = self._next_drift()
                self._wake_workers()
            until = min(until, self._drift_at)
            if self._leading.leader is not None:
                until = min(until, now + LEADER_POLL)
            if self._deadline is not None:
                late, at = self._work.late_calls(self._deadline)
                until = min(until, at)
            if self._in_sync_locked():
                self._synced.notify_all()
        for key in late:
            log.warning("%s: the call for %r takes longer than %g s", self.name, key, self._deadline)
        send(self._work.outbox, self.name)
        return until

    def _next_drift(self) -> float:
        if self._every is None:
            return NEVER
        return self._clock.monotonic() + self._every * random.uniform(*DRIFT_JITTER)

    # The threads that make the calls.

    def _work_on(self, flag: Flag, worker: Worker) -> None:
        observe_own_writes(self._work.own.observe)
        try:
            while True:
                flag.clear()  # before the work is looked at
                if worker.stopping.is_set():
                    return
                call, until = self._next(flag)
                send(self._work.outbox, self.name)
                if call is not None:
                    self._make(call)
                else:
                    self._clock.wait(flag, None if until == NEVER else until)
        finally:
            with self._lock:
                self._running -= 1
                last = not self._running
            if last and self._file is not None:
                self._file.close()

    def _next(self, flag: Flag) -> tuple[Call | None, float]:
        """Return the next call, or None and the time at which to look again."""
        if self._inbox.unfinished_tasks:  # maybe a change, which the last answer let in: it goes before the backlog
            self._take_over(PATIENCE)
        leading, elected = self._leading.look()
        on_synced = None
        with self._lock:
            if flag in self._idle:
                self._idle.remove(flag)
            if elected:
                self._work.request(None)
            call, until = self._work.next_call() if leading else None, NEVER
            if leading and self._intake.complete and not self._work.first_pass:
                on_synced, self._on_synced = self._on_synced, None
            if call is None:
                self._idle.append(flag)
                until = self._work.queue.next_at() if leading else NEVER
                if self._leading.leader is not None:
                    until = min(until, self._clock.monotonic() + LEADER_POLL)
                if self._in_sync_locked():
                    self._synced.notify_all()
            elif self._idle and (len(self._work.queue) or self._work.queue.next_at() < NEVER):
                self._idle.pop().set()  # this worker will be busy when the next key is ready
        if on_synced is not None:
            try:
                on_synced()
            except BaseException:
                log.exception("on_synced of %s failed", self.name)
        return call, until

    def _make(self, call: Call) -> None:
        key, error, look_again = call.key, None, None
        try:
            value = decoded(self._codec, key, call.data)
            try:
                previous = decoded(self._codec, key, call.previous)
            except DecodeError:  # an earlier process applied it, with another codec
                previous = None
            self._applied.write_begin(key)
            result = call.make(self._apply, value, previous)
            look_again = result.seconds if isinstance(result, RetryAfter) else None
            if look_again is None:  # otherwise the next start is to make the call that is left
                self._applied.write_accepted(key, call.data)
        except BaseException as raised:  # SystemExit too: user code does not end a worker
            error = raised
        with self._lock:
            delay = self._work.finish(call, error, look_again)
            self._meter.note_locked(call, error, look_again)
            self._ok, self._failed = self._ok + (error is None), self._failed + (error is not None)
        if error is not None:
            say_failed(self.name, key, error, delay)
        send(self._work.outbox, self.name)

    # For both.

    def _in_sync_locked(self) -> bool:
        return self._intake.heard and not self._inbox.unfinished_tasks and self._work.quiet

    def _wake_workers(self) -> None:
        with self._lock:
            for _ in range(min(len(self._idle), max(1, len(self._work.queue)))):
                self._idle.pop().set()
