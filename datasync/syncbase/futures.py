"""How the answer of a subscriber gets back: futures and callbacks.

Source: cn-infra ``datasync/syncbase/done.go``; contract C9.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from datasync.errors import (
    ClosedError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    PropagationError,
)
from datasync.runtime.threads import ForkGuard, GuardedFuture

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a transaction that every subscriber accepted.

    ``revision`` is the one that it got; ``ignored`` are keys that were to be deleted and were not there;
    ``unwatched`` are keys that no subscription asked for.
    """

    revision: int
    ignored: tuple[str, ...] = ()
    unwatched: tuple[str, ...] = ()


class DoneFuture:
    """A ``done`` that completes a ``concurrent.futures.Future``. Source: Go ``DoneChannel``. Threads: any."""

    def __init__(self) -> None:
        #: Completes with None, or raises the error that ``done`` was given.
        self.future: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()  # an answer cannot be cancelled
        self._lock = threading.Lock()  # guards _settled: who is first
        self._settled = False

    def done(self, error: BaseException | None = None) -> bool:
        """Answer; True for the call that settled it."""
        check_answer(error)
        with self._lock:
            if self._settled:
                return False
            self._settled = True
        complete(self.future, error)  # without the lock: the future's callbacks may come back here
        return True

    def result(self, timeout: float | None = None) -> None:
        """Wait for the answer; raises what it was, or ``DoneTimeout`` after *timeout* seconds."""
        try:
            self.future.result(timeout)
        except concurrent.futures.TimeoutError:
            if self.future.done():
                return self.future.result()  # the answer is a timeout of its own, or came this moment
            raise DoneTimeout(f"done was not called within {timeout} s") from None


class DoneCallback:
    """A ``done`` that calls *callback* with the error or None, once, in the thread that answers.

    What *callback* raises is logged: the subscriber that answered has nothing to do with it.
    Threads: any. Source: Go ``DoneCallback``.
    """

    def __init__(self, callback: Callable[[BaseException | None], object]) -> None:
        self._callback = callback
        self._lock = threading.Lock()  # guards _called
        self._called = False

    def done(self, error: BaseException | None = None) -> bool:
        """Answer; True for the call that settled it."""
        check_answer(error)
        with self._lock:
            if self._called:
                return False
            self._called = True
        try:
            self._callback(error)
        except Exception:
            log.exception("a done callback raised")
        return True


class Asked(Protocol):
    """A subscription whose answer is waited for."""

    def tick(self) -> None:
        """Look at what it has waiting."""
        ...


