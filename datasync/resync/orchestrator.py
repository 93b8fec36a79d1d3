"""The orchestrator: runs one resync at a time over the registrations, and reports the results.

Source: cn-infra ``datasync/resync/plugin_impl_resync.go``; contract C14.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from datasync.checks import check_key
from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError
from datasync.resync.api import ResyncRegistration, ResyncReport, ResyncResult
from datasync.resync.registration import Handler, QueueRegistration
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import ForkGuard, SteppedCondition
from datasync.runtime.wording import counted

log = get_logger(__name__)

#: Seconds within which a registration must take the event from its queue; read at each resync.
RESYNC_ACCEPT_TIMEOUT = 1.0
#: Seconds within which it must acknowledge the event after that; read at each resync.
RESYNC_ACK_TIMEOUT = 10.0


class Plugin(Closable):
    """Makes every registration start over from the full state, in order. Starts no thread.

    Args:
      accept_timeout: Seconds instead of ``RESYNC_ACCEPT_TIMEOUT``.
      ack_timeout: Seconds instead of ``RESYNC_ACK_TIMEOUT``.

    Threads: any; concurrent resyncs run one after the other.
    Source: Go ``resync.Plugin``; contract C14.
    """

    def __init__(self, *, accept_timeout: float | None = None, ack_timeout: float | None = None) -> None:
        self._accept_timeout = _checked("accept_timeout", accept_timeout)
        self._ack_timeout = _checked("ack_timeout", ack_timeout)
        self._guard = ForkGuard("the resync orchestrator")
        self._lock = SteppedCondition()  # guards everything below; notified when a turn ends, and by close
        self._registrations: list[QueueRegistration] = []
        self._closed = False
        self._runner: int | None = None
        self._runs = 0
        self._late = 0

    @property
    def runs(self) -> int:
        """The number of resyncs that were started."""
        with self._lock:
            return self._runs

    @property
    def late_acks(self) -> int:
        """The number of acknowledgements that came too late to count."""
        with self._lock:
            return self._late

    def register(self, resync_name: str, handler: Handler | None = None) -> ResyncRegistration:
        """Register at the end of the order. Several registrations may share a name.

        Args:
          resync_name: Name of the registration in the report.
          handler: Called with the ``StatusEvent`` by the thread that runs ``do_resync``, instead of a queue. It must
            not block; it may ``ack`` later, from any thread.

        Raises:
          ClosedError: After ``close``.
        """
        self._guard.check()
        check_key(resync_name, "a resync name")
        registration = QueueRegistration(resync_name, handler, self._forget, self._count_late)
        with self._lock:
            self._registrations.append(registration)  # before the look: a finalizer may close between the two
            if not self._closed:
                return registration
            self._registrations.remove(registration)
        raise ClosedError(f"{resync_name!r} cannot be registered: the resync orchestrator is closed")

    def do_resync(self) -> ResyncReport:
        """Make every registration start over, one after the other, and report how each ended.

        A registration that joins during a resync takes part in the next one. One that fails or does not respond does
        not stop the others.

        Raises:
          ClosedError: The orchestrator is closed, or was closed during the call.
          DatasyncError: The caller is a handler of the resync that is running.
        """
        self._guard.check()
        started = time.monotonic()
        results: list[ResyncResult] = []
        registrations = self._take_turn()
        try:
            for registration in registrations:
                result = self._ask(registration)
                if result is not None:
                    results.append(result)
        finally:
            self._end_turn()
        report = ResyncReport(tuple(results))
        seconds = time.monotonic() - started
        level = logging.INFO if report.ok else logging.WARNING
        log.log(level, "resync of %s in %.1f s: %s", counted(len(results), "registration"), seconds, report)
        return report

    def close(self) -> None:
        """Close every registration and end a running resync. May be called twice."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            registrations = tuple(self._registrations)
            self._lock.notify_all()
        for registration in registrations:
            registration.close()

    def _ask(self, registration: QueueRegistration) -> ResyncResult | None:
        accept_timeout = self._accept_timeout or RESYNC_ACCEPT_TIMEOUT
        result = registration.ask(accept_timeout, self._ack_timeout or RESYNC_ACK_TIMEOUT)
        with self._lock:
            if self._closed:
                raise ClosedError("the resync orchestrator was closed during do_resync()")
        return result

    def _take_turn(self) -> list[QueueRegistration]:
        """Wait for the end of a resync in another thread. A flag, not a lock, so that close() can end the wait."""
        with self._lock:
            if self._runner == threading.get_ident():
                raise DatasyncError("do_resync() was called by a handler of the resync that is running")
            while self._runner is not None and not self._closed:
                self._lock.wait()
            if self._closed:
                raise ClosedError("the resync orchestrator is closed")
            self._runner = threading.get_ident()
            self._runs += 1
            return list(self._registrations)

    def _end_turn(self) -> None:
        with self._lock:
            self._runner = None
            self._lock.notify_all()  # all: ^C may have ended the wait of the one that notify() would pick

    def _forget(self, registration: QueueRegistration) -> None:
        with self._lock:
            if registration in self._registrations:
                self._registrations.remove(registration)

    def _count_late(self) -> None:
        with self._lock:
            self._late += 1


def _checked(name: str, seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgumentError(f"{name} must be more than 0 seconds, not {seconds}")
    return seconds
