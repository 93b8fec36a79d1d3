"""What a call's failure says about the call: whether it was sent, whether it was applied, whether another member may
succeed: C16, C17, C23. The table is also in the documentation of the driver."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest

from datasync.errors import (
    CompactedError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)
from datasync.keyval.etcd import EtcdStore
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.etcd.errors import LeaseNotFound, find_fault, translate
from datasync.keyval.types import DeleteOp, PutOp, RewoundError
from tests.keyval.etcd.conftest import OpenStore
from tests.keyval.etcd.fake import FakeEtcd, header

Code = grpc.StatusCode
#: Another endpoint is asked.
ELSEWHERE = "elsewhere"


class Row(NamedTuple):
    """One cell of the table: what was told, and what a write and a read make of it."""

    code: grpc.StatusCode
    text: str
    write: Any
    read: Any


def refused(code: grpc.StatusCode, text: str, error: type[Exception]) -> Row:
    """Nothing was applied, and no other member would answer otherwise."""
    return Row(code, text, error, error)


def not_here(code: grpc.StatusCode, text: str) -> Row:
    """Nothing was applied; another member may do it."""
    return Row(code, text, ELSEWHERE, ELSEWHERE)


def unknown(code: grpc.StatusCode, text: str, read: Any = ELSEWHERE) -> Row:
    """A write may have been applied; a read is made again."""
    return Row(code, text, UnknownOutcome, read)


TABLE = [
    # Before the server took the request.
    not_here(Code.UNAVAILABLE, "etcdserver: no leader"),
    not_here(Code.UNAVAILABLE, "etcdserver: rpc not supported for learner"),  # 3.4 and 3.5
    not_here(Code.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),  # 3.6
    not_here(Code.UNAVAILABLE, "etcdserver: not capable"),
    not_here(Code.FAILED_PRECONDITION, "etcdserver: not capable"),
    not_here(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests"),
    not_here(Code.UNKNOWN, "raft proposal dropped"),
    # A refusal of the server, in whatever state the cluster is.
    refused(Code.UNAUTHENTICATED, "etcdserver: invalid auth token", PermissionDenied),
    refused(Code.PERMISSION_DENIED, "etcdserver: permission denied", PermissionDenied),
    refused(Code.INVALID_ARGUMENT, "etcdserver: user name is empty", PermissionDenied),
    refused(Code.UNKNOWN, "auth: auth store is old", PermissionDenied),
    refused(Code.UNKNOWN, "auth: revision in header is old", PermissionDenied),
    refused(Code.INVALID_ARGUMENT, "etcdserver: request is too large", InvalidArgumentError),
    refused(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", InvalidArgumentError),
    refused(Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", InvalidArgumentError),
    refused(Code.INVALID_ARGUMENT, "etcdserver: key is not provided", InvalidArgumentError),
    refused(Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (9 vs. 8)", InvalidArgumentError),
    refused(Code.NOT_FOUND, "etcdserver: requested lease not found", LeaseNotFound),
    refused(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", CompactedError),
    refused(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", RewoundError),
    refused(Code.DATA_LOSS, "etcdserver: corrupt cluster", StoreError),
    refused(Code.UNIMPLEMENTED, "unknown service etcdserverpb.KV", StoreError),
    # The server took it, and does not know itself; or it applied what first exceeded the quota.
    unknown(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", StoreError),
    unknown(Code.UNAVAILABLE, "etcdserver: leader changed"),
    unknown(Code.UNAVAILABLE, "etcdserver: server stopped"),
    unknown(Code.UNAVAILABLE, "etcdserver: request timed out"),
    unknown(Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"),
    unknown(Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"),
    unknown(Code.UNAVAILABLE, "etcdserver: unhealthy cluster"),
    unknown(Code.CANCELLED, "context canceled"),
    unknown(Code.UNKNOWN, "anything"),
    unknown(Code.INTERNAL, "anything"),
    unknown(Code.ABORTED, "anything", StoreError),
    unknown(Code.DEADLINE_EXCEEDED, "context deadline exceeded"),
    # A gateway's own words: it may have passed the request on, but for what it refuses by itself.
    unknown(Code.UNAVAILABLE, "Received http2 header with status: 502"),
    unknown(Code.UNAVAILABLE, "Received http2 header with status: 503"),
    unknown(Code.UNAVAILABLE, "Received http2 header with status: 504"),
    refused(Code.UNKNOWN, "Received http2 header with status: 413", InvalidArgumentError),
    refused(Code.UNIMPLEMENTED, "Received http2 header with status: 404", StoreError),
    refused(Code.PERMISSION_DENIED, "Received http2 header with status: 403", PermissionDenied),
    refused(Code.UNAUTHENTICATED, "Received http2 header with status: 401", PermissionDenied),
    # The connection broke; these codes are made here, and say nothing about the server.
    unknown(Code.UNAVAILABLE, "Connection reset by peer"),
    unknown(Code.UNAVAILABLE, "Socket closed"),
    unknown(Code.RESOURCE_EXHAUSTED, "Received RST_STREAM with error code 11"),
    unknown(Code.PERMISSION_DENIED, "Received RST_STREAM with error code 12"),
]


class Says(FakeEtcd):
    """Answers reads and writes with *code* and *text*."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__([])
        self._answer = code, text
        self.reads = 0

    def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
        self.reads += 1
        context.abort(*self._answer)
        raise AssertionError("abort() raises")

    def _txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
        self.writes += 1
        context.abort(*self._answer)
        raise AssertionError("abort() raises")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.code.name}-{row.text}")
