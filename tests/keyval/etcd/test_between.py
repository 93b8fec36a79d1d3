"""Real servers behind what is not ours, and members that refuse: C16, C17, C23."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datasync.errors import InvalidArgumentError, PermissionDenied, StoreConnectionError, UnknownOutcome
from datasync.keyval.etcd import EtcdStore
from datasync.keyval.types import Condition, DeleteOp, PutOp, RewoundError
from tests.conftest import take, wait_until
from tests.keyval.etcd.conftest import OpenStore, while_stopped
from tests.support.balancer import Balancer
from tests.support.etcd_proxy import EtcdGrpcProxy
from tests.support.nginx import Nginx
from tests.support.proxy import free_port
from tests.support.servers import EtcdServer, find_etcd
from tests.support.stores import following, state

pytestmark = pytest.mark.etcd

#: Seconds; three probes are sent in this time.
IDLE = 3.0


def put(store: EtcdStore, key: str, value: str = "") -> int:
    return store.commit([PutOp(key, value.encode())]).revision


@pytest.fixture
def grpc_proxy(server: EtcdServer, tmp_path: Path) -> Iterator[EtcdGrpcProxy]:
    """Of the same release as the server."""
    with EtcdGrpcProxy(server._program, [server.endpoint], tmp_path / "proxy") as proxy:
        yield proxy


def test_c23_behind_grpc_proxy_every_change_comes_over_many_probes(
    server: EtcdServer, grpc_proxy: EtcdGrpcProxy, open_store: OpenStore
) -> None:
    direct, store = open_store(server.endpoint), open_store(grpc_proxy.endpoint, idle_limit=IDLE / 2)
    start = put(direct, "p/first")
    with following(store, "p/", start) as follower:
        for number in range(4):
            # when the prefix changes before the first probe, or is quiet for longer and then changes
            for _ in range(3 if number else 1):
                assert take(follower.queue).revision == start
            for _ in range(10):
                put(direct, "q/other")
            last = put(direct, "p/a", str(number))
            # then the change comes
            batches = follower.until(last)
            assert [commit.revision for batch in batches for commit in batch.commits] == [last]
            start = last
        # and the proxy has not ended over what it was asked
        assert grpc_proxy.running
    assert state(store, "p/") == {"p/first": b"", "p/a": b"3"}


def test_c23_behind_grpc_proxy_every_verb_does_what_it_says(
    server: EtcdServer, grpc_proxy: EtcdGrpcProxy, open_store: OpenStore
) -> None:
    store = open_store(grpc_proxy.endpoint, page_size=7)
    for number in range(20):
        assert store.commit([PutOp(f"p/{number:02}", b"v")], [Condition(f"p/{number:02}", None)]).succeeded
    assert not store.commit([PutOp("p/00", b"x")], [Condition("p/00", None)]).succeeded
    assert len(list(store.scan("p/"))) == 20
    assert store.commit([DeleteOp("p/00")]).deleted == 1
    assert store.commit([DeleteOp("p/00")]).deleted == 0
    assert store.commit([DeleteOp("p/01"), DeleteOp("p/02")]).deleted == 2
    assert store.commit([DeleteOp("p/", prefix=True)]).deleted == 17
    assert store.compact() == store.revision()


@pytest.mark.parametrize("change", ["wiped", "restored"])
def test_d59_c23_a_store_that_was_replaced_behind_grpc_proxy_is_found_although_the_watch_goes_on(
    server: EtcdServer, grpc_proxy: EtcdGrpcProxy, open_store: OpenStore, change: str
) -> None:
    direct, store = open_store(server.endpoint), open_store(grpc_proxy.endpoint, idle_limit=IDLE)
    put(direct, "p/old")
    while_stopped(server, server.save, "copy")
    for number in range(5):
        start = put(direct, "p/new", str(number))
    with following(store, "p/", start - 1) as follower:
        follower.until(start)
        # when the server is stopped, loses what was written, and grows beyond it: the proxy connects again by itself
        while_stopped(server, *((server.wipe,) if change == "wiped" else (server.restore, "copy")))
        while put(direct, "q/other") <= start:
            pass
        put(direct, "p/of another history")
        # then no change of the other history is delivered, and the stream ends with what happened
        while True:
            item = take(follower.queue)
            if isinstance(item, Exception):
                break
            assert not item.commits, item
        if isinstance(item, StoreConnectionError):  # the proxy gave up first, and the next stream finds out
            with pytest.raises(RewoundError):
                list(store.stream("p/", start))
        else:
            assert isinstance(item, RewoundError)


def test_c23_behind_nginx_every_change_comes_and_every_write_is_answered(
    calm: EtcdServer, tmp_path: Path, open_store: OpenStore
) -> None:
    body = f"server {{ listen 127.0.0.1:{{port}} http2; location / {{ grpc_pass grpc://{calm.endpoint}; }} }}"
    with Nginx(tmp_path / "nginx", body) as nginx:
        store = open_store(nginx.address, idle_limit=IDLE, page_size=7)
        start = put(store, "p/first")
        with following(store, "p/", start) as follower:
            for number in range(20):
                last = put(store, f"p/{number:02}")
            assert sum(len(batch.commits) for batch in follower.until(last)) == 20
            # when nginx is restarted
            nginx.stop()
            assert isinstance(follower.ending(), StoreConnectionError)
            with pytest.raises(StoreConnectionError):  # not an unknown outcome
                put(open_store(nginx.address, dial_timeout=0.3), "p/lost")
            nginx.start()
        # then all goes on
        assert len(state(store, "p/")) == 21
        # and a request beyond nginx's limit, which it passes on to nobody, is refused by name
        with pytest.raises(InvalidArgumentError, match="413"):
            put(store, "p/large", "x" * 1_200_000)
        assert store.commit([DeleteOp("p/", prefix=True)]).deleted == 21


@pytest.fixture(params=["3.4", "3.5"])
def voter_and_learner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EtcdServer, EtcdServer]]:
    """A cluster of one voter, and a learner that was added to it."""
    program = find_etcd(request.param)
    voter = EtcdServer(program, tmp_path / "voter", name="voter")
    learner = EtcdServer(program, tmp_path / "learner", "--initial-cluster-state", "existing", name="learner")
    learner.cluster = (voter, learner)
    with voter:
        voter.ctl("member", "add", "learner", "--learner", "--peer-urls", f"http://127.0.0.1:{learner.peer_port}")
        with learner.start(wait=False):
            wait_until(lambda: learner.metric("etcd_server_is_learner") == 1, "the learner has joined")
            yield voter, learner


def test_c16_a_learner_refuses_and_the_voter_is_asked(
    voter_and_learner: tuple[EtcdServer, EtcdServer], open_store: OpenStore
) -> None:
    voter, learner = voter_and_learner
    # given the learner as the first endpoint
    store = open_store(learner.endpoint, voter.endpoint)
    last = put(store, "p/a", "1")
    assert state(store, "p/") == {"p/a": b"1"}
    assert last == open_store(voter.endpoint).revision()
    with following(open_store(learner.endpoint, voter.endpoint), "p/", last - 1) as follower:
        follower.until(last)
    # given the learner alone: it says what it is, and nothing is in doubt
    with pytest.raises(StoreConnectionError, match="learner"):
        put(open_store(learner.endpoint, dial_timeout=0.3), "p/b")
    # given one address for both, whichever it leads to first: the next connection leads to the other
    with Balancer([("127.0.0.1", learner.port), ("127.0.0.1", voter.port)]) as balancer:
        put(open_store(balancer.address), "p/c")
    assert state(store, "p/") == {"p/a": b"1", "p/c": b""}


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_c17_a_full_database_takes_deletes_and_says_so_of_puts(
    version: str, tmp_path: Path, open_store: OpenStore
) -> None:
    with EtcdServer(find_etcd(version), tmp_path / "etcd", "--quota-backend-bytes", str(2 << 20)) as server:
        store = open_store(server.endpoint)
        put(store, "p/a")
        # given a database that is full
        with pytest.raises(UnknownOutcome, match="space exceeded; compact, defragment"):
            for number in range(2000):  # its size is noticed at intervals
                put(store, f"p/big{number}", "x" * 100_000)
        wait_until(lambda: "NOSPACE" in server.ctl("alarm", "list"), "the alarm is on")
        # then what makes room is taken
        assert store.commit([DeleteOp("p/a")]).deleted == 1
        assert store.commit([DeleteOp("p/big", prefix=True)]).deleted > 1


@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_c17_a_permission_that_is_revoked_while_the_prefix_is_busy_ends_the_stream(
    version: str, tmp_path: Path, open_store: OpenStore
) -> None:
    with EtcdServer(find_etcd(version), tmp_path / "etcd") as server:
        server.enable_auth("agent", "secret", "p/")
        root = open_store(server.endpoint, username="root", password="root")
        store = open_store(server.endpoint, username="agent", password="secret", idle_limit=IDLE)
        start = put(root, "p/a")
        with following(store, "p/", start) as follower:
            take(follower.queue)
            server.ctl("--user", "root:root", "role", "revoke-permission", "agent", "p/", "--prefix")
            # when the prefix is never quiet for a third of the idle limit
            while True:
                put(root, "p/a")
                if not follower.queue.empty() and isinstance(item := follower.queue.get(), Exception):
                    break
            # then it is found all the same
            assert isinstance(item, PermissionDenied)


def test_c23_behind_a_balancer_a_reader_goes_on_with_another_member(
    calm34: EtcdServer, etcd35: EtcdServer, open_store: OpenStore
) -> None:
    # given an address whose first target refuses connections
    with Balancer([("127.0.0.1", free_port()), ("127.0.0.1", calm34.port)]) as balancer:
        store = open_store(balancer.address)
        start = put(store, "p/a")
        assert balancer.last == 1
    # given one whose targets are two clusters, which nobody should have: it is found, not mixed up
    with Balancer([("127.0.0.1", calm34.port), ("127.0.0.1", etcd35.port)]) as balancer:
        balancer.only(0)
        store = open_store(balancer.address, idle_limit=IDLE)
        assert list(store.scan("p/"))
        with following(store, "p/", start) as follower:
            take(follower.queue)
            balancer.only(1)
            assert isinstance(follower.ending(), StoreConnectionError)
            with pytest.raises(RewoundError):
                list(store.stream("p/", start))
