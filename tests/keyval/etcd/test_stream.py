"""What a stream makes of the answers of a watch: C3, C4, I4, I5; D39, D57, D59."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest

from datasync.commits import Batch
from datasync.errors import CompactedError, DatasyncError, PermissionDenied, StoreConnectionError, StoreError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.types import RewoundError
from tests.conftest import wait_until
from tests.keyval.etcd.conftest import OpenStore
from tests.keyval.etcd.fake import FakeEtcd, created, events, header, progress

#: Where the streams of these tests begin.
START = 10


def told(open_store: OpenStore, fake: FakeEtcd, count: int) -> list[Batch]:
    """The first *count* batches of a stream after ``START``."""
    stream = open_store(fake.endpoint).stream("p/", START)
    batches = []
    for batch in stream:
        assert batch is not None
        batches.append(batch)
        if len(batches) == count:
            stream.cancel()
    return batches


def shape(batches: list[Batch]) -> list[tuple[int, dict[int, list[str]]]]:
    return [(batch.revision, {c.revision: [key for key, _ in c.ops] for c in batch.commits}) for batch in batches]


def test_the_first_batch_claims_no_more_than_was_asked_from(open_store: OpenStore) -> None:
    # the member is at 100, but what lies between is still to come
    with FakeEtcd([created(100), events((50, b"p/a"))]) as fake:
        assert shape(told(open_store, fake, 2)) == [(START, {}), (50, {50: ["p/a"]})]
        assert fake.requests[0].create_request.start_revision == START + 1


def test_a_response_claims_its_last_event_not_the_member_s_revision(open_store: OpenStore) -> None:
    with FakeEtcd([created(100), events((50, b"p/a"), (51, b"p/b"), seen=100), events((52, b"p/c"))]) as fake:
        assert [revision for revision, _ in shape(told(open_store, fake, 3))] == [START, 51, 52]


@pytest.mark.parametrize("version", ["3.4.23", "3.4.30", "3.5.12", "3.3.27", "", "unknown"])
def test_requested_progress_of_an_early_release_is_not_believed(open_store: OpenStore, version: str) -> None:
    # given a report that overtook events, as early releases send it
    with FakeEtcd([created(20), progress(20), events((15, b"p/late"))], version=version) as fake:
        # then it is a sign of life and no more, and the event comes
        assert shape(told(open_store, fake, 3)) == [(START, {}), (START, {}), (15, {15: ["p/late"]})]


@pytest.mark.parametrize("version", ["3.4.31", "3.5.13", "3.6.0", "4.0.0"])
def test_requested_progress_of_a_later_release_is_believed(open_store: OpenStore, version: str) -> None:
    with FakeEtcd([created(20), progress(20)], version=version) as fake:
        assert shape(told(open_store, fake, 2)) == [(START, {}), (20, {})]


def test_requested_progress_of_another_member_than_the_one_asked_is_not_believed(open_store: OpenStore) -> None:
    with FakeEtcd([created(20), progress(20, member=8)], version="3.6.0") as fake:
        assert shape(told(open_store, fake, 2)) == [(START, {}), (START, {})]


def test_periodic_progress_of_any_release_is_believed(open_store: OpenStore) -> None:
    with FakeEtcd([created(20), progress(20, watch_id=1)]) as fake:
        assert shape(told(open_store, fake, 2)) == [(START, {}), (20, {})]


def test_c4_fragments_that_split_a_transaction_are_joined(open_store: OpenStore) -> None:
    # given three fragments: whole revisions pass at once, the split one waits, also for a report in between
    script = [
        created(100),
        events((11, b"p/a"), (12, b"p/b"), (13, b"p/c1"), fragment=True),
        progress(100, watch_id=1),
        events((13, b"p/c2"), fragment=True),
        events((13, b"p/c3"), (14, b"p/d")),
    ]
    with FakeEtcd(script) as fake:
        assert shape(told(open_store, fake, 4)) == [
            (START, {}),
            (12, {11: ["p/a"], 12: ["p/b"]}),
            (12, {}),
            (14, {13: ["p/c1", "p/c2", "p/c3"], 14: ["p/d"]}),
        ]


def test_a_call_cut_before_its_first_event_is_tried_the_other_way_next_time(open_store: OpenStore) -> None:
    # given a server that says nothing in time, for instance because its response is too large for the line
    with FakeEtcd([]) as fake:
        store = open_store(fake.endpoint, idle_limit=0.3)
        for _ in range(3):
            with pytest.raises(StoreConnectionError, match="nothing received"):
                list(store.stream("p/", START))
        # then whole responses and fragments take turns
        assert [request.create_request.fragment for request in fake.requests] == [False, True, False]


@pytest.mark.parametrize("seen_by", ["a stream", "a listing"])
@pytest.mark.parametrize(("size", "fragments"), [(100, False), (10_000, True)])
def test_i12_a_backlog_of_large_values_comes_in_fragments_and_one_of_small_values_whole(
    open_store: OpenStore, size: int, fragments: bool, seen_by: str
) -> None:
    pair = pb.KeyValue(key=b"p/a", value=bytes(size), mod_revision=50)

    class Holds(FakeEtcd):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            return pb.RangeResponse(header=header(100), kvs=[pair])

    # given a stream or a listing that has seen what the values are like
    put = pb.WatchResponse(header=header(50), watch_id=1, events=[pb.Event(kv=pair)])
    with Holds([created(100), put]) as fake:
        store = open_store(fake.endpoint)
        expected = [False, fragments]
        if seen_by == "a listing":
            assert list(store.scan("p/"))
            expected = [fragments]
        for _ in expected:
            for batch in (stream := store.stream("p/", START)):
                if batch is not None and batch.commits:
                    stream.cancel()
        # then the next one asks for what suits them
        assert [request.create_request.fragment for request in fake.requests] == expected


def test_d39_the_events_of_a_revision_are_one_commit_in_order(open_store: OpenStore) -> None:
    deleted = pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=b"p/b", mod_revision=11))
    response = events((11, b"p/a"))
    response.events.append(deleted)
    with FakeEtcd([created(100), response]) as fake:
        (commit,) = told(open_store, fake, 2)[1].commits
    assert commit.ops == [("p/a", b"v"), ("p/b", None)]


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ([created(9)], StoreConnectionError, "behind, at revision 9"),
        ([created(20), events((10, b"p/a"))], StoreConnectionError, "sent revision 10 again"),
        ([created(20), events((12, b"p/a")), events((11, b"p/b"))], StoreConnectionError, "sent revision 11 again"),
        (
            [created(20), pb.WatchResponse(header=header(20), watch_id=1, canceled=True, compact_revision=15)],
            CompactedError,
            "before 15",
        ),
        (
            [
                pb.WatchResponse(
                    header=header(20),
                    watch_id=-1,
                    created=True,
                    canceled=True,
                    cancel_reason="rpc error: code = PermissionDenied desc = etcdserver: permission denied",
                )
            ],
            PermissionDenied,
            "permission denied; grant",
        ),
        (
            [
                pb.WatchResponse(
                    header=header(20),
                    watch_id=1,
                    created=True,
                    canceled=True,
                    cancel_reason="rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
                )
            ],
            StoreConnectionError,
            "token expired",
        ),
        ([created(20), pb.WatchResponse(watch_id=1, canceled=True)], StoreError, "cancelled by the server"),
    ],
)
def test_d57_a_watch_that_cannot_go_on_raises_what_is_wrong(
    open_store: OpenStore, script: list[pb.WatchResponse], error: type[DatasyncError], words: str
) -> None:
    with FakeEtcd(script) as fake, pytest.raises(error, match=words):
        told(open_store, fake, 9)


def test_d59_a_cluster_whose_revision_is_lower_has_rewound(open_store: OpenStore) -> None:
    with FakeEtcd([created(9)], revision=9) as fake, pytest.raises(RewoundError, match="revision 9 is below 10"):
        told(open_store, fake, 9)


def test_i14_a_server_that_falls_silent_before_the_watch_begins_is_not_waited_for_twice(open_store: OpenStore) -> None:
    # given a server that answers, but not any more when it is asked for its version
    class FallsSilent(FakeEtcd):
        def _status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
            wait_until(lambda: not context.is_active(), "the caller gives up")
            raise RuntimeError("nobody listens")

    with FallsSilent([created(20)]) as fake:
        # then the stream ends with the patience that a call has, instead of beginning another wait
        stream = open_store(fake.endpoint, operation_timeout=0.3).stream("p/", START)
        with pytest.raises(StoreConnectionError, match="no response in time"):
            next(iter(stream))
        assert not fake.requests


def test_a_page_that_takes_longer_than_an_operation_may_is_waited_for(open_store: OpenStore) -> None:
    # given a server that has much to do for a page
    class Slow(FakeEtcd):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            begun = time.monotonic()
            wait_until(lambda: time.monotonic() - begun > 0.4 or not context.is_active(), "the page is ready")
            return super()._range(request, context)

    with Slow([]) as fake:
        store = open_store(fake.endpoint, operation_timeout=0.2, idle_limit=5.0)
        # then a listing has the patience of a stream, and a single read its own
        assert list(store.scan("p/")) == []
        with pytest.raises(StoreConnectionError, match="no response in time"):
            store.read("p/a")


def test_a_server_that_keeps_its_version_to_itself_is_followed(open_store: OpenStore) -> None:
    class Discreet(FakeEtcd):
        def _status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
            raise AssertionError("abort() raises")

    with Discreet([created(20), events((15, b"p/a"))]) as fake:
        assert shape(told(open_store, fake, 2))[-1] == (15, {15: ["p/a"]})
