"""A gRPC server that answers as a test tells it to: with any status, any reply, or as cn-infra's own server does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import grpc

from datasync.grpcsync.protocol import PONG, SERVICE, TAKEN_KEY
from datasync.grpcsync.server.executor import ThreadPerCallExecutor
from datasync.syncbase.msg import (
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncRequests,
    PingReply,
)
from datasync.syncbase.msg.convert import change_reply, resync_replies
from tests.conftest import PATIENT

#: What a test makes of a request: a reply, bytes that are none, or None for no reply at all.
Answer = Callable[[Any, Any], Any]


def fail(code: grpc.StatusCode, taken: int | None = None) -> Answer:
    """Abort the call with *code*, and report *taken* requests."""

    def answer(request: Any, context: Any) -> None:
        if taken is not None:
            context.set_trailing_metadata(((TAKEN_KEY, str(taken)),))
        context.abort(code, "as told")

    return answer


class ScriptedPeer:
    """Answers each request with the next of *answers*, and when there is none left, as it should.

    Args:
      reports: The ping tells, as that of our server does, that the server reports what it took.
    """

    def __init__(self, *answers: Answer, reports: bool = True) -> None:
        self._answers = list(answers)
        self._reports = reports
        #: What came in: keys of changes, lists of keys of resyncs.
        self.seen: list[Any] = []
        self._executor = ThreadPerCallExecutor()
        self._server = grpc.server(self._executor)
        methods = {
            "dataChanges": grpc.stream_stream_rpc_method_handler(
                self._changes, DataChangeRequest.FromString, _serialize
            ),
            "dataResyncs": grpc.unary_unary_rpc_method_handler(self._resync, DataResyncRequests.FromString, _serialize),
            "ping": grpc.unary_unary_rpc_method_handler(self._ping, response_serializer=_serialize),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait(PATIENT)
        self._executor.shutdown()

    def __enter__(self) -> ScriptedPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ping(self, raw: bytes, context: Any) -> PingReply:
        if self._reports:
            context.set_trailing_metadata(((TAKEN_KEY, "0"),))
        return PingReply(message=PONG)

    def _changes(self, requests: Iterator[DataChangeRequest], context: Any) -> Iterator[Any]:
        for request in requests:
            self.seen.append(request.key)
            reply = self._answers.pop(0)(request, context) if self._answers else change_reply(request)
            if reply is not None:
                yield reply

    def _resync(self, requests: DataResyncRequests, context: Any) -> Any:
        self.seen.append([item.key for item in requests.dataResyncs])
        return self._answers.pop(0)(requests, context) if self._answers else resync_replies(requests)


def unanswered(request: DataChangeRequest, context: Any) -> None:
    """Say nothing to a change, as cn-infra's server does."""


def nothing(requests: DataResyncRequests, context: Any) -> DataResyncReplies:
    """Confirm no key, as cn-infra's server does, which discards full states."""
    return DataResyncReplies()


def reply_for(key: str, **fields: Any) -> Answer:
    """A reply for another change than the one that was sent."""
    return lambda request, context: DataChangeReply(key=key, **fields)


def _serialize(message: Any) -> bytes:
    encoded: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return encoded
