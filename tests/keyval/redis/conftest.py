"""Servers that a test may harm, and stores that are closed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasync.keyval.redis import RedisConfig, RedisStore
from tests.support.proxy import TcpProxy
from tests.support.redis_servers import (  # noqa: F401 - fixtures
    RedisServer,
    find_redis,
    find_valkey,
    redis7,
    redis_cluster,
    sentinels,
    valkey8,
)

OpenStore = Callable[..., RedisStore]


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    find = find_redis if request.param == "redis" else find_valkey
    with RedisServer(find(), tmp_path / "data") as server:
        yield server


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own where it does not matter which."""
    with RedisServer(find_redis(), tmp_path / "data") as server:
        yield server


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """Opens stores at a server or proxy with hasty settings, and closes them at the end."""
    opened: list[RedisStore] = []

    def open_store(at: RedisServer | TcpProxy, **settings: Any) -> RedisStore:
        host, port = at.address.split(":")
        hasty = {"connect_timeout": 1.0, "timeout": 1.0, **settings}
        opened.append(RedisStore(RedisConfig(addresses=((host, int(port)),), **hasty)))
        return opened[-1]

    yield open_store
    for store in reversed(opened):
        store.close()
