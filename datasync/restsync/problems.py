"""Errors over HTTP: one table from problem code to status, to the server's exception and to the client's.

The server reports an error as a JSON document (RFC 9457) whose ``type`` is ``urn:datasync:CODE``; the client turns it
back into an exception. A document never contains a value: its text is that of the library's own errors, or the text
with which a subscriber rejected a change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from datasync.errors import (
    MAX_TEXT,
    ClosedError,
    ConflictError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    ForkedError,
    InvalidArgumentError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    StoreError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
    error_text,
)
from datasync.restsync.response import Response

PROBLEM_TYPE = "application/problem+json"
URN = "urn:datasync:"
#: Characters of all reasons in a document.
REASONS_SIZE = 100_000


class ProblemKind(NamedTuple):
    """One row of the table."""

    status: int
    title: str
    #: Exception that the client raises; None: the status decides.
    raises: type[DatasyncError] | None = None
    #: Exceptions that the server reports with this code.
    reports: tuple[type[DatasyncError], ...] = ()
    #: Seconds after which the client may retry.
    retry_after: int | None = None
    #: True when a write that ends with this code may have been applied.
    uncertain: bool = False


#: Code to row. The codes are part of the interface.
PROBLEMS: dict[str, ProblemKind] = {
    "bad-request": ProblemKind(400, "The request is malformed", InvalidArgumentError, (InvalidArgumentError,)),
    "unauthorized": ProblemKind(401, "The request needs a valid token", PermissionDenied),
    "forbidden": ProblemKind(403, "The request comes from elsewhere", PermissionDenied),
    "not-found": ProblemKind(404, "The path does not exist", StoreError),
    "no-such-key": ProblemKind(404, "The key does not exist"),
    "unwatched": ProblemKind(404, "No subscriber watches the key", SubscriptionError, (SubscriptionError,)),
    "method-not-allowed": ProblemKind(405, "The path does not support the method", UnsupportedError),
    "length-required": ProblemKind(411, "The request needs the length of its body"),
    "conflict": ProblemKind(412, "The condition does not hold", ConflictError, (ConflictError,)),
    "rewritten": ProblemKind(412, "The path names another key than the header", StoreError),
    "too-large": ProblemKind(413, "The body is too large", InvalidArgumentError),
    "unsupported-type": ProblemKind(415, "The content type is not supported", InvalidArgumentError),
    "refused": ProblemKind(422, "A subscriber rejected the change", PropagationError, (PropagationError,)),
    "internal": ProblemKind(500, "The server failed", StoreError, uncertain=True),
    # The HTTP server, which has other statuses for it too: the request never reached the application.
    "unread": ProblemKind(400, "The request was not read to its end"),
    "overloaded": ProblemKind(503, "The server is overloaded", StoreConnectionError),
    "undelivered": ProblemKind(503, "The queue of a subscriber is full", DeliveryTimeout, (DeliveryTimeout,), 2),
    "closed": ProblemKind(503, "The server is closing", StoreConnectionError, (ClosedError, ForkedError), 2, True),
    # Of a server in front of a store.
    "denied": ProblemKind(403, "The store does not allow it", PermissionDenied, (PermissionDenied,)),
    "unsupported": ProblemKind(501, "The store does not support it", UnsupportedError, (UnsupportedError,)),
    "unreachable": ProblemKind(503, "The store is unreachable", StoreConnectionError, (StoreConnectionError,), 2),
    "unknown-outcome": ProblemKind(504, "The store did not answer", None, (UnknownOutcome,), uncertain=True),
    "unanswered": ProblemKind(504, "A subscriber did not acknowledge in time", DoneTimeout, (DoneTimeout,)),
}

#: Exceptions for statuses without a code of ours; ``StoreError`` for all others.
_BY_STATUS: dict[int, type[DatasyncError]] = {
    400: InvalidArgumentError,
    401: PermissionDenied,
    403: PermissionDenied,
    405: UnsupportedError,
    408: StoreConnectionError,
    413: InvalidArgumentError,
    414: InvalidArgumentError,
    429: StoreConnectionError,
    431: InvalidArgumentError,
    503: StoreConnectionError,
}
#: Client errors that a gateway may also report of a request that it has passed on: it timed out, or it put its own text
#: in place of the answer of the server. With any other 3xx or 4xx it has refused the request itself.
_AFTER_PASSING = {408, 422, 499}
_UNKNOWN_KIND = ProblemKind(0, "")


class Problem(Exception):
    """A request that failed. The application turns it into a response; it never leaves the application."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        kind = PROBLEMS[code]
        self.code = code
        self.status, self.title = kind.status, kind.title
        self.detail = detail
        self.headers = {} if kind.retry_after is None else {"Retry-After": str(kind.retry_after)}
        self.headers.update(headers or {})
        self.members = dict(members or {})

    def response(self) -> Response:
        """Return the problem document as an HTTP response."""
        document = {"type": URN + self.code, "title": self.title, "status": self.status, "detail": self.detail}
        body = json.dumps(document | self.members, ensure_ascii=True)
        return Response(body, self.status, PROBLEM_TYPE, self.headers)


