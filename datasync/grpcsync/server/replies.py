"""The replies of the server: what the reply to a change or a resync says, and with which result code.

``grpcsync.error_codes`` maps errors to result codes; ``syncbase.msg.convert`` makes the messages.

Source: cn-infra ``datasync/grpcsync/msgservice.go``; contract C9, C16.
"""

from __future__ import annotations

import contextvars
import time

from datasync.context import with_traceparent
from datasync.errors import ClosedError, DatasyncError, SubscriptionError
from datasync.grpcsync.error_codes import mark_change, mark_resync
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.protocol import SHORTENED_KEY
from datasync.grpcsync.server.validation import check_room, checked_change
from datasync.syncbase.futures import Outcome, PropagationFuture
from datasync.syncbase.msg.convert import change_reply, resync_replies
from datasync.syncbase.msg.datamsg_pb2 import (
    DEL,
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncRequests,
)
from datasync.syncbase.registry import Registry


class PendingReply:
    """A change that was taken, and its reply. ``since`` is the monotonic time at which it became the oldest.

    Its *trace* is that of its stream, unless it has one of its own.
    """

    __slots__ = ("_error", "_future", "_registry", "_request", "_trace", "since", "size")

    def __init__(self, registry: Registry, request: DataChangeRequest, size: int, trace: str = "") -> None:
        self._registry = registry
        self._request = request
        self._future: PropagationFuture | None = None
        self._error: BaseException | None = None
        self._trace = request.traceparent or trace
        self.size = size
        self.since = time.monotonic()

    def submit(self, limits: Limits, timeout: float) -> PropagationFuture | None:
        """Submit the change to the registry. Returns None if the change is rejected at once."""
        request, key = self._request, self._request.key
        try:
            change = checked_change(request, limits.key_size)
            if request.operationType != DEL:
                check_room(key, self._registry, limits.keys)
            # An empty context: that of gRPC's threads means nothing to subscribers.
            context = contextvars.Context()
            if self._trace:
                context = with_traceparent(self._trace, context)
            self._future = self._registry.submit_changes({key: change}, ctx=context, timeout=timeout)
        except DatasyncError as error:
            self._error = error
            if len(key.encode()) > limits.key_size:
                key = key[:SHORTENED_KEY]  # do not send back a key that is too long
        # Keep only the key: the registry owns the value now.
        self._request = DataChangeRequest(key=key, operationType=request.operationType)
        return self._future

    @property
    def orphaned(self) -> bool:
        """True if the source was closed before it could take the change."""
        return isinstance(self._error, ClosedError)

    @property
    def ready(self) -> bool:
        """True once the result is known."""
        return self._future is None or self._future.done()

    def reply(self) -> DataChangeReply:
        """Build the reply; a request that is not ready is reported as unanswered."""
        error, absent, revision = self._error, False, 0
        if self._future is not None:
            try:
                error = self._future.exception(0)
            except DatasyncError as late:
                error = late
            if error is None:
                outcome = self._future.result(0)
                error, absent = self._check_outcome(outcome)
                revision = outcome.revision
        reply = mark_change(change_reply(self._request, error), error)
        reply.absent = absent
        reply.revision = 0 if error is not None else revision
        return reply

    def _check_outcome(self, outcome: Outcome) -> tuple[BaseException | None, bool]:
        key = self._request.key
        watched, absent = not outcome.unwatched, bool(outcome.ignored)
        if absent:
            # No subscriber was notified, because there was nothing to delete. Check whether one watches the key.
            watched = self._registry.watches(key)
        if watched:
            return None, absent
        return SubscriptionError(f"no subscriber watches {key!r}; the value is kept for later subscribers"), absent


def reply_to_resync(
    requests: DataResyncRequests, error: DatasyncError | None = None, revision: int = 0
) -> DataResyncReplies:
    """Build the reply to a resync that was applied at *revision*, or that failed with *error*."""
    replies = resync_replies(requests, error)
    replies.revision = revision
    return replies if error is None else mark_resync(replies, error)
