"""Locks in processes of their own, over the stores that processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datasync.keyval import DeleteOp, Store, connect
from tests.support.child_process import Peer
from tests.support.consul_server import consul  # noqa: F401 - a fixture
from tests.support.redis_servers import redis7  # noqa: F401 - a fixture
from tests.support.servers import etcd34  # noqa: F401 - a fixture

#: Name of the lock in these tests.
NAME = "locks/one"
#: Seconds that a lease lives in these tests.
TTL = 2.0


#: Fixture of a server that tests share to the mark of its tests.
SERVERS = {"etcd34": "etcd", "consul": "consul", "redis7": "redis"}


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=getattr(pytest.mark, SERVERS[name])) for name in SERVERS)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/store.db"
    address: str = request.getfixturevalue(request.param).url
    with connect(address) as store:
        store.commit([DeleteOp("", prefix=True)])  # what the test before left
    return address


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A handle of the test itself."""
    with connect(url) as store:
        yield store


NewPeer = Callable[..., Peer]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where all clients note when they held the lock."""
    path = tmp_path / "notes"
    path.touch()
    return path


@pytest.fixture
def new_peer(url: str, notes: Path) -> Iterator[NewPeer]:
    """``new_peer(ttl=2, n=1)``: a client of the lock that runs."""
    peers: list[Peer] = []

    def new_peer(*, ttl: float = TTL, n: int = 1) -> Peer:
        peers.append(Peer("tests.support.lock_client", url, NAME, str(ttl), str(n), str(notes)))
        peers[-1].start()
        return peers[-1]

    yield new_peer
    for peer in peers:
        peer.stop()
