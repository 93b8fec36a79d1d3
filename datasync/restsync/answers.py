"""What an answer of the server means to a caller: the library's own errors, out of a status and a problem document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from datasync.errors import (
    ConflictError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    StoreError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.restsync.problems import URN

#: Characters of a text of the server's that an error quotes.
MAX_TEXT = 4000

#: Code of a problem document to the error that it was made of.
_BY_CODE: dict[str, Callable[[str], DatasyncError]] = {
    "bad-request": InvalidArgumentError,
    "unauthorized": PermissionDenied,
    "unwatched": SubscriptionError,
    "not-found": StoreError,
    "method-not-allowed": UnsupportedError,
    "conflict": ConflictError,
    "too-large": InvalidArgumentError,
    "unsupported-type": InvalidArgumentError,
    "internal": StoreError,
    "overloaded": StoreConnectionError,
    "undelivered": DeliveryTimeout,
    "closed": StoreConnectionError,
}

#: Statuses of whatever stands in between, or of a server that is not ours.
_BY_STATUS: dict[int, Callable[[str], DatasyncError]] = {
    400: InvalidArgumentError,
    401: PermissionDenied,
    403: PermissionDenied,
    404: StoreError,
    405: UnsupportedError,
    408: StoreConnectionError,
    413: InvalidArgumentError,
    414: InvalidArgumentError,
    429: StoreConnectionError,
    431: InvalidArgumentError,
    503: StoreConnectionError,
}


def code_of(content_type: str, body: bytes) -> tuple[str, dict[str, Any]]:
    """The code of a problem document and its members; empty where the body is none."""
    if content_type.partition(";")[0].strip() != "application/problem+json":
        return "", {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", {}
    if not isinstance(document, dict):
        return "", {}
    kind = document.get("type")
    return (kind.removeprefix(URN) if isinstance(kind, str) and kind.startswith(URN) else ""), document


def error_of(subject: str, status: int, content_type: str, body: bytes, *, write: bool) -> DatasyncError:
    """The error in a response that is no success. *write*: something may have been changed by it."""
    code, document = code_of(content_type, body)
    detail = _text(document.get("detail")) or f"status {status}"
    text = f"{subject}: {detail}"
    if code == "refused":
        errors = document.get("errors")
        named = errors if isinstance(errors, dict) and errors else {"the server": detail}
        return PropagationError({name[:MAX_TEXT]: DatasyncError(_text(said)) for name, said in named.items()})
    if code == "unanswered":
        silent = document.get("silent")
        return DoneTimeout(text, [_text(name) for name in silent] if isinstance(silent, list) else [])
    if code == "closed" and write:
        return UnknownOutcome(f"{text}; it may have been applied")
    if code in _BY_CODE:
        return _BY_CODE[code](text)
    if write and status in (500, 502, 504):  # a proxy gave up on a request that it had passed on
        return UnknownOutcome(f"{text}; it may have been applied")
    return _BY_STATUS.get(status, StoreError)(text)


def _text(said: object) -> str:
    """What a server says, if it is text at all, within bounds."""
    return said[:MAX_TEXT] if isinstance(said, str) else ""
