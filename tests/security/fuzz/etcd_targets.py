"""etcd: answers of a server that may be anybody, to every verb of the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import grpc
from google.protobuf.message import DecodeError as WireError
from google.protobuf.message import Message

from datasync.commits import Batch
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.config import EtcdConfig
from datasync.keyval.etcd.endpoint import Endpoint, PendingCall
from datasync.keyval.etcd.store import EtcdStore
from datasync.keyval.types import Condition, DeleteOp, KeyValue, PutOp
from tests.security.fuzz.supply import Supply
from tests.security.fuzz.target import SECRET, Finding, Target, only, refuse_secrets

HEADER = pb.ResponseHeader(cluster_id=1, member_id=7, revision=9, raft_term=2)


def _pair(key: bytes, revision: int) -> pb.KeyValue:
    return pb.KeyValue(
        key=key, value=f'"{SECRET}"'.encode(), mod_revision=revision, create_revision=revision, version=1
    )


def _watch(**fields: Any) -> bytes:
    return pb.WatchResponse(header=HEADER, **fields).SerializeToString()


SEEDS: dict[str, tuple[bytes, ...]] = {
    "Range": (
        pb.RangeResponse(header=HEADER, kvs=[_pair(b"k/a", 7), _pair(b"k/b", 9)], count=2).SerializeToString(),
        pb.RangeResponse(header=HEADER, kvs=[_pair(b"k/a", 7)], count=2, more=True).SerializeToString(),
        pb.RangeResponse(header=HEADER, more=True).SerializeToString(),
        pb.RangeResponse(header=HEADER).SerializeToString(),
    ),
    "Txn": (
        pb.TxnResponse(
            header=HEADER,
            succeeded=True,
            responses=[
                pb.ResponseOp(response_put=pb.PutResponse()),
                pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse(deleted=1)),
            ],
        ).SerializeToString(),
        pb.TxnResponse(header=HEADER).SerializeToString(),
        pb.TxnResponse(succeeded=True).SerializeToString(),
    ),
    "Compact": (pb.CompactionResponse(header=HEADER).SerializeToString(),),
    "LeaseGrant": (pb.LeaseGrantResponse(ID=5, TTL=5).SerializeToString(), b""),
    "LeaseRevoke": (b"",),
    "LeaseKeepAlive": (pb.LeaseKeepAliveResponse(ID=5, TTL=5).SerializeToString(), b""),
    "Status": (
        pb.StatusResponse(header=HEADER, version="3.5.16").SerializeToString(),
        pb.StatusResponse(header=HEADER, version="99999").SerializeToString(),
    ),
    "Authenticate": (pb.AuthenticateResponse(token="t.1").SerializeToString(), b""),
}
WATCHES = (
    _watch(watch_id=1, created=True),
    _watch(watch_id=1, events=[pb.Event(kv=_pair(b"k/a", 10)), pb.Event(kv=_pair(b"k/c", 10))]),
    _watch(watch_id=1, events=[pb.Event(kv=_pair(b"k/a", 11))], fragment=True),
    _watch(watch_id=1, events=[pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"k/a", mod_revision=12))]),
    _watch(watch_id=-1),
    _watch(watch_id=2, created=True),
    _watch(watch_id=2, canceled=True, created=True, cancel_reason="etcdserver: permission denied"),
    _watch(watch_id=1, canceled=True, compact_revision=5),
    _watch(watch_id=1, canceled=True, cancel_reason="rpc error: no"),
)
TEXTS = (
    "etcdserver: request timed out",
    "etcdserver: invalid auth token",
    "etcdserver: mvcc: required revision has been compacted",
    "Received message larger than max (9 vs. 8)",
    "etcdserver: user name is empty",
    "",
)


class Fault(grpc.RpcError):  # type: ignore[misc]  # grpcio has no annotations
    """What grpc raises when a call fails."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self._said = code, text

    def code(self) -> grpc.StatusCode:
        return self._said[0]

    def details(self) -> str:
        return self._said[1]


class _Call:
    """A watch that says what it was given."""

    def __init__(self, answers: Iterator[Message]) -> None:
        self._answers = answers

    def __iter__(self) -> Iterator[Message]:
        return self._answers

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True

    def cancel(self) -> None:
        pass


class _Later:
    """A call whose answer is asked for later."""

    def __init__(self, answer: Callable[[], Message]) -> None:
        self.result = answer

    def cancel(self) -> None:
        pass


