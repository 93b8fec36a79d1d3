"""What a server repeats of a request is compared before it is believed: C23. Each test tells one lie."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasync.errors import CompactedError, StoreConnectionError, UnknownOutcome
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.types import Condition, DeleteOp, PutOp, RewoundError
from tests.keyval.etcd.conftest import OpenStore
from tests.keyval.etcd.fake import FakeEtcd, created, events, header, progress
from tests.keyval.etcd.test_stream import START, shape, told
from tests.support.stores import END, following

#: Says what another cluster would say.
ELSEWHERE = pb.ResponseHeader(cluster_id=2, member_id=7, revision=100, raft_term=2)
PAIR = pb.KeyValue(key=b"p/a", value=b"v", mod_revision=50, create_revision=50)


def renumbered(response: pb.WatchResponse, watch_id: int) -> pb.WatchResponse:
    response.watch_id = watch_id
    return response


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param([events((50, b"p/a"))], "no watch was created", id="events of a watch before it is created"),
        pytest.param([progress(50, watch_id=1)], "no watch was created", id="progress of it"),
        pytest.param([created(20), created(20)], "the number of our watch", id="our number for a second watch"),
        pytest.param([created(20), renumbered(created(20), 5)], "not requested", id="a watch that nobody asked for"),
        pytest.param([created(20), events((50, b"q/a"))], "another key", id="a key outside the prefix"),
        pytest.param(
            [created(20), events((50, b"p/a"), seen=49)], "do not increase", id="an event after the server's revision"
        ),
        pytest.param(
            [pb.WatchResponse(header=ELSEWHERE, watch_id=1, created=True)], "another cluster", id="another cluster"
        ),
        pytest.param(
            [created(20), pb.WatchResponse(header=ELSEWHERE, watch_id=1, events=events((50, b"p/a")).events)],
            "another cluster",
            id="events of another cluster",
        ),
    ],
)
def test_c23_a_watch_is_not_followed_after_a_lie(
    open_store: OpenStore, script: list[pb.WatchResponse], words: str
) -> None:
    with FakeEtcd(script) as fake, pytest.raises(StoreConnectionError, match=words):
        told(open_store, fake, 9)


class Proxy(FakeEtcd):
    """Numbers watches from 0 on, as ``etcd grpc-proxy`` does, answers probes, and keeps what it was asked."""

    def _watch(self, requests: Iterator[pb.WatchRequest], context: Any) -> Iterator[pb.WatchResponse]:
        self.history: list[str] = []
        self.created = 0
        for request in requests:
            kind = request.WhichOneof("request_union")
            self.history.append(kind)
            if kind == "create_request":
                yield self._answer(self.created)
                self.created += 1
                if self.created == 1:
                    yield from self._script
            elif kind == "cancel_request":
                number = request.cancel_request.watch_id
                self.history[-1] += f" {number}"
                yield pb.WatchResponse(header=header(self._revision), watch_id=number, canceled=True)
                yield from self._later(number)

    def _answer(self, number: int) -> pb.WatchResponse:
        return renumbered(created(self._revision), number)

    def _later(self, number: int) -> Iterator[pb.WatchResponse]:
        return iter(())


def of_zero(*pairs: tuple[int, bytes]) -> pb.WatchResponse:
    return renumbered(events(*pairs), 0)


def test_c23_the_first_watch_is_ours_whatever_its_number_and_only_probes_are_cancelled(open_store: OpenStore) -> None:
    class Numbers(Proxy):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            number = int(request.key.removeprefix(b"p/") or 0)
            kv = pb.KeyValue(key=request.key, value=b"v", mod_revision=50 + number)
            return pb.RangeResponse(header=header(100), kvs=[kv])

        def _later(self, number: int) -> Iterator[pb.WatchResponse]:
            yield of_zero((50 + number, b"p/%d" % number))

    # given a proxy that gives our watch another number, and our number to the first probe
    with Numbers([]) as fake:
        with following(open_store(fake.endpoint, idle_limit=2.0), "p/", START) as follower:
            # then each probe is cancelled, ours goes on, and what comes for it is delivered
            batches = follower.until(53)
        assert [revision for revision, commits in shape(batches) if commits] == [51, 52, 53]
        # and it is never asked for a progress report, which ends some releases of the proxy
        assert fake.history[:5] == [
            "create_request",
            *["create_request", "cancel_request 1"],
            "create_request",
            "cancel_request 2",
        ]


def test_c15_a_stream_behind_a_proxy_ends_at_once_although_it_asked_other_things_meanwhile(
    open_store: OpenStore,
) -> None:
    # given a stream that has verified the history for a batch, and will not hear anything for long
    class Keeps(Proxy):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            return pb.RangeResponse(header=header(100))

    with Keeps([of_zero((50, b"p/a"))]) as fake:
        store = open_store(fake.endpoint, idle_limit=600.0)
        with following(store, "p/", START) as follower:
            follower.until(50)
            # when it is cancelled / then it ends, and does not wait for a response
            follower.stream.cancel()
            assert follower.ending() == END


def test_c23_behind_a_proxy_no_batch_is_delivered_from_a_history_that_was_replaced(open_store: OpenStore) -> None:
    # given a proxy that goes on watching while the store behind it loses its data and grows beyond what we read
    class Replaced(Proxy):
        pairs: tuple[pb.KeyValue, ...] = (PAIR,)

        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            return pb.RangeResponse(header=header(100), kvs=self.pairs)

        def _later(self, number: int) -> Iterator[pb.WatchResponse]:
            yield of_zero((60 + number, b"p/b"))

    with Replaced([of_zero((50, b"p/a"))]) as fake:
        fake._script = [pb.WatchResponse(header=header(100), watch_id=0, events=[pb.Event(kv=PAIR)])]
        with following(open_store(fake.endpoint, idle_limit=2.0), "p/", START) as follower:
            assert follower.until(61)
            fake.pairs = ()
            # then it is found with the next probe or event, and nothing of the other history is told
            assert isinstance(follower.ending(), RewoundError)


@pytest.mark.parametrize("proxied", [True, False])
def test_c23_a_backlog_that_a_proxy_may_take_for_whole_is_listed_again(open_store: OpenStore, proxied: bool) -> None:
    # given as many revisions in one response as a server ever sends, which are seldom all
    number = 0 if proxied else 1
    backlog = events(*((revision, b"p/a") for revision in range(11, 1011)), seen=5000)
    with FakeEtcd([renumbered(created(5000), number), renumbered(backlog, number)], revision=5000) as fake:
        if proxied:
            with pytest.raises(CompactedError, match="too far behind"):
                told(open_store, fake, 2)
        else:
            assert told(open_store, fake, 2)[-1].revision == 1010


@pytest.mark.parametrize("proxied", [True, False])
def test_c23_a_server_that_went_back_is_found_by_a_probe_although_its_watch_goes_on(
    open_store: OpenStore, proxied: bool
) -> None:
    class GoesBack(Proxy):
        def _answer(self, number: int) -> pb.WatchResponse:
            return renumbered(created(100 if number == 0 else 40), number if proxied else 1 - number)

    with GoesBack([events((50, b"p/a")) if not proxied else of_zero((50, b"p/a"))], revision=100) as fake:
        with following(open_store(fake.endpoint, idle_limit=2.0), "p/", START) as follower:
            error = follower.ending()
        assert isinstance(error, StoreConnectionError)
        assert "went back to revision 40" in str(error)


def test_c17_a_revoked_permission_is_found_while_events_keep_coming(open_store: OpenStore) -> None:
    # given a prefix that is never quiet for a third of the idle limit, and a server that rejects a second watch
    class Busy(FakeEtcd):
        def _watch(self, requests: Iterator[pb.WatchRequest], context: Any) -> Iterator[pb.WatchResponse]:
            next(requests)
            yield created(20)
            asked = self._pool.submit(lambda: next(one for one in requests if one.HasField("create_request")))
            for revision in itertools.count(21):
                if asked.done():
                    break
                yield events((revision, b"p/a"), seen=revision)
                self._stopping.wait(0.02)
            yield pb.WatchResponse(header=header(100), watch_id=-1, created=True, canceled=True)
            self._stopping.wait()

    with Busy([]) as fake, following(open_store(fake.endpoint, idle_limit=3.0), "p/", START) as follower:
        # then the stream finds out
        assert isinstance(follower.ending(), StoreConnectionError)


@pytest.mark.parametrize(
    ("response", "verb"),
    [
        pytest.param(pb.RangeResponse(), lambda store: store.read("p/a"), id="nothing at all, to a read"),
        pytest.param(pb.RangeResponse(), lambda store: store.revision(), id="nothing at all, for the revision"),
        pytest.param(
            pb.RangeResponse(header=header(100), kvs=[pb.KeyValue(key=b"p/b", mod_revision=1)]),
            lambda store: store.read("p/a"),
            id="another key",
        ),
        pytest.param(
            pb.RangeResponse(header=header(40), kvs=[PAIR]),
            lambda store: list(store.scan("p/")),
            id="a pair after the revision of the list",
        ),
        pytest.param(
            pb.RangeResponse(
                header=header(100), kvs=[pb.KeyValue(key=b"p/%03d" % n, mod_revision=1) for n in range(9)]
            ),
            lambda store: list(store.scan("p/")),
            id="a page longer than allowed",
        ),
    ],
)
def test_c23_an_answer_to_something_else_is_no_answer(
    open_store: OpenStore, response: pb.RangeResponse, verb: Callable[[Any], object]
) -> None:
    class Answers(FakeEtcd):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            return response

    with Answers([]) as fake, pytest.raises(StoreConnectionError, match="does not match the request"):
        verb(open_store(fake.endpoint, page_size=8))


def test_c23_the_pages_of_a_list_are_of_one_cluster(open_store: OpenStore) -> None:
    class Balanced(FakeEtcd):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            first = not request.revision
            pair = pb.KeyValue(key=b"p/a" if first else b"p/b", mod_revision=9)
            return pb.RangeResponse(header=header(100) if first else ELSEWHERE, kvs=[pair], more=first)

    with Balanced([]) as fake, pytest.raises(StoreConnectionError, match="does not match the request"):
        list(open_store(fake.endpoint).scan("p/"))


@pytest.mark.parametrize(
    ("told_back", "conditions"),
    [
        pytest.param(pb.TxnResponse(), (), id="nothing at all"),
        pytest.param(pb.TxnResponse(), (Condition("p/a", None),), id="nothing at all, which looks like a refusal"),
        pytest.param(pb.TxnResponse(header=header(100)), (), id="a refusal without a condition"),
        pytest.param(pb.TxnResponse(header=header(100), succeeded=True), (), id="no operation"),
        pytest.param(
            pb.TxnResponse(
                header=header(100),
                succeeded=True,
                responses=[pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse(deleted=1))] * 2,
            ),
            (),
            id="other operations",
        ),
    ],
)
def test_c23_a_write_that_is_answered_with_something_else_has_an_unknown_outcome(
    open_store: OpenStore, told_back: pb.TxnResponse, conditions: tuple[Condition, ...]
) -> None:
    class Answers(FakeEtcd):
        def _txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
            self.writes += 1
            return told_back

        def _delete(self, request: pb.DeleteRangeRequest, context: Any) -> pb.DeleteRangeResponse:
            return pb.DeleteRangeResponse()

    with Answers([]) as fake:
        store = open_store(fake.endpoint)
        with pytest.raises(UnknownOutcome, match="may have been applied"):
            store.commit([PutOp("p/a", b"v"), PutOp("p/b", b"v")], conditions)
        assert fake.writes == 1
        with pytest.raises(UnknownOutcome, match="may have been applied"):
            store.commit([DeleteOp("p/a")])


def test_c23_evidence_of_another_key_is_none(open_store: OpenStore) -> None:
    # given a store that answers for the newest pair with another one that looks alike
    class Confused(FakeEtcd):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            key = b"p/a" if request.range_end else b"p/other"
            pair = pb.KeyValue(key=key, value=b"v", mod_revision=50, create_revision=50)
            return pb.RangeResponse(header=header(100), kvs=[pair])

    with Confused([created(100)]) as fake:
        store = open_store(fake.endpoint)
        assert list(store.scan("p/"))
        with pytest.raises(RewoundError):
            list(store.stream("p/", 100))


def test_c23_an_empty_token_is_none(open_store: OpenStore) -> None:
    class Mute(FakeEtcd):
        def _token(self, request: pb.AuthenticateRequest, context: Any) -> pb.AuthenticateResponse:
            return pb.AuthenticateResponse()

    with Mute([]) as fake:
        store = open_store(fake.endpoint, username="agent", password="x")
        for verb in (lambda: store.read("a"), lambda: store.commit([PutOp("a", b"")])):
            with pytest.raises(StoreConnectionError, match="authenticating"):
                verb()
        assert fake.writes == 0
