"""Servers that a test may harm, and stores that are closed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval.etcd import EtcdConfig, EtcdStore
from tests.proxy import TcpProxy
from tests.servers import EtcdServer, etcd34, etcd35, find_etcd  # noqa: F401 - fixtures

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


@pytest.fixture
def proxy(server34: EtcdServer) -> Iterator[TcpProxy]:
    """A proxy in front of ``server34``."""
    with TcpProxy(("127.0.0.1", server34.port)) as proxy:
        yield proxy


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """``open_store("host:port", ..., operation_timeout=1.0)``."""
    opened: list[EtcdStore] = []

    def open_store(*endpoints: str, **settings: Any) -> EtcdStore:
        opened.append(EtcdStore(EtcdConfig(endpoints=endpoints, **settings)))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()
