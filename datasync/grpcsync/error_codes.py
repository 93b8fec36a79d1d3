"""Result codes of replies, and their mapping to and from errors.

The original protocol defines only 0, for success. A peer that only distinguishes 0 from other values still works. The
text of the error is a separate field.

Source: contract C9, C16.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from datasync.errors import (
    MAX_TEXT,
    ClosedError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    PropagationError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.grpcsync.protocol import SHORTENED_KEY
from datasync.syncbase.msg.convert import wire_text
from datasync.syncbase.msg.datamsg_pb2 import (
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncRequests,
    Reason,
    Seq,
)

#: Characters of all reasons in the reply to a change. A client takes replies of 64 KiB, whatever its settings.
REASONS_SIZE = 8000


class Result(IntEnum):
    """The ``result`` field of a reply."""

    #: Every subscriber that watches the key acknowledged the change.
    APPLIED = 0
    #: A subscriber rejected the change.
    REFUSED = 1
    #: A subscriber did not acknowledge the change in time; it may still do so.
    UNANSWERED = 2
    #: A subscriber's queue stayed full; it receives a RESYNC when there is room.
    UNDELIVERED = 3
    #: No subscriber watches the key.
    UNWATCHED = 4
    #: The request is invalid; nothing was changed.
    INVALID = 5
    #: The receiver was closed before the subscribers answered.
    CLOSED = 6


#: The first match counts.
_BY_ERROR: tuple[tuple[type[BaseException], Result], ...] = (
    (PropagationError, Result.REFUSED),
    (DeliveryTimeout, Result.UNDELIVERED),
    (DoneTimeout, Result.UNANSWERED),
    (SubscriptionError, Result.UNWATCHED),
    (InvalidArgumentError, Result.INVALID),
    (ClosedError, Result.CLOSED),
)


def result_of(error: BaseException | None) -> Result:
    """Return the result code for *error*."""
    if error is None:
        return Result.APPLIED
    return next((result for kind, result in _BY_ERROR if isinstance(error, kind)), Result.REFUSED)


def mark_change(reply: DataChangeReply, error: BaseException | None) -> DataChangeReply:
    """Set the result code of *reply* for *error*, limit the length of its text, and add the reasons."""
    reply.result = result_of(error)
    reply.error_text = reply.error_text[:MAX_TEXT]
    _add_reasons(reply, error, REASONS_SIZE)
    return reply


def mark_resync(replies: DataResyncReplies, error: BaseException) -> DataResyncReplies:
    """Set the result codes of *replies*, for a resync that was not applied because of *error*, and add the reasons."""
    replies.result = result_of(error)
    replies.error.message = replies.error.message[:MAX_TEXT]
    for reply in replies.dataResyncs.replies:
        reply.result = replies.result
    # The limit of a client grows with its requests, whose keys the reply repeats.
    _add_reasons(replies, error, REASONS_SIZE + replies.ByteSize() // 4)
    return replies


def _add_reasons(reply: DataChangeReply | DataResyncReplies, error: BaseException | None, size: int) -> None:
    if not isinstance(error, PropagationError):
        return
    for name, texts in error.brief_reasons(size).items():
        for key, text in texts.items():
            reply.reasons.add(resync_name=wire_text(name), key=wire_text(key), text=wire_text(text))
    reply.permanent = not error.retryable
    if error.retry_after is not None:
        reply.retry_after = error.retry_after


def error_of(result: int, text: str, what: str, peer: str) -> DatasyncError | None:
    """Return the error for a *result* and *text* that *peer* sent about *what*; None for success.

    A rejection by a peer that gives no reasons by subscription becomes a ``PropagationError`` with the name *peer*.
    """
    if result == Result.APPLIED:
        return None
    if not text:  # a peer without this extension, which defines its own codes
        return PropagationError({peer: DatasyncError(f"{what}: result {result}")})
    message = f"{what}: {peer} says: {text}"
    if result == Result.UNANSWERED:
        return DoneTimeout(message, (peer,))
    if result == Result.UNDELIVERED:
        return DeliveryTimeout(message)
    if result == Result.UNWATCHED:
        return SubscriptionError(message)
    if result == Result.INVALID:
        return InvalidArgumentError(message)
    if result == Result.CLOSED:
        return NotReadyError(message)
    return PropagationError({peer: DatasyncError(f"{what}: {text}")})


def change_error(reply: DataChangeReply, request: DataChangeRequest, peer: str) -> DatasyncError | None:
    """Return the error in the *reply* of *peer* to *request*; None for success."""
    return _rejection(reply) or error_of(reply.result, reply.error_text, _short(request.key), peer)


def is_reply_to(reply: DataChangeReply, request: DataChangeRequest) -> bool:
    """Return True if *reply* names the key and the operation of *request*."""
    shortened = reply.result == Result.INVALID and reply.key == request.key[:SHORTENED_KEY]
    return (reply.key == request.key or shortened) and reply.operationType == request.operationType


def resync_error(replies: DataResyncReplies, requests: DataResyncRequests, peer: str) -> DatasyncError | None:
    """Return the error in the *replies* of *peer* to *requests*, or that of the first failed key; None for success.

    A reply without an error that does not have each key of the request is none.
    """
    keys = [reply.key for reply in replies.dataResyncs.replies]
    other_id = replies.msgId not in (Seq(), requests.msgId)  # not every peer repeats it
    if other_id or (keys and keys != [request.key for request in requests.dataResyncs]):
        return UnknownOutcome(f"resync: {peer} sent the reply to another request, so it may have been applied")
    failed = next((reply for reply in replies.dataResyncs.replies if reply.result != Result.APPLIED), None)
    # A peer without this extension sends no code for the whole resync.
    result = replies.result or (Result.REFUSED if failed is None else failed.result)
    if replies.HasField("error"):
        return _rejection(replies) or error_of(result, replies.error.message or "no reason given", "resync", peer)
    if failed is not None:
        return error_of(result, failed.error_text, f"resync, {_short(failed.key)}", peer)
    if requests.dataResyncs and not keys:
        return UnsupportedError(
            f"resync: {peer} confirmed none of the {len(requests.dataResyncs)} keys, so they were not applied:"
            " cn-infra's own server discards full states"
        )
    return None


def _rejection(reply: DataChangeReply | DataResyncReplies) -> PropagationError | None:
    """Return the ``PropagationError`` that a local caller would get; None if *reply* has no reasons for one."""
    if reply.result != Result.REFUSED or not reply.reasons:
        return None
    retry_after = reply.retry_after if reply.HasField("retry_after") else None
    return PropagationError.told(_by_name(reply.reasons), retryable=not reply.permanent, retry_after=retry_after)


def _by_name(reasons: Iterable[Reason]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for reason in reasons:
        found.setdefault(reason.resync_name, {})[reason.key] = reason.text
    return found


def _short(key: str) -> str:
    return repr(key if len(key) <= 200 else key[:200] + "…")
