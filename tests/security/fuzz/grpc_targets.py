"""gRPC: messages of the wire, at the server's door, and replies of a peer that may be anybody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import DatasyncError
from datasync.grpcsync import Client, Limits, serve
from datasync.grpcsync.error_codes import change_error, mark_change, mark_resync, resync_error
from datasync.grpcsync.protocol import DATA_CHANGES, DATA_RESYNCS, PING, SERVICE, SOURCE_KEY, TAKEN_KEY, authorization
from datasync.grpcsync.server.validation import checked_change, checked_resync, parse
from datasync.syncbase.msg.convert import change_reply, resync_replies
from datasync.syncbase.msg.datamsg_pb2 import (
    DEL,
    PUT,
    DataChangeReply,
    DataChangeRequest,
    DataResyncReplies,
    DataResyncReply,
    DataResyncRequest,
    DataResyncRequests,
    DataResyncsReplies,
    Error,
    PingReply,
    Seq,
)
from tests.security.fuzz.rest_targets import _Accepting
from tests.security.fuzz.supply import Supply
from tests.security.fuzz.target import SECRET, Finding, Target, only, refuse_secrets

VALUE = f'"{SECRET}"'.encode()
REQUESTS = tuple(
    message.SerializeToString()
    for message in (
        DataChangeRequest(key="a", operationType=PUT, content=VALUE),
        DataChangeRequest(key="b", operationType=PUT, content=b"\x0a\x01x", content_type="application/x-protobuf"),
        DataChangeRequest(key="a", operationType=DEL),
        DataChangeRequest(key="a" * 300, operationType=PUT, content=VALUE, content_type="text/plain; charset=x"),
    )
)
RESYNCS = tuple(
    message.SerializeToString()
    for message in (
        DataResyncRequests(dataResyncs=[DataResyncRequest(key="a", content=VALUE)], msgId=Seq(originator="o", seq=1)),
        DataResyncRequests(dataResyncs=[DataResyncRequest(key=key, content=b"1") for key in "abca"]),
        DataResyncRequests(),
    )
)
REPLIES = tuple(
    message.SerializeToString()
    for message in (
        DataChangeReply(key="a", operationType=PUT),
        DataChangeReply(key="a", result=1, error_text="PropagationError: no"),
        DataChangeReply(key="a", result=2),
        DataChangeReply(key="b", result=77, absent=True),
    )
)
RESYNC_REPLIES = tuple(
    message.SerializeToString()
    for message in (
        DataResyncReplies(dataResyncs=DataResyncsReplies(replies=[DataResyncReply(key="a")])),
        DataResyncReplies(error=Error(message="no"), result=1),
        DataResyncReplies(dataResyncs=DataResyncsReplies(replies=[DataResyncReply(key="a", result=9)])),
        DataResyncReplies(),
    )
)
PINGS = (PingReply(message="it works").SerializeToString(), b"")


class GrpcMessages(Target):
    """Requests and replies, without a network."""

    name = "grpc-messages"
    about = "requests and replies of gRPC, read and answered"

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        kind = supply.number(4)
        with only():
            if kind == 0:
                request = parse(supply.mutated(REQUESTS), DataChangeRequest)
                if SECRET not in request.key + request.content_type:  # else it is told as a name
                    self._change(request)
            elif kind == 1:
                requests = parse(supply.mutated(RESYNCS), DataResyncRequests)
                if not any(SECRET in item.key + item.content_type for item in requests.dataResyncs):
                    self._resync(requests)
            elif kind == 2:
                reply = parse(supply.mutated(REPLIES), DataChangeReply)
                _told(change_error(reply, DataChangeRequest(key="a"), "peer"))
            else:
                replies = parse(supply.mutated(RESYNC_REPLIES), DataResyncReplies)
                requests = DataResyncRequests(msgId=replies.msgId)
                for item in replies.dataResyncs.replies:
                    requests.dataResyncs.add(key=item.key)
                _told(resync_error(replies, requests, "peer"))

    def _change(self, request: DataChangeRequest) -> None:
        error: DatasyncError | None = None
        try:
            change = checked_change(request, 4096)
            refuse_secrets(repr(change))
        except DatasyncError as refused:
            error = refused
        _bounded(mark_change(change_reply(request, error), error), request)
        if error is not None:
            raise error

    def _resync(self, requests: DataResyncRequests) -> None:
        try:
            refuse_secrets(repr(checked_resync(requests, Limits())))
        except DatasyncError as refused:
            _bounded(mark_resync(resync_replies(requests, refused), refused), requests)
            raise


def _told(error: DatasyncError | None) -> None:
    if error is not None:
        raise error


def _bounded(reply: Message, request: Message) -> None:
    if reply.ByteSize() > 20_000 + 2 * request.ByteSize():
        raise Finding(f"a reply of {reply.ByteSize()} bytes to a request of {request.ByteSize()}")


class GrpcServer(Target):
    """Whatever bytes a peer sends gets a reply or a status that says whose fault it was."""

    name = "grpc-server"
    about = "bytes and metadata at a gRPC server, over the wire"
    examples = 100

    def open(self) -> None:
        self._server = serve("127.0.0.1:0", token=f"{SECRET}-token", limits=Limits(message_size=4096, sources=8))
        self._subscriber = _Accepting(self._server.adapter)
        self._channel = grpc.insecure_channel(self._server.address, [("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        self._channel.close()
        self._server.close()
        self._subscriber.close()

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        metadata = [authorization(f"{SECRET}-token")]
        if supply.chance(4):
            name = "".join(chr(0x20 + byte % 0x5F) for byte in supply.take(6))
            metadata.append((SOURCE_KEY, name.strip() or "x"))
        before = self._server.adapter.registry.revision
        try:
            if supply.chance(2):
                self._channel.unary_unary(DATA_RESYNCS)(supply.mutated(RESYNCS), metadata=metadata, timeout=10)
            else:
                requests = [supply.mutated(REQUESTS) for _ in range(1 + supply.number(4))]
                list(self._channel.stream_stream(DATA_CHANGES)(iter(requests), metadata=metadata, timeout=10))
        except grpc.RpcError as error:
            refuse_secrets(f"{error.details()}")
            if error.code() not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise Finding(f"{error.code()}: {error.details()}") from error
        if self._server.adapter.registry.revision < before:
            raise Finding("the revision went back")


class GrpcPeer(Target):
    """A peer that answers garbage: every request of the client ends in its time, in an error of the house."""

    name = "grpc-client"
    about = "replies, statuses and metadata of any peer to the gRPC client, over the wire"
    examples = 12

    def open(self) -> None:
        self._supply = Supply(b"")
        self._lock = threading.Lock()  # guards _supply
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        PING.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(self._ping),
                        DATA_RESYNCS.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(self._resync),
                        DATA_CHANGES.rpartition("/")[2]: grpc.stream_stream_rpc_method_handler(self._changes),
                    },
                ),
            )
        )
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def run(self, data: bytes) -> None:
        with self._lock:
            self._supply = Supply(data)
        with Client(
            self._address, token=f"{SECRET}-token", send_timeout=0.3, answer_timeout=0.3, max_message_size=4096
        ) as client:
            futures: list[Any] = [
                client.put_async("a", StringValue(value=SECRET)),
                client.delete_async("a"),
                client.resync_async({"a": StringValue(value=SECRET)}),
            ]
            for future in futures:
                with only():
                    future.result(5)
            refuse_secrets(f"{client!r} {client.status()}")
            client.close(0.1)

    def _ping(self, request: bytes, context: Any) -> bytes:
        return self._say(PINGS, context, calm=4)

    def _resync(self, request: bytes, context: Any) -> bytes:
        return self._say(RESYNC_REPLIES, context)

    def _changes(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for _ in requests:
            yield self._say(REPLIES, context)

    def _say(self, seeds: tuple[bytes, ...], context: Any, calm: int = 1) -> bytes:
        with self._lock:
            supply = self._supply
            if not supply or not supply.chance(calm):
                return seeds[0]
            if supply.chance(3):
                taken = supply.one_of((b"0", b"1", b"99", b"-1", b"x", b"9" * 5000))
                context.set_trailing_metadata(((TAKEN_KEY, taken.decode()),))
            fails = supply.chance(5)
            code = supply.one_of(list(grpc.StatusCode)[1:])
            reply = supply.mutated(seeds)
        if fails:
            context.abort(code, "no")
        return reply