def test_c17_each_failure_of_a_write_says_whether_it_was_applied_and_of_a_read_is_made_good(
    open_store: OpenStore, row: Row
) -> None:
    with Says(row.code, row.text) as first, FakeEtcd([]) as second:
        # given two endpoints, the first of which fails in this way
        store = open_store(first.endpoint, second.endpoint)
        # when something is written
        if row.write is ELSEWHERE:
            assert store.commit([PutOp("a", b"v")]).succeeded
        else:
            with pytest.raises(row.write) as caught:
                store.commit([PutOp("a", b"v")])
            assert type(caught.value) is row.write
        # then it is sent once to each at most, and to the second only if nothing was applied
        assert first.writes == 1
        assert second.writes == (row.write is ELSEWHERE)
        # and a read is made again at the second if that may help
        store = open_store(first.endpoint, second.endpoint)
        if row.read is ELSEWHERE:
            assert store.read("a") is None
        else:
            with pytest.raises(row.read):
                store.read("a")
        assert first.reads == 1


def test_c17_with_one_endpoint_a_refusal_that_passes_is_waited_for_and_the_write_sent_again(
    open_store: OpenStore,
) -> None:
    class Learner(FakeEtcd):
        def _txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
            if self.writes == 3:  # it is promoted
                return super()._txn(request, context)
            self.writes += 1
            context.abort(Code.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner")
            raise AssertionError("abort() raises")

    with Learner([]) as fake:
        assert open_store(fake.endpoint).commit([PutOp("a", b"v")]).succeeded
        assert fake.writes == 4
        # and where it does not pass, the error says what the member is
        fake.writes = -1_000_000
        with pytest.raises(StoreConnectionError, match="learner"):
            open_store(fake.endpoint, dial_timeout=0.3).commit([PutOp("a", b"v")])


@pytest.fixture
def deaf() -> Iterator[str]:
    """An address that accepts connections and never says a word: no request ever leaves for it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(("operation", "dial"), [(0.3, 20.0), (20.0, 0.3)])
def test_c17_a_write_that_waited_for_a_connection_in_vain_was_not_applied_whichever_limit_is_shorter(
    deaf: str, open_store: OpenStore, operation: float, dial: float
) -> None:
    store = open_store(deaf, operation_timeout=operation, dial_timeout=dial)
    with pytest.raises(StoreConnectionError):
        store.commit([PutOp("a", b"v")])


def test_c17_a_write_that_was_never_sent_goes_to_the_next_endpoint(deaf: str, open_store: OpenStore) -> None:
    with FakeEtcd([]) as fake:
        store = open_store(deaf, fake.endpoint, operation_timeout=1.0, dial_timeout=20.0)
        assert store.commit([PutOp("a", b"v")]).succeeded
        assert fake.writes == 1


def test_c17_a_write_whose_password_could_not_be_shown_was_not_applied(deaf: str, open_store: OpenStore) -> None:
    store = open_store(deaf, username="agent", password="x", operation_timeout=0.3, dial_timeout=20.0)
    with pytest.raises(StoreConnectionError):
        store.commit([PutOp("a", b"v")])


def test_c17_a_write_that_a_silent_server_took_has_an_unknown_outcome(open_store: OpenStore) -> None:
    class Silent(FakeEtcd):
        def _txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
            super()._txn(request, context)
            while context.is_active() and not self._stopping.wait(0.02):
                pass
            return pb.TxnResponse()

    with Silent([]) as fake, FakeEtcd([]) as other:
        store = open_store(fake.endpoint, other.endpoint, operation_timeout=1.0)
        with pytest.raises(UnknownOutcome):
            store.commit([PutOp("a", b"v")])
        assert (fake.writes, other.writes) == (1, 0)


def test_c17_a_full_database_is_named_in_an_unknown_outcome_with_what_to_do() -> None:
    class Full(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return Code.RESOURCE_EXHAUSTED

        def details(self) -> str:
            return "etcdserver: mvcc: database space exceeded"

    assert find_fault(Code.RESOURCE_EXHAUSTED, Full().details()).doubtful
    told = str(translate(Full(), "writing 'a'", "h:1", write=True))
    for words in ("space exceeded", "defragment", "may have been applied"):
        assert words in told


def test_c17_a_plain_delete_is_no_transaction_and_one_with_a_condition_is(open_store: OpenStore) -> None:
    class Refuses(FakeEtcd):
        def _txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
            context.abort(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
            raise AssertionError("abort() raises")

    with Refuses([]) as fake:
        store: EtcdStore = open_store(fake.endpoint)
        for op in (DeleteOp("a"), DeleteOp("a/", prefix=True)):
            result = store.commit([op])
            assert (result.succeeded, result.deleted, result.revision) == (True, 1, header(100).revision)
        with pytest.raises(StoreError, match="space"):
            store.commit([DeleteOp("a"), DeleteOp("b")])
