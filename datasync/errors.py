"""The errors of datasync: one tree under :class:`DatasyncError`.

Every message names the key, the prefix or the subscription that it is about, and never a value. ``retryable`` says
whether the same call may succeed later without anybody changing anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class DatasyncError(Exception):
    """Base of everything that datasync raises on purpose."""

    #: True when the same call may succeed later by itself.
    retryable: ClassVar[bool] = False


class NotReadyError(DatasyncError):
    """Used before it was started, or before its source could be read for the first time."""

    retryable = True


class ClosedError(DatasyncError):
    """Used after ``close()``; also the answer to events and callers that ``close()`` found waiting."""


class ForkedError(DatasyncError):
    """A handle of the parent process used in a child made by ``os.fork()``; open a new one in the child."""


class SubscriptionError(DatasyncError, ValueError):
    """A resync name or key prefix that is already there, or is not there."""


class InvalidArgumentError(DatasyncError, ValueError):
    """A bad key, option, URL, message or other argument; nothing was written."""


class ConflictError(DatasyncError):
    """A key did not have the revision that a write was made conditional on; nothing was written."""


class MissingExtraError(DatasyncError, ImportError):
    """A client library is not installed; the message names the extra that brings it."""

    def __init__(self, extra: str, library: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'datasync-kv[{extra}]'")
        self.extra = extra
        self.library = library

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.extra, self.library)


class DeliveryTimeout(DatasyncError, TimeoutError):
    """A subscriber's queue stayed full, so the event was replaced by a later RESYNC."""


class DoneTimeout(DatasyncError, TimeoutError):
    """Subscribers did not call ``done`` in time; ``silent`` names them. A late answer still counts."""

    def __init__(self, message: str, silent: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.silent: tuple[str, ...] = tuple(silent)


class PropagationError(DatasyncError):
    """Subscribers refused an event. ``errors`` maps each one's resync name to what it answered."""

    def __init__(self, errors: Mapping[str, BaseException]) -> None:
        self.errors: dict[str, BaseException] = dict(errors)
        listing = "; ".join(f"{name}: {_summary(error)}" for name, error in self.errors.items())
        super().__init__(f"not applied by {len(self.errors)} subscription(s): {listing}")

    def __reduce__(self) -> tuple[Any, ...]:  # Exception would make it again from its message
        return type(self), (self.errors,)


class AggregateError(DatasyncError):
    """Members of an aggregate failed. ``errors`` holds every failure, in the order of the members."""

    def __init__(self, errors: Iterable[BaseException]) -> None:
        self.errors: tuple[BaseException, ...] = tuple(errors)
        super().__init__(f"{len(self.errors)} member(s) failed: " + "; ".join(map(_summary, self.errors)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)


class DecodeError(DatasyncError, ValueError):
    """Bytes that do not fit the message they were read into."""


class StoreError(DatasyncError):
    """A key-value store failed or refused."""


class StoreConnectionError(StoreError):
    """The store cannot be reached, or the connection broke; trying again may help."""

    retryable = True


class PermissionDenied(StoreError):
    """The store knows who asks and refuses, or the credentials are wrong."""


class CompactedError(StoreError):
    """The history after the wanted revision is gone; ``compact_revision`` is the oldest that is left, 0 if unknown."""

    def __init__(self, message: str, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class UnsupportedError(StoreError):
    """The store cannot do what was asked; its ``capabilities`` say what it can."""


class UnknownOutcome(StoreError):
    """A write was sent and no answer came: it may or may not have been applied. It is not repeated by itself."""


class MessagingError(DatasyncError):
    """A message broker failed or refused."""


class PublishError(MessagingError):
    """A message was not acknowledged by the broker."""


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
