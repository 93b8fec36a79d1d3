"""An etcd that says on its watch exactly what a test tells it to, for what real ones say only now and then."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc

from datasync.keyval.etcd import datasync_etcd_pb2 as pb

#: The only member.
MEMBER = 7


def header(revision: int, member: int = MEMBER) -> pb.ResponseHeader:
    return pb.ResponseHeader(cluster_id=1, member_id=member, revision=revision, raft_term=2)


def created(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(header=header(revision), watch_id=1, created=True)


def events(*pairs: tuple[int, bytes], fragment: bool = False, seen: int = 100) -> pb.WatchResponse:
    """Puts of (revision, key), from a server that is itself at revision *seen*."""
    return pb.WatchResponse(
        header=header(seen),
        watch_id=1,
        fragment=fragment,
        events=[pb.Event(kv=pb.KeyValue(key=key, value=b"v", mod_revision=revision)) for revision, key in pairs],
    )


def progress(revision: int, watch_id: int = -1, member: int = MEMBER) -> pb.WatchResponse:
    return pb.WatchResponse(header=header(revision, member), watch_id=watch_id)


class FakeEtcd:
    """Serves *script* to each watch and then stays silent; linearizable reads say *revision*. A context manager."""

    def __init__(self, script: Sequence[pb.WatchResponse], *, version: str = "3.4.23", revision: int = 100) -> None:
        self._script = script
        self._version = version
        self._revision = revision
        self._stopping = threading.Event()
        self.requests: list[pb.WatchRequest] = []
        #: Writes that arrived.
        self.writes = 0
        #: Tokens that were given out: ``token-1`` and so on.
        self.tokens = 0

    def __enter__(self) -> FakeEtcd:
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers(
            (
                _service(
                    "KV",
                    Range=(grpc.unary_unary_rpc_method_handler, pb.RangeRequest, self._range),
                    Txn=(grpc.unary_unary_rpc_method_handler, pb.TxnRequest, self._txn),
                    DeleteRange=(grpc.unary_unary_rpc_method_handler, pb.DeleteRangeRequest, self._delete),
                ),
                _service("Maintenance", Status=(grpc.unary_unary_rpc_method_handler, pb.StatusRequest, self._status)),
                _service(
                    "Auth", Authenticate=(grpc.unary_unary_rpc_method_handler, pb.AuthenticateRequest, self._token)
                ),
                _service("Watch", Watch=(grpc.stream_stream_rpc_method_handler, pb.WatchRequest, self._watch)),
            )
        )
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.stop(0).wait()
        self._pool.shutdown()

    def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
        return pb.RangeResponse(header=header(self._revision))

    def _txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
        self.writes += 1
        responses = [pb.ResponseOp(response_put=pb.PutResponse()) for _ in request.success]
        return pb.TxnResponse(header=header(self._revision), succeeded=True, responses=responses)

    def _delete(self, request: pb.DeleteRangeRequest, context: Any) -> pb.DeleteRangeResponse:
        self.writes += 1
        return pb.DeleteRangeResponse(header=header(self._revision), deleted=1)

    def _token(self, request: pb.AuthenticateRequest, context: Any) -> pb.AuthenticateResponse:
        self.tokens += 1
        return pb.AuthenticateResponse(token=f"token-{self.tokens}")

    def _status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        return pb.StatusResponse(header=header(self._revision), version=self._version)

    def _watch(self, requests: Iterator[pb.WatchRequest], context: Any) -> Iterator[pb.WatchResponse]:
        self.requests.append(next(requests))
        yield from self._script
        ended = threading.Event()
        context.add_callback(ended.set)
        while not self._stopping.is_set() and not ended.wait(0.05):
            pass


def _service(name: str, **methods: tuple[Any, Any, Any]) -> grpc.GenericRpcHandler:
    handlers = {
        method: kind(
            function, request_deserializer=request.FromString, response_serializer=lambda m: m.SerializeToString()
        )
        for method, (kind, request, function) in methods.items()
    }
    return grpc.method_handlers_generic_handler(f"etcdserverpb.{name}", handlers)
