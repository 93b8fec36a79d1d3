"""Consul servers that a test may harm, and stores that are closed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval.consul import ConsulConfig, ConsulStore
from tests.support.consul_server import ConsulServer, consul  # noqa: F401 - a fixture

OpenStore = Callable[..., ConsulStore]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ConsulServer]:
    """A server of the test's own."""
    with ConsulServer(tmp_path / "consul") as server:
        yield server


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[ConsulServer]:
    """The same with tokens, without which nothing is allowed."""
    with ConsulServer(tmp_path / "consul", tokens=True) as server:
        yield server


@pytest.fixture
def calm(consul: ConsulServer) -> ConsulServer:  # noqa: F811
    """An empty server that other tests use too: it is not killed or frozen."""
    consul.ask("DELETE", "/v1/kv/?recurse")
    return consul


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """Opens stores at an address, and closes them all at the end."""
    opened: list[ConsulStore] = []

    def open_store(address: str, **settings: Any) -> ConsulStore:
        opened.append(ConsulStore(ConsulConfig(address=address, **settings)))
        return opened[-1]

    yield open_store
    for store in reversed(opened):
        store.close()
