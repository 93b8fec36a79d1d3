"""What a resync looks like to those who take part in it, and to the one who asks for it.

Source: cn-infra ``datasync/resync/plugin_api_resync.go``; contract C14.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from queue import Queue
from typing import Any, Protocol


class ResyncStatus(str, Enum):
    """What a :class:`StatusEvent` says."""

    #: Start over from the full state, then ``ack``.
    STARTED = "Started"
    #: The registration is closed; no event follows and nobody waits for an ``ack``.
    STOPPED = "Stopped"


class StatusEvent(Protocol):
    """Tells a registration what to do."""

    @property
    def resync_name(self) -> str:
        """Name of the registration."""
        ...

    @property
    def status(self) -> ResyncStatus:
        """Whether a resync started, or the registration has ended."""
        ...

    def ack(self, error: BaseException | None = None) -> bool:
        """Answer: None when the full state was applied. Never blocks. Threads: any.

        Returns:
          True for the call that counted; False for a second one, or when nobody waits any more.
        """
        ...


class Registration(Protocol):
    """A place in the order of resyncs."""

    @property
    def resync_name(self) -> str:
        """The name it was registered with; others may have the same."""
        ...

    @property
    def status_queue(self) -> Queue[Any]:
        """Receives the :class:`StatusEvent` objects; taking one out of it accepts it. Unused with a handler."""
        ...

    def close(self) -> None:
        """Leave the order; a ``STOPPED`` event is put on the queue. May be called twice, from any thread."""
        ...


class ResyncOutcome(str, Enum):
    """How one registration's part of a resync ended."""

    #: It acknowledged.
    APPLIED = "applied"
    #: It answered with an error, its handler raised, or it was closed meanwhile.
    FAILED = "failed"
    #: It accepted the event and did not answer in time. A late answer changes nothing.
    TIMED_OUT = "timed out"
    #: It did not take the event in time; the event was taken back.
    NOT_ACCEPTED = "not accepted"


@dataclass(frozen=True, slots=True)
class ResyncResult:
    """One registration's part of a resync. *error* is there when it failed."""

    resync_name: str
    outcome: ResyncOutcome
    error: BaseException | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ResyncReport:
    """What became of a resync, registration by registration, in their order."""

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
        return ", ".join(lines) or "nobody is registered"
