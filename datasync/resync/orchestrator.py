"""The orchestrator: goes through the registrations, one resync at a time, and reports.

Source: cn-infra ``datasync/resync/plugin_impl_resync.go``; contract C14.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from datasync.errors import ClosedError, DatasyncError, InvalidArgumentError
from datasync.resync.api import Registration, ResyncReport, ResyncResult
from datasync.resync.registration import Handler, QueueRegistration
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.serializer import check_key

log = logging.getLogger(__name__)

#: Seconds that a registration has to take the event from its queue; read at each resync.
RESYNC_ACCEPT_TIMEOUT = 1.0
#: Seconds that it has to answer after that; read at each resync.
RESYNC_ACK_TIMEOUT = 10.0


class Plugin(Closable):
    """Asks every registration, in order, to start over from the full state. Starts no thread.

    Args:
      accept_timeout: Seconds instead of ``RESYNC_ACCEPT_TIMEOUT``.
      ack_timeout: Seconds instead of ``RESYNC_ACK_TIMEOUT``.

    Threads: any; resyncs asked for at the same time run one after the other.
    Source: Go ``resync.Plugin``; contract C14.
    """

    def __init__(self, *, accept_timeout: float | None = None, ack_timeout: float | None = None) -> None:
        self._accept_timeout = _checked("accept_timeout", accept_timeout)
        self._ack_timeout = _checked("ack_timeout", ack_timeout)
        self._guard = ForkGuard("the resync orchestrator")
        self._lock = threading.Condition()  # guards everything below; notified when a turn ends, and by close
        self._registrations: list[QueueRegistration] = []
        self._closed = False
        self._runner: int | None = None
        self._runs = 0
        self._late = 0

    @property
    def runs(self) -> int:
        """How many resyncs were begun."""
        with self._lock:
            return self._runs

    @property
    def late_acks(self) -> int:
        """How many answers came too late to count."""
        with self._lock:
            return self._late

    def register(self, resync_name: str, handler: Handler | None = None) -> Registration:
        """Take a place at the end of the order. Several registrations may share a name.

        Args:
          resync_name: Stands in the report.
          handler: Called with the ``StatusEvent`` by the thread that runs ``do_resync``, instead of a queue. It must
            not block; it may ``ack`` later, from any thread.

        Raises:
          ClosedError: After ``close``.
        """
        self._guard.check()
        check_key(resync_name, "a resync name")
        registration = QueueRegistration(resync_name, handler, self._forget, self._count_late)
        with self._lock:
            if self._closed:
                raise ClosedError(f"{resync_name} cannot register: the resync orchestrator is closed")
            self._registrations.append(registration)
        return registration

    def do_resync(self) -> ResyncReport:
        """Have every registration start over, one after the other, and tell how each ended.

        Those that join while it runs wait for the next one. A registration that fails or is silent does not keep
        the others from their turn.

        Raises:
          ClosedError: The orchestrator is closed, or was closed while this waited.
          DatasyncError: Called from a handler of the resync that is running.
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
        level = logging.INFO if report.ok else logging.WARNING
        log.log(level, "resync of %d in %.1f s: %s", len(results), time.monotonic() - started, report)
        return report

    def close(self) -> None:
        """Close every registration and end the resync that is running. May be called twice."""
        if self._guard.forked:
            return
        with self._lock:
            self._closed = True
            registrations = tuple(self._registrations)
            self._lock.notify_all()
        for registration in registrations:
            registration.close()

    def _ask(self, registration: QueueRegistration) -> ResyncResult | None:
        result = registration.ask(
            RESYNC_ACCEPT_TIMEOUT if self._accept_timeout is None else self._accept_timeout,
            RESYNC_ACK_TIMEOUT if self._ack_timeout is None else self._ack_timeout,
        )
        with self._lock:
            if self._closed:
                raise ClosedError("the resync orchestrator was closed during do_resync()")
        return result

    def _take_turn(self) -> list[QueueRegistration]:
        """Wait until nobody else runs. A flag and not a lock, so that close() can end the wait."""
        with self._lock:
            if self._runner == threading.get_ident():
                raise DatasyncError("do_resync() was called from a handler of the resync that is running")
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
            self._lock.notify_all()  # one that was woken may be gone, by ^C

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
