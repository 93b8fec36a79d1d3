"""Notifications to systemd: READY, STATUS and WATCHDOG, as ``sd_notify`` sends them, without its library.

Source: contract C22; the protocol is in systemd's manual, ``sd_notify(3)`` and ``sd_watchdog_enabled(3)``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from datasync.metrics.health import HasStatus, check_max_stale, check_views, unready
from datasync.runtime.closing import Closable
from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.threads import ForkGuard, Worker

log = get_logger(__name__)
limited = LimitedLog(log)

#: Seconds between two looks at the health, without a watchdog that asks for less.
INTERVAL = 5.0
#: Characters of a status line that systemd shows.
MAX_STATUS = 200


def notify(**fields: str | int) -> bool:
    """Send *fields*, such as ``READY=1``, to the service manager; False when it asked for none or cannot be reached."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    text = "\n".join(f"{name}={value}" for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not stop us
            sender.sendto(text.encode(), address)
    except OSError as error:
        limited.warning("systemd cannot be notified: %s", error.strerror)
        return False
    return True


class SystemdNotifier(Closable):
    """Tells systemd that the service is ready once it is, its status at each change, and that it lives.

    For units with ``Type=notify``; does nothing where no service manager asked for notifications. READY is sent once,
    as soon as :func:`~datasync.metrics.health.unready` finds no reason. The watchdog is fed whatever the stores do,
    at half the interval of ``WatchdogSec=``.

    Args:
      max_stale: Seconds after which a source that is lost is a reason in the status line; None for never.
      views: As for ``HealthMiddleware``.

    Threads: any. It has one of its own until ``close``, which sends STOPPING.
    """

    def __init__(self, *, max_stale: float | None = None, views: Iterable[HasStatus] = ()) -> None:
        check_max_stale(max_stale)
        self._views = check_views(views)
        self._max_stale = max_stale
        self._guard = ForkGuard("the notifier of systemd")
        self._ready = False
        self._status = ""
        self._watchdog = watchdog_seconds()
        self._interval = INTERVAL if self._watchdog is None else min(INTERVAL, self._watchdog / 2)
        self._worker = Worker("metrics-systemd", self._run)
        self._active = bool(os.environ.get("NOTIFY_SOCKET"))
        if self._active:
            self._worker.start()

    def close(self) -> None:
        """Send STOPPING and end the thread. May be called twice."""
        if self._guard.forked:
            return
        active, self._active = self._active, False
        if active:
            notify(STOPPING=1, STATUS="stopping")
        self._worker.close()

    def _run(self, worker: Worker) -> None:
        while not worker.stopping.is_set():
            try:
                self._tell()
            except Exception as error:  # of a health check; the watchdog is not about that
                limited.warning("the health could not be read: %s", type(error).__name__)
            if self._watchdog is not None and not worker.stopping.is_set():
                notify(WATCHDOG=1)
            worker.stopping.wait(self._interval if self._ready else min(self._interval, 0.2))

    def _tell(self) -> None:
        reasons = unready(self._max_stale, self._views)
        fields: dict[str, str | int] = {}
        if not reasons and not self._ready:
            fields["READY"] = 1
        status = "; ".join(reasons).replace("\n", " ")[:MAX_STATUS] or "ready"
        if status != self._status:
            fields["STATUS"] = status
        if fields and notify(**fields):
            self._ready, self._status = self._ready or not reasons, status


def watchdog_seconds() -> float | None:
    """Return the interval of the watchdog that systemd expects of this process; None without one."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 1e6
