"""What the number in a reply means, and which error it becomes on the other side.

The contract of old knows 0 for success and nothing else; a peer that looks no further than that stays right. The text
of the error travels beside it.

Source: contract section 5; D43.
"""

from __future__ import annotations

from enum import IntEnum

from datasync.errors import (
    ClosedError,
    DatasyncError,
    DeliveryTimeout,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    PropagationError,
    SubscriptionError,
)
from datasync.syncbase.msg.datamsg_pb2 import DataChangeReply, DataChangeRequest, DataResyncReplies

#: Characters of an error's text that a reply carries: subscribers may say anything.
MAX_TEXT = 4000


class Result(IntEnum):
    """``result`` of a reply."""

    #: Every subscriber that wanted it has said done.
    APPLIED = 0
    #: A subscriber answered with an error.
    REFUSED = 1
    #: A subscriber did not answer in time; it may still do it.
    UNANSWERED = 2
    #: A subscriber's queue stayed full; it gets a RESYNC when there is room.
    UNDELIVERED = 3
    #: Nobody watches the key.
    UNWATCHED = 4
    #: The request is not usable; nothing was changed.
    INVALID = 5
    #: The receiver was closed before it was answered.
    CLOSED = 6


#: The first that fits counts.
_BY_ERROR: tuple[tuple[type[BaseException], Result], ...] = (
    (PropagationError, Result.REFUSED),
    (DeliveryTimeout, Result.UNDELIVERED),
    (DoneTimeout, Result.UNANSWERED),
    (SubscriptionError, Result.UNWATCHED),
    (InvalidArgumentError, Result.INVALID),
    (ClosedError, Result.CLOSED),
)


def result_of(error: BaseException | None) -> Result:
    """The number that tells *error* to the peer."""
    if error is None:
        return Result.APPLIED
    return next((result for kind, result in _BY_ERROR if isinstance(error, kind)), Result.REFUSED)


def mark_change(reply: DataChangeReply, error: BaseException | None) -> DataChangeReply:
    """Put the number for *error* into *reply*, and keep its text within bounds."""
    reply.result = result_of(error)
    reply.error_text = reply.error_text[:MAX_TEXT]
    return reply


def mark_resync(replies: DataResyncReplies, error: BaseException) -> DataResyncReplies:
    """The same for a resync that was not applied."""
    replies.result = result_of(error)
    replies.error.message = replies.error.message[:MAX_TEXT]
    for reply in replies.dataResyncs.replies:
        reply.result = replies.result
    return replies


def error_of(result: int, text: str, what: str, peer: str) -> DatasyncError | None:
    """The error that *result* and *text* of *peer* are about *what*; None for success.

    A refusal is the ``PropagationError`` that a local caller would get; *peer* stands where the name of the
    subscription would, whose own name is in the text.
    """
    if result == Result.APPLIED:
        return None
    if not text:  # a peer of old, whose numbers are its own
        return PropagationError({peer: DatasyncError(f"{what}: result {result}")})
    told = f"{what}: {peer} says: {text}"
    if result == Result.UNANSWERED:
        return DoneTimeout(told, (peer,))
    if result == Result.UNDELIVERED:
        return DeliveryTimeout(told)
    if result == Result.UNWATCHED:
        return SubscriptionError(told)
    if result == Result.INVALID:
        return InvalidArgumentError(told)
    if result == Result.CLOSED:
        return NotReadyError(told)
    return PropagationError({peer: DatasyncError(f"{what}: {text}")})


def change_error(reply: DataChangeReply, request: DataChangeRequest, peer: str) -> DatasyncError | None:
    """What *peer* says about *request*."""
    return error_of(reply.result, reply.error_text, _short(request.key), peer)


def resync_error(replies: DataResyncReplies, peer: str) -> DatasyncError | None:
    """What *peer* says about a resync: its error, or the first key that was not applied."""
    failed = next((reply for reply in replies.dataResyncs.replies if reply.result != Result.APPLIED), None)
    # A peer of old has no number for the whole.
    result = replies.result or (Result.REFUSED if failed is None else failed.result)
    if replies.HasField("error"):
        return error_of(result, replies.error.message or "no reason given", "resync", peer)
    if failed is not None:
        return error_of(result, failed.error_text, f"resync, {_short(failed.key)}", peer)
    return None


def _short(key: str) -> str:
    return repr(key if len(key) <= 200 else key[:200] + "…")
