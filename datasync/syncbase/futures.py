"""The way back of an acknowledgement: futures and callbacks.

Source: cn-infra ``datasync/syncbase/done.go``; contract C9.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple, Protocol, TypeVar

from datasync.errors import (
    ClosedError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    PropagationError,
    Rejected,
)
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard, GuardedFuture, SteppedFuture
from datasync.runtime.timeouts import check_timeout

T = TypeVar("T")

log = get_logger(__name__)


class Outcome(NamedTuple):
    """The result of a transaction that every subscriber accepted.

    ``revision`` is the revision of the transaction; ``ignored`` are keys to delete that did not exist; ``unwatched``
    are keys that no subscription watches.
    """

    revision: int
    ignored: tuple[str, ...] = ()
    unwatched: tuple[str, ...] = ()


class _DoneOnce(ABC):
    """A ``done`` of which the first call counts. Threads: any."""

    def __init__(self) -> None:
        self._called = threading.Lock()  # taken by the first call, and never released

    def done(self, error: BaseException | None = None) -> bool:
        """Acknowledge; True for the call that counted."""
        check_answer(error)
        if not self._called.acquire(blocking=False):
            return False
        self._answered(error)
        return True

    @abstractmethod
    def _answered(self, error: BaseException | None) -> None: ...


class DoneFuture(_DoneOnce):
    """A ``done`` that completes a ``concurrent.futures.Future``. Source: Go ``DoneChannel``. Threads: any."""

    def __init__(self) -> None:
        super().__init__()
        #: Completes with None, or raises the error that ``done`` was given.
        self.future: concurrent.futures.Future[None] = SteppedFuture()
        self.future.set_running_or_notify_cancel()  # an acknowledgement cannot be cancelled

    def _answered(self, error: BaseException | None) -> None:
        complete(self.future, error)

    def result(self, timeout: float | None = None) -> None:
        """Wait for the acknowledgement; raise its error, or ``DoneTimeout`` after *timeout* seconds; None waits."""
        if timeout is not None:
            timeout = check_timeout(timeout)
        try:
            self.future.result(timeout)
        except concurrent.futures.TimeoutError:
            if self.future.done():
                return self.future.result()  # the error is a timeout of its own, or came this moment
            raise DoneTimeout(f"done was not called within {timeout} s") from None


class DoneCallback(_DoneOnce):
    """A ``done`` that calls *callback* with the error or None, once, in the thread that acknowledges.

    An exception of *callback* is logged: the subscriber that acknowledges did not cause it.
    Threads: any. Source: Go ``DoneCallback``.
    """

    def __init__(self, callback: Callable[[BaseException | None], object]) -> None:
        super().__init__()
        self._callback = callback

    def _answered(self, error: BaseException | None) -> None:
        try:
            self._callback(error)
        except Exception:
            log.exception("a done callback raised")


class AskedSubscription(Protocol):
    """A subscription whose acknowledgement is expected."""

    def tick(self) -> None:
        """Do what has become due."""


class PropagationFuture(GuardedFuture[Outcome]):
    """The acknowledgements of all subscriptions to one transaction or resync; it cannot be cancelled.

    ``result()`` waits ``default_timeout`` seconds unless given another timeout, and raises

    - ``DoneTimeout`` when a subscriber has not acknowledged by then; ``silent`` names it. Call ``result()`` again to
      wait longer.
    - ``PropagationError`` when a subscriber rejected the event,
    - ``DeliveryTimeout``, ``DoneTimeout`` or ``ClosedError`` when none rejected it but some could not be asked.

    Threads: any.
    """

    def __init__(self, subject: Callable[[], str], default_timeout: float, guard: ForkGuard) -> None:
        super().__init__(guard)
        self.default_timeout = check_timeout(default_timeout)
        self._subject = subject  # formatted only for an error
        self._made = time.monotonic()
        self._outcome: Outcome | None = None
        # Guarded by the lock of the registry that made the future, as is collect(); silent() reads it without.
        self._silent: dict[str, AskedSubscription] = {}
        self._failed: dict[str, BaseException] = {}

    def cancel(self) -> bool:
        """False: a change cannot be recalled."""
        self._guard.check()
        return False

    def running(self) -> bool:
        """True until it completes."""
        return not self.done()

    def silent(self) -> tuple[str, ...]:
        """Return the names of the subscriptions that have not acknowledged yet."""
        return tuple(self._silent.copy())

    def result(self, timeout: float | None = None) -> Outcome:
        """Wait for all acknowledgements, up to *timeout* seconds (``default_timeout`` when None)."""
        return self._wait(GuardedFuture.result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that ``result`` would raise; ``DoneTimeout`` is raised."""
        return self._wait(GuardedFuture.exception, timeout)

    def expect(self, outcome: Outcome, asked: dict[str, AskedSubscription]) -> None:
        """Set the result of success and the subscriptions to wait for.

        Called once, under the registry's lock. The future keeps the dict *asked*.
        """
        self._silent = asked
        self._outcome = outcome

    def collect(self, name: str, error: BaseException | None) -> bool:
        """Take the acknowledgement of *name*; True when it was the last one. Called under the registry's lock."""
        if error is not None:
            self._failed[name] = error
        self._silent.pop(name, None)
        return not self._silent

    def finish(self) -> None:
        """Complete the future. Called once, without the lock: callbacks of the user run in here."""
        self._complete(self)

    def _complete(self, future: concurrent.futures.Future[Outcome]) -> None:
        if not self._failed and self._outcome is not None:
            future.set_result(self._outcome)
        else:
            future.set_exception(_combine(self._subject(), self._failed))

    def _wait(self, ask: Callable[[GuardedFuture[Outcome], float | None], T], timeout: float | None) -> T:
        timeout = self.default_timeout if timeout is None else check_timeout(timeout)
        try:
            return ask(self, timeout)
        except concurrent.futures.TimeoutError:
            for one in self._silent.copy().values():
                one.tick()  # the ``DeliveryTimeout`` of a queue that was full all the time is due at this moment
            if self.done():
                return ask(self, None)
            if self._outcome is not None and not self._silent:
                # All have answered, and the thread of the last one is still in a callback of another future.
                decided: GuardedFuture[Outcome] = GuardedFuture(self._guard)
                self._complete(decided)
                return ask(decided, None)
            raise self._too_late(timeout) from None

    def _too_late(self, timeout: float) -> DoneTimeout:
        silent = self.silent()
        # A caller that asks repeatedly, or that waits elsewhere first, has waited longer than this call.
        timeout = max(timeout, time.monotonic() - self._made)
        message = f"{self._subject()}: done was not called within {timeout:.1f} s by: {', '.join(silent)}"
        log.warning("%s", message)
        return DoneTimeout(message, silent)