def _use(store: EtcdStore, supply: Supply) -> None:
    """Everything that a store does, and what must be true of what it returns."""
    stream = store.stream("k/", 9)
    verbs: tuple[Callable[[], Any], ...] = (
        lambda: _check_pair(store.read("k/a")),
        lambda: [_check_pair(pair) for pair in store.scan("k/")],
        lambda: store.commit([PutOp("k/a", SECRET.encode()), DeleteOp("k/b")], [Condition("k/a", b"1")]),
        lambda: store.commit([PutOp("k/t", b"", ttl=5.0), DeleteOp("", prefix=True)]),
        lambda: [_check_batch(batch) for batch in stream],
        lambda: store.check(),
        lambda: store.compact(),
    )
    for _ in range(1 + supply.number(3)):
        with only():
            supply.one_of(verbs)()
    stream.cancel()


def _check_pair(pair: KeyValue | None) -> None:
    if pair is not None:
        refuse_secrets(repr(pair))
        if not isinstance(pair.key, str) or not isinstance(pair.value, bytes) or not isinstance(pair.revision, int):
            raise Finding("a pair of other types")
        if not pair.key.startswith("k/"):
            raise Finding(f"a key that was not asked for: {pair.key!r}")


def _check_batch(batch: Batch | None) -> None:
    for commit in batch.commits if batch is not None else ():
        for key, value in commit.ops:
            if not key.startswith("k/") or not (value is None or isinstance(value, bytes)):
                raise Finding(f"a key that was not asked for: {key!r}")


class EtcdAnswers(Target):
    """Messages that the wire would let through, however odd, without a network."""

    name = "etcd"
    about = "answers of any etcd to reads, writes and watches"

    def open(self) -> None:
        self._config = EtcdConfig(
            endpoints=("127.0.0.1:1",), dial_timeout=0.001, username="me", password=f"{SECRET}-password"
        )

    def run(self, data: bytes) -> None:
        supply = Supply(data)
        lock = threading.Lock()

        def unary(endpoint: Endpoint, method: Any, *rest: Any) -> Message:
            with lock:
                return _answer(method, supply)

        def begin(endpoint: Endpoint, method: Any, *rest: Any) -> PendingCall[Any]:
            return PendingCall(endpoint, _Later(lambda: unary(endpoint, method)))

        def stream(endpoint: Endpoint, method: Any, *rest: Any) -> _Call:
            return _Call(_answers(supply))

        pause = mock.patch("datasync.keyval.etcd.client.RETRY_PAUSE", 0.0)
        with mock.patch.multiple(Endpoint, unary=unary, begin=begin, stream=stream), pause:
            with EtcdStore(self._config) as store:
                _use(store, supply)


def _answer(method: Any, supply: Supply) -> Message:
    if supply.chance(10):
        raise Fault(supply.one_of(list(grpc.StatusCode)[1:]), supply.one_of(TEXTS))
    return _parsed(method.response, supply.mutated(SEEDS[method.path.rpartition("/")[2]]))


def _answers(supply: Supply) -> Iterator[Message]:
    yield _parsed(pb.WatchResponse, WATCHES[0])
    for _ in range(1 + supply.number(6)):
        yield _parsed(pb.WatchResponse, supply.mutated(WATCHES))


def _parsed(kind: type[Message], raw: bytes) -> Message:
    try:
        return kind.FromString(raw)
    except WireError:  # what grpc makes of it
        raise Fault(grpc.StatusCode.INTERNAL, "Exception deserializing response!") from None


class EtcdWire(Target):
    """The same over a real connection, with bytes that are no messages at all."""

    name = "etcd-wire"
    about = "bytes of any server to the etcd driver, over the wire"
    examples = 40

    def open(self) -> None:
        self._supply = Supply(b"")
        self._lock = threading.Lock()  # guards _supply
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers((_Anything(self._say),))
        endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._store = EtcdStore(
            EtcdConfig(endpoints=(endpoint,), dial_timeout=0.001, operation_timeout=1.0, idle_limit=0.3)
        )

    def close(self) -> None:
        self._store.close()
        self._server.stop(0).wait()
        self._pool.shutdown()

    def run(self, data: bytes) -> None:
        with self._lock:
            self._supply = Supply(data)
        _use(self._store, Supply(data[::-1]))

    def _say(self, method: str, context: Any) -> bytes:
        with self._lock:
            supply = self._supply
            fails = supply.chance(10)
            code = supply.one_of(list(grpc.StatusCode)[1:]) if fails else None
            answer = supply.mutated(SEEDS.get(method, WATCHES))
        if code is not None:
            context.abort(code, "no")
        return answer


class _Anything(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no annotations
    """Answers every call with bytes of the target's."""

    def __init__(self, say: Callable[[str, Any], bytes]) -> None:
        self._say = say

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method.rpartition("/")[2]

        def unary(request: bytes, context: Any) -> bytes:
            return self._say(method, context)

        def stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            next(requests)
            yield WATCHES[0]
            for _ in range(3):
                yield self._say(method, context)

        if method == "Watch":
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)
