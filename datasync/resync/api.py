"""The interfaces and results of a resync: for its registrations, and for the caller that starts it.

Source: cn-infra ``datasync/resync/plugin_api_resync.go``; contract C14.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from queue import Queue
from typing import Any, Protocol


class ResyncStatus(str, Enum):
    """The content of a :class:`StatusEvent`."""

    #: Start over from the full state, then ``ack``.
    STARTED = "Started"
    #: The registration is closed; no event follows and no ``ack`` is expected.
    STOPPED = "Stopped"


class StatusEvent(Protocol):
    """An instruction to a registration."""

    @property
    def resync_name(self) -> str:
        """Name of the registration."""

    @property
    def status(self) -> ResyncStatus:
        """``STARTED`` for a resync, ``STOPPED`` after the registration was closed."""

    def ack(self, error: BaseException | None = None) -> bool:
        """Acknowledge the event: None when the full state was applied. Never blocks. Threads: any.

        Returns:
          True for the call that counted; False for a second one, or when the acknowledgement is no longer expected.
        """


class ResyncRegistration(Protocol):
    """A place in the order of resyncs."""

    @property
    def resync_name(self) -> str:
        """The name given to ``register``; several registrations may have the same."""

    @property
    def status_queue(self) -> Queue[Any]:
        """Receives the :class:`StatusEvent` objects; taking one from it accepts it. Unused with a handler."""

    def close(self) -> None:
        """Leave the order; a ``STOPPED`` event is put on the queue. May be called twice, from any thread."""


class ResyncOutcome(str, Enum):
    """The end of one registration's part of a resync."""

    #: It acknowledged.
    APPLIED = "applied"
    #: It acknowledged with an error, its handler raised, or it was closed meanwhile.
    FAILED = "failed"
    #: It accepted the event and did not acknowledge it in time. A late acknowledgement changes nothing.
    TIMED_OUT = "timed out"
    #: It did not accept the event in time; the event was withdrawn.
    NOT_ACCEPTED = "not accepted"


@dataclass(frozen=True, slots=True)
class ResyncResult:
    """One registration's part of a resync. *error* is set when it failed."""

    resync_name: str
    outcome: ResyncOutcome
    error: BaseException | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ResyncReport:
    """The result of a resync, one entry per registration, in their order."""

    results: tuple[ResyncResult, ...] = ()

    @property
    def ok(self) -> bool:
        """True when every registration applied it."""
        return not self.failed

    @property
    def failed(self) -> tuple[ResyncResult, ...]:
        """The results other than ``APPLIED``."""
        return tuple(result for result in self.results if result.outcome is not ResyncOutcome.APPLIED)

    def __str__(self) -> str:
        lines = (f"{result.resync_name}: {result.outcome.value} ({result.seconds:.1f} s)" for result in self.results)
        return ", ".join(lines) or "no registrations"