def aggregate_done(futures: Mapping[str, concurrent.futures.Future[None]]) -> concurrent.futures.Future[None]:
    """Combine many acknowledgements into one future, which completes after all of them.

    Args:
      futures: Subscriber name to its future; may be empty.

    Returns:
      A future with the result None, or ``PropagationError`` with every failure by name.

    Threads: any.
    Source: Go ``AggregateDone``; contract C9.
    """
    combined: concurrent.futures.Future[None] = SteppedFuture()
    combined.set_running_or_notify_cancel()
    names = tuple(futures)  # the caller may change the mapping afterwards
    missing = list(range(len(names)))  # each answer takes one, and 0 is the last: without a lock, for finalizers
    failed: dict[str, BaseException] = {}

    def answered(name: str, future: concurrent.futures.Future[None]) -> None:
        error = concurrent.futures.CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            failed[name] = error
        if missing.pop() > 0:
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


def check_keys(keys: Container[str], error: Rejected) -> None:
    """Raise ``InvalidArgumentError`` if *error* names a key that is not among *keys*."""
    strange = next((key for key in error.errors if not isinstance(key, str) or key not in keys), None)
    if strange is not None:
        raise InvalidArgumentError(f"Rejected names {strange!r}, which the event does not have")


def _combine(subject: str, failed: Mapping[str, BaseException]) -> DatasyncError:
    """Make one error of several: a specific one when no subscriber rejected the event and all failed for one cause."""
    names = ", ".join(failed)
    errors = list(failed.values())
    if all(isinstance(error, DeliveryTimeout) for error in errors):
        return DeliveryTimeout(f"{subject}: the queue stayed full of: {names}")
    if all(isinstance(error, DoneTimeout) for error in errors):
        return DoneTimeout(f"{subject}: abandoned, done was never called by: {names}", failed)
    if all(isinstance(error, ClosedError) for error in errors):
        return ClosedError(f"{subject}: closed before it was acknowledged by: {names}")
    return PropagationError(failed)
