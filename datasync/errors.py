"""The errors of datasync: one tree under :class:`DatasyncError`.

Every message names the key, prefix or subscription that it is about, and never a value. ``retryable`` is True when the
same call may succeed later without a change by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from datasync.runtime.wording import counted

#: Keys that the text of one error lists.
LISTED = 10
#: Characters of the text of one error in a status.
BRIEF_TEXT = 200
#: Characters of one text in an error that a transport sends.
MAX_TEXT = 4000


class DatasyncError(Exception):
    """Base class of all errors of datasync."""

    #: True when the same call may succeed later.
    retryable: bool = False


class NotReadyError(DatasyncError):
    """Used before it was started, or before its source was read for the first time."""

    retryable = True


class ClosedError(DatasyncError):
    """Used after ``close()``; also raised to the callers that wait at the time of ``close()``."""


class ForkedError(DatasyncError):
    """A handle of the parent process was used in a child made by ``os.fork()``; open a new one in the child."""


class SubscriptionError(DatasyncError, ValueError):
    """A resync name or key prefix that already exists, or that does not exist."""


class InvalidArgumentError(DatasyncError, ValueError):
    """An invalid key, option, URL, message or other argument; nothing was written."""


class ConflictError(DatasyncError):
    """A key did not have the revision that a write required; nothing was written."""


class MissingExtraError(DatasyncError, ImportError):
    """A client library is not installed; the message names the extra that installs it."""

    def __init__(self, extra: str, library: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'datasync-kv[{extra}]'")
        self.extra = extra
        self.library = library

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.extra, self.library)


class DeliveryTimeout(DatasyncError, TimeoutError):
    """A subscriber's queue stayed full, so that a later RESYNC replaces the event."""


class DoneTimeout(DatasyncError, TimeoutError):
    """Subscribers did not call ``done`` in time; ``silent`` names them. A late acknowledgement still counts."""

    def __init__(self, message: str, silent: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.silent: tuple[str, ...] = tuple(silent)


class Rejected(DatasyncError):
    """The answer of a subscriber that applied an event but for some keys: ``event.done(Rejected({key: error}))``.

    ``errors`` maps each rejected key to its error; a text stands for an error with that text. The rejected keys are
    delivered again; the error :class:`RetryAfter` or :class:`Permanent` says when. ``retryable`` is False when each of
    the errors is :class:`Permanent`. Source: contract C10.

    Raises:
      InvalidArgumentError: No key is named, or an error is neither an exception nor a text.
    """

    retryable = True

    def __init__(self, errors: Mapping[str, BaseException | str]) -> None:
        if not isinstance(errors, Mapping) or not errors:
            raise InvalidArgumentError("Rejected takes a mapping of at least one key to its error")
        self.errors: dict[str, BaseException] = {}
        for key, error in errors.items():
            if not isinstance(error, (BaseException, str)):
                raise InvalidArgumentError(f"the error of {key!r} must be an exception, not {type(error).__name__}")
            self.errors[key] = DatasyncError(error) if isinstance(error, str) else error
        self.retryable = not all(isinstance(error, Permanent) for error in self.errors.values())
        listing = [f"{key!r}: {error_text(error)}" for key, error in islice(self.errors.items(), LISTED)]
        if len(self.errors) > LISTED:
            listing.append(f"and {len(self.errors) - LISTED} more")
        super().__init__(f"{counted(len(self.errors), 'key')} rejected: " + "; ".join(listing))

    def __reduce__(self) -> tuple[Any, ...]:  # Exception would restore it from its message
        return type(self), (self.errors,)


class RetryAfter(DatasyncError):
    """The error of a key, or of an event, that is to be delivered again after *seconds*. Source: contract C10."""

    retryable = True

    def __init__(self, seconds: float, reason: str = "") -> None:
        if not isinstance(seconds, (int, float)) or not 0 <= seconds < float("inf"):
            raise InvalidArgumentError("RetryAfter takes a number of seconds, at least 0")
        super().__init__(reason or f"to be tried again after {seconds:g} s")
        self.seconds = float(seconds)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.seconds, self.reason)