def problem_of(error: BaseException) -> Problem:
    """Return the problem that reports *error* to the client."""
    code = next((code for code, kind in PROBLEMS.items() if isinstance(error, kind.reports)), "internal")
    if isinstance(error, PropagationError):
        errors = {name: error_text(one) for name, one in error.errors.items()}
        detail = "; ".join(f"{name}: {text}" for name, text in errors.items())
        rejected: dict[str, Any] = {
            "errors": errors,
            "reasons": error.brief_reasons(REASONS_SIZE),
            "retryable": error.retryable,
        }
        if error.retry_after is None:
            return Problem(code, detail, members=rejected)
        headers = {"Retry-After": str(math.ceil(error.retry_after))}
        return Problem(code, detail, headers=headers, members=rejected | {"retry_after": error.retry_after})
    members = {"silent": list(error.silent)} if isinstance(error, DoneTimeout) else None
    return Problem(code, str(error) if isinstance(error, DatasyncError) else "see the server's log", members=members)


def code_of(content_type: str, body: bytes) -> tuple[str, dict[str, Any]]:
    """Return the code and the members of a problem document; both empty when *body* is not one."""
    document = None
    if content_type.partition(";")[0].strip() == PROBLEM_TYPE:
        with suppress(ValueError, RecursionError):
            document = json.loads(body)
    if not isinstance(document, dict):
        return "", {}
    kind = document.get("type")
    return (kind.removeprefix(URN) if isinstance(kind, str) and kind.startswith(URN) else ""), document


def error_of(subject: str, status: int, content_type: str, body: bytes, *, write: bool) -> DatasyncError:
    """Return the exception for a response that reports a failure. *write*: the request may have changed something."""
    code, document = code_of(content_type, body)
    kind = PROBLEMS.get(code, _UNKNOWN_KIND)
    foreign = "" if code else "; the response is not from a datasync server: check the URL, and what is in between"
    detail = _bounded(document.get("detail")) or f"status {status}{foreign}"
    text = f"{subject}: {detail}"
    if kind.raises is PropagationError:
        return _rejection(document, detail)
    if kind.raises is DoneTimeout:
        silent = document.get("silent")
        return DoneTimeout(text, [_bounded(name) for name in silent] if isinstance(silent, list) else [])
    if write and (kind.uncertain or (kind is _UNKNOWN_KIND and may_have_passed(status))):
        return UnknownOutcome(f"{text}; the write may have been applied")
    return (kind.raises or _BY_STATUS.get(status, StoreError))(text)


def _rejection(document: Mapping[str, Any], detail: str) -> PropagationError:
    """Return the error that a caller inside the server would get."""
    errors, reasons = document.get("errors"), document.get("reasons")
    if not isinstance(reasons, dict) or not reasons:  # an earlier server
        named = errors if isinstance(errors, dict) and errors else {"the server": detail}
        reasons = {name: {"": text} for name, text in named.items()}
    told = {
        name[:MAX_TEXT]: {key[:MAX_TEXT]: _bounded(text) for key, text in texts.items()}
        for name, texts in reasons.items()
        if isinstance(texts, dict)
    }
    return PropagationError.told(
        told, retryable=document.get("retryable") is not False, retry_after=_seconds(document.get("retry_after"))
    )


def _seconds(number: object) -> float | None:
    """Return *number* when it is a time in seconds."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    return number if 0 <= number < math.inf else None


def may_have_passed(status: int) -> bool:
    """Return True when an answer with *status* that is not ours does not tell whether our server got the request."""
    return not 300 <= status < 500 or status in _AFTER_PASSING


def _bounded(text: object) -> str:
    """Return *text* within bounds; empty when the server sent anything but text."""
    return text[:MAX_TEXT] if isinstance(text, str) else ""
