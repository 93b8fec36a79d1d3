"""Errors as HTTP says them: a status, and a JSON document of RFC 9457 that a program can tell apart.

``type`` is ``urn:datasync:CODE``; the client turns it back into the error it came from. What a value looked like is
never in it: the text is that of the library's own errors, or what a subscriber answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from datasync.errors import (
    ClosedError,
    ConflictError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    ForkedError,
    InvalidArgumentError,
    PropagationError,
    SubscriptionError,
)
from datasync.restsync.response import Reply

PROBLEM_TYPE = "application/problem+json"
URN = "urn:datasync:"

#: Code to (status, title). The codes are part of the interface.
CODES: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be understood"),
    "unauthorized": (401, "A token is needed"),
    "not-found": (404, "Nothing is here"),
    "no-such-key": (404, "There is no such key"),
    "unwatched": (404, "Nobody watches this key"),
    "method-not-allowed": (405, "This cannot be done here"),
    "length-required": (411, "The length of the body must be told"),
    "conflict": (412, "The condition does not hold"),
    "too-large": (413, "The body is too large"),
    "unsupported-type": (415, "The content type is not understood"),
    "refused": (422, "A subscriber refused the change"),
    "internal": (500, "An error of the server's own"),
    "overloaded": (503, "Too much is going on"),
    "undelivered": (503, "A subscriber has no room for the change"),
    "closed": (503, "The server is closing"),
    "unanswered": (504, "A subscriber did not answer in time"),
}


class Problem(Exception):
    """An answer that is not the one hoped for. Does not leave the application."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = CODES[code]
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def response(self) -> Reply:
        """The HTTP response."""
        document = {"type": URN + self.code, "title": self.title, "status": self.status, "detail": self.detail}
        body = json.dumps(document | self.members, ensure_ascii=True)
        return Reply(body, self.status, PROBLEM_TYPE, self.headers)


def problem_of(error: BaseException) -> Problem:
    """What *error* of the library is in HTTP."""
    text = str(error)
    if isinstance(error, PropagationError):
        errors = {name: error_text(one) for name, one in error.errors.items()}
        return Problem(
            "refused", "; ".join(f"{name}: {said}" for name, said in errors.items()), members={"errors": errors}
        )
    if isinstance(error, DoneTimeout):
        return Problem("unanswered", text, members={"silent": list(error.silent)})
    if isinstance(error, DeliveryTimeout):
        return Problem("undelivered", text, headers={"Retry-After": "2"})
    if isinstance(error, ConflictError):
        return Problem("conflict", text)
    if isinstance(error, InvalidArgumentError):
        return Problem("bad-request", text)
    if isinstance(error, SubscriptionError):
        return Problem("unwatched", text)
    if isinstance(error, (ClosedError, ForkedError)):
        return Problem("closed", text, headers={"Retry-After": "2"})
    return Problem("internal", text if isinstance(error, DatasyncError) else "see the server's log")


def error_text(error: BaseException | None) -> str:
    """The kind of *error* and what it says; empty for None."""
    if error is None:
        return ""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