class Permanent(DatasyncError):
    """The error of a key that is not to be delivered again until its value changes. Source: contract C10."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "not to be tried again")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,)


class PropagationError(DatasyncError):
    """Subscribers rejected an event. ``errors`` maps the resync name of each one to its error.

    ``retryable`` is False when one of the errors is :class:`Permanent`. ``retry_after`` is the longest time of a
    :class:`RetryAfter` among them, in seconds; None when no subscriber named one. Source: contract C9, C10.
    """

    def __init__(self, errors: Mapping[str, BaseException]) -> None:
        self.errors: dict[str, BaseException] = dict(errors)
        parts = [part for error in self.errors.values() for part in _parts(error)]
        self.retryable = not any(isinstance(part, Permanent) for part in parts)
        self.retry_after: float | None = max(
            (part.seconds for part in parts if isinstance(part, RetryAfter)), default=None
        )
        listing = "; ".join(f"{name}: {error_text(error)}" for name, error in self.errors.items())
        super().__init__(f"rejected by {counted(len(self.errors), 'subscription')}: {listing}")

    @property
    def reasons(self) -> dict[str, dict[str, str]]:
        """The text of each error by resync name and key; the key is empty where a whole event was rejected."""
        return {name: error_texts(error) for name, error in self.errors.items()}

    def brief_reasons(self, size: int) -> dict[str, dict[str, str]]:
        """Return ``reasons`` in about *size* characters, for a message; the last text counts what did not fit."""
        brief: dict[str, dict[str, str]] = {}
        reasons = self.reasons
        left = sum(map(len, reasons.values()))
        for name, texts in reasons.items():
            mine = brief[name] = {}
            for key, text in texts.items():
                size -= len(name) + len(key) + min(len(text), MAX_TEXT)
                if size < 0:
                    mine[""] = f"and {left} more"
                    return brief
                mine[key] = text[:MAX_TEXT]
                left -= 1
        return brief

    @classmethod
    def told(
        cls, reasons: Mapping[str, Mapping[str, str]], *, retryable: bool = True, retry_after: float | None = None
    ) -> PropagationError:
        """Return the error that another process tells with these attributes: its ``reasons`` are the same."""
        error = cls({name: _told(texts) for name, texts in reasons.items()})
        error.retryable, error.retry_after = retryable, retry_after
        return error

    def __reduce__(self) -> tuple[Any, ...]:  # Exception would restore it from its message
        return type(self), (self.errors,), {"retryable": self.retryable, "retry_after": self.retry_after}


class AggregateError(DatasyncError):
    """Members of an aggregate failed. ``errors`` contains every failure, in the order of the members."""

    def __init__(self, errors: Iterable[BaseException]) -> None:
        self.errors: tuple[BaseException, ...] = tuple(errors)
        super().__init__(f"{counted(len(self.errors), 'member')} failed: " + "; ".join(map(error_text, self.errors)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)


class DecodeError(DatasyncError, ValueError):
    """Bytes that are not a valid encoding of the message type they were decoded into.

    The attributes say what is known of the fault, and are empty or 0 otherwise. They never hold a value.

    Attributes:
      form: ``JSON`` or ``protobuf``.
      kind: ``invalid`` (not of this form at all), ``unknown field``, ``wrong type``, ``out of range``, ``missing``,
        ``duplicate`` or ``too deep``.
      path: The field, such as ``interfaces[2].mtu``; an item of a map has its position, because its key is a value.
      line, column: The place in the text, each counted from 1.
    """

    def __init__(
        self, message: str, *, form: str = "", kind: str = "", path: str = "", line: int = 0, column: int = 0
    ) -> None:
        super().__init__(message)
        self.form = form
        self.kind = kind
        self.path = path
        self.line = line
        self.column = column

    def of(self, subject: str) -> DecodeError:
        """Return the same error about *subject*, such as a key."""
        error = type(self)(f"{subject} cannot be decoded: {self}")
        error.__dict__.update(self.__dict__)
        return error


class StoreError(DatasyncError):
    """A key-value store failed or returned an error."""


class StoreConnectionError(StoreError):
    """The store cannot be reached, or the connection was lost; a retry may help."""

    retryable = True


class PermissionDenied(StoreError):
    """The store denies access, or the credentials are wrong."""


class CompactedError(StoreError):
    """The history after a revision was compacted; ``compact_revision`` is the oldest available one, 0 if unknown."""

    def __init__(self, message: str, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class UnsupportedError(StoreError):
    """The store does not support the operation; its ``capabilities`` list what it supports."""


class UnknownOutcome(StoreError):
    """A write got no response: it may or may not have been applied. It is not repeated automatically.

    *token* identifies the commit in stores that keep one: ``store.committed(error.token)`` tells later whether it was
    applied. It is empty where a store or transport has none.
    """

    def __init__(self, message: str, token: str = "") -> None:
        super().__init__(message)
        self.token = token


class MessagingError(DatasyncError):
    """A message broker failed or returned an error."""


class PublishError(MessagingError):
    """The broker did not acknowledge a message."""


def error_texts(error: BaseException) -> dict[str, str]:
    """Return the text of *error* for each key that it names, and for the key ``""`` when it names none."""
    if isinstance(error, Rejected):
        return {key: error_text(one) for key, one in error.errors.items()}
    return {"": error_text(error)}


def error_text(error: BaseException) -> str:
    """Return the class name and the text of *error*; only its text when the class says nothing."""
    try:
        text = str(error)
    except Exception:  # an error of user code may be unable to tell its text
        text = ""
    if type(error) is DatasyncError and text:  # such as one that another process reported: the text names the class
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def brief_text(error: BaseException) -> str:
    """Return the text of *error* without its class name, in ``BRIEF_TEXT`` characters; empty when it has none."""
    try:
        return str(error)[:BRIEF_TEXT]
    except Exception:  # an error of user code may be unable to tell its text
        return ""


def _parts(error: BaseException) -> Iterable[BaseException]:
    """Return the error of each key that *error* names, or *error* itself."""
    return error.errors.values() if isinstance(error, Rejected) else (error,)


def _told(texts: Mapping[str, str]) -> DatasyncError:
    """Return the error whose ``error_texts`` are *texts*."""
    return Rejected(texts) if any(texts) else DatasyncError(texts.get("", ""))