class PropagationFuture(GuardedFuture[Outcome]):
    """The answer of all subscriptions to one transaction or resync; it cannot be cancelled.

    ``result()`` waits ``default_timeout`` seconds unless told otherwise and raises

    - ``DoneTimeout`` when somebody has not answered by then; ``silent`` names them, and asking again later is allowed,
    - ``PropagationError`` when somebody refused,
    - ``DeliveryTimeout``, ``DoneTimeout`` or ``ClosedError`` when nobody refused but some could not be asked.

    Threads: any.
    """

    _outcome: Outcome
    _complete: Callable[[], None] | None = None

    def __init__(self, subject: Callable[[], str], default_timeout: float, guard: ForkGuard) -> None:
        super().__init__(guard)
        if default_timeout is not None and not isinstance(default_timeout, (int, float)):
            raise InvalidArgumentError(f"timeout must be a number of seconds, not {type(default_timeout).__name__}")
        self.default_timeout = default_timeout
        self._subject = subject  # written only for an error
        self._made = time.monotonic()
        # Guarded by the lock of the registry that made the future, as is collect(); read without it by silent().
        self._silent: dict[str, Asked] = {}
        self._failed: dict[str, BaseException] = {}

    def cancel(self) -> bool:
        """False: a change that is on its way cannot be called back."""
        self._guard.check()
        return False

    def running(self) -> bool:
        """True until it is answered."""
        return not self.done()

    def silent(self) -> tuple[str, ...]:
        """Names of the subscriptions that have not answered yet."""
        return tuple(self._silent.copy())

    def result(self, timeout: float | None = None) -> Outcome:
        """Wait for every answer, up to *timeout* seconds (``default_timeout`` when None)."""
        timeout = self._seconds(timeout)
        try:
            return super().result(timeout)
        except concurrent.futures.TimeoutError:
            if self._answered_after_all():
                return super().result()
            raise self._too_late(timeout) from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As ``result``, but returns what it would raise; ``DoneTimeout`` is raised."""
        timeout = self._seconds(timeout)
        try:
            return super().exception(timeout)
        except concurrent.futures.TimeoutError:
            if self._answered_after_all():
                return super().exception()
            raise self._too_late(timeout) from None

    def expect(self, outcome: Outcome, asked: dict[str, Asked], complete: Callable[[], None] | None = None) -> None:
        """Say who answers (the dict is the future's own from now on), what success is, and what completes futures.

        Called once, under the registry's lock.
        """
        self._outcome = outcome
        self._complete = complete
        self._silent = asked

    def collect(self, name: str, error: BaseException | None) -> bool:
        """Take the answer of *name*; True when it was the last one. Called under the registry's lock."""
        if error is not None:
            self._failed[name] = error
        self._silent.pop(name, None)
        return not self._silent

    def finish(self) -> None:
        """Complete the future. Called once, without the lock: callbacks of the user run in here."""
        if not self._failed:
            self.set_result(self._outcome)
        else:
            self.set_exception(_combine(self._subject(), self._failed))

    def _seconds(self, timeout: float | None) -> float:
        # Infinity is a fair way to say "however long it takes", and more than a lock can wait.
        return min(self.default_timeout if timeout is None else timeout, threading.TIMEOUT_MAX)

    def _answered_after_all(self) -> bool:
        """Look once more: a queue that was full all the time is a ``DeliveryTimeout``, which is due at this moment."""
        for one in self._silent.copy().values():
            one.tick()
        if self._complete is not None:
            self._complete()  # it may be answered, and wait behind the slow callback of another one
        return self.done()

    def _too_late(self, timeout: float) -> DoneTimeout:
        silent = self.silent()
        names = ", ".join(silent)
        # Who asks again and again, or waits elsewhere and then asks, has waited longer than this call did.
        timeout = max(timeout, time.monotonic() - self._made)
        subject = self._subject()
        log.warning("%s: done was not called within %.1f s by: %s", subject, timeout, names)
        return DoneTimeout(f"{subject}: done was not called within {timeout:.1f} s by: {names}", silent)


def aggregate_done(futures: Mapping[str, concurrent.futures.Future[None]]) -> concurrent.futures.Future[None]:
    """One future for many answers: completes when all have, and raises all that failed together.

    Args:
      futures: Name of the one who answers to its future; may be empty.

    Returns:
      A future with the result None, or ``PropagationError`` with every failure by name.

    Threads: any.
    Source: Go ``AggregateDone``; D12, D13.
    """
    combined: concurrent.futures.Future[None] = concurrent.futures.Future()
    combined.set_running_or_notify_cancel()
    lock = threading.Lock()  # guards the two below
    names = tuple(futures)  # the caller may go on with the mapping
    missing = set(names)
    failed: dict[str, BaseException] = {}

    def answered(name: str, future: concurrent.futures.Future[None]) -> None:
        with lock:
            error = concurrent.futures.CancelledError() if future.cancelled() else future.exception()
            if error is not None:
                failed[name] = error
            missing.discard(name)
            if missing:
                return
        ordered = {name: failed[name] for name in names if name in failed}
        complete(combined, PropagationError(ordered) if ordered else None)

    for name, future in futures.items():
        future.add_done_callback(lambda future, name=name: answered(name, future))  # type: ignore[misc]
    if not futures:
        combined.set_result(None)
    return combined


def complete(future: concurrent.futures.Future[None], error: BaseException | None) -> None:
    """Complete *future* with *error*, or with None."""
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def check_answer(error: object) -> None:
    """Raise ``InvalidArgumentError`` unless *error* may be given to ``done``."""
    if error is not None and not isinstance(error, BaseException):
        raise InvalidArgumentError(f"done() takes None or an exception, not {type(error).__name__}")


def _combine(subject: str, failed: Mapping[str, BaseException]) -> DatasyncError:
    """One error out of several: the library's own when nobody refused and all failed for one cause."""
    names = ", ".join(failed)
    errors = list(failed.values())
    if all(isinstance(error, DeliveryTimeout) for error in errors):
        return DeliveryTimeout(f"{subject}: the queue stayed full of: {names}")
    if all(isinstance(error, DoneTimeout) for error in errors):
        return DoneTimeout(f"{subject}: given up, done was never called by: {names}", failed)
    if all(isinstance(error, ClosedError) for error in errors):
        return ClosedError(f"{subject}: closed before it was answered by: {names}")
    return PropagationError(failed)
