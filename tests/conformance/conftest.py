"""The backends: each test of this folder runs over all of them, and knows none by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from datasync.keyval import DeleteOp, Store, connect
from tests.conformance.transports import transport  # noqa: F401 - a fixture
from tests.support.consul_server import consul  # noqa: F401 - a fixture
from tests.support.etcd_proxy import etcd34_proxied  # noqa: F401 - a fixture
from tests.support.kafka import kafka  # noqa: F401 - a fixture
from tests.support.postgres import postgres  # noqa: F401 - a fixture
from tests.support.redis_servers import redis7, redis_cluster, sentinels, valkey8  # noqa: F401 - fixtures
from tests.support.servers import etcd34, etcd35  # noqa: F401 - fixtures

NewStore = Callable[..., Store]


#: Fixture of a server that tests share to the mark of its tests.
SERVERS = {"etcd34": "etcd", "etcd35": "etcd", "etcd34_proxied": "etcd", "consul": "consul"}
SERVERS |= dict.fromkeys(("redis7", "valkey8", "sentinels", "redis_cluster"), "redis")
PARAMS = ["memory", "sqlite", "file"]
PARAMS += [pytest.param(name, marks=getattr(pytest.mark, mark)) for name, mark in SERVERS.items()]
PARAMS.append(pytest.param("postgres", marks=pytest.mark.postgres))


@pytest.fixture(params=PARAMS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store is."""
    if request.param == "file":
        return f"file://{tmp_path}?writable=true"
    if request.param == "memory":
        return f"memory://{uuid4().hex}"
    if request.param in SERVERS:
        address: str = request.getfixturevalue(request.param).url
        return address
    if request.param == "postgres":
        return f"{request.getfixturevalue('postgres').url}?schema=s{uuid4().hex}"
    return f"sqlite://{tmp_path}/store.db"


class Limits(NamedTuple):
    """What a store can take."""

    #: Operations of a transaction.
    ops: int = 128
    #: False if it refuses keys that could not be a path, and knows one leading slash as none.
    any_key: bool = True
    #: False if a put of the value that is there already is none: the key keeps its revision.
    equal_puts: bool = True


#: By scheme; any other store takes the most.
LIMITS = {"consul": Limits(ops=64, any_key=False, equal_puts=False)}


@pytest.fixture
def limits(url: str) -> Limits:
    return LIMITS.get(url.partition(":")[0], Limits())


@pytest.fixture
def new_store(url: str) -> Iterator[NewStore]:
    """Opens further stores on the same data, and closes them all at the end."""
    opened: list[Store] = []

    def new_store(**options: object) -> Store:
        opened.append(connect(url, **options))
        return opened[-1]

    yield new_store
    for store in reversed(opened):
        store.close()


@pytest.fixture
def store(request: pytest.FixtureRequest, new_store: NewStore) -> Store:
    """An empty store; the test is skipped when it lacks a capability that ``@pytest.mark.needs`` names."""
    store = new_store()
    for marker in request.node.iter_markers("needs"):
        missing = [capability.value for capability in marker.args if capability not in store.capabilities]
        if missing:
            pytest.skip(f"this store has no {', '.join(missing)}")
    store.commit([DeleteOp("", prefix=True)])  # a server keeps what the test before left
    return store
