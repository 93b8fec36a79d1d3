"""Servers that a test may harm, and stores that are closed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval.etcd import EtcdConfig, EtcdStore
from tests.conftest import PATIENT
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer, etcd34, etcd35, find_etcd  # noqa: F401 - fixtures

OpenStore = Callable[..., EtcdStore]


@pytest.fixture(params=["3.4", "3.5"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdServer]:
    """A server of the test's own."""
    with EtcdServer(find_etcd(request.param), tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def server34(tmp_path: Path) -> Iterator[EtcdServer]:
    """A server of the test's own where the version does not matter."""
    with EtcdServer(find_etcd("3.4"), tmp_path / "etcd") as server:
        yield server


@pytest.fixture(params=["etcd34", "etcd35"])
def calm(request: pytest.FixtureRequest) -> EtcdServer:
    """An empty server that other tests use too: it is not killed, frozen or given users."""
    return emptied(request.getfixturevalue(request.param))


@pytest.fixture
def calm34(etcd34: EtcdServer) -> EtcdServer:  # noqa: F811
    """Such a server where the version does not matter."""
    return emptied(etcd34)


def while_stopped(server: EtcdServer, change: Callable[..., None], *arguments: str, kill: bool = False) -> None:
    """Stop or *kill* the *server*, change its data, and start it again."""
    (server.kill if kill else server.stop)()
    change(*arguments)
    server.start()


def emptied(server: EtcdServer) -> EtcdServer:
    """*server* without keys and leases."""
    server.ctl("del", "", "--prefix")
    for lease in leases(server):
        server.ctl("lease", "revoke", lease)
    return server


def leases(server: EtcdServer) -> list[str]:
    """The ids of all leases, in hex without leading zeros."""
    return [line.lstrip("0") for line in server.ctl("lease", "list").splitlines() if "found" not in line and line]


@pytest.fixture
def proxy(calm34: EtcdServer) -> Iterator[TcpProxy]:
    """A proxy in front of ``calm34``."""
    with TcpProxy(("127.0.0.1", calm34.port)) as proxy:
        yield proxy


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """``open_store("host:port", ..., idle_limit=1.0)``: calls have all the time they need on a busy machine."""
    opened: list[EtcdStore] = []

    def open_store(*endpoints: str, **settings: Any) -> EtcdStore:
        settings = {"dial_timeout": PATIENT, "operation_timeout": PATIENT, **settings}
        opened.append(EtcdStore(EtcdConfig(endpoints=endpoints, **settings)))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()
