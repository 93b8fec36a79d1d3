"""The targets of the verbs: each test that takes ``url`` runs over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from datasync.keyval import DeleteOp, connect
from datasync.restsync import serve
from datasync.restsync.app.store_adapter import StoreAdapter
from tests.conftest import PATIENT
from tests.support.redis_servers import redis7  # noqa: F401 - a fixture
from tests.support.servers import etcd35  # noqa: F401 - a fixture

SERVERS = {"etcd": "etcd35", "redis": "redis7"}
PARAMS = ["sqlite", "file", "http", *(pytest.param(name, marks=getattr(pytest.mark, name)) for name in SERVERS)]


@pytest.fixture(params=PARAMS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where an empty store is; ``http`` is a REST server in front of one."""
    if request.param in SERVERS:
        server = request.getfixturevalue(SERVERS[request.param])
        with connect(server.url) as store:
            store.commit([DeleteOp("", prefix=True)])
        yield server.url
    elif request.param == "http":
        with connect(f"memory://{uuid4().hex}") as store, StoreAdapter(store) as adapter:
            adapter.wait_ready(PATIENT)
            with serve("127.0.0.1:0", adapter) as server:
                yield server.url
    elif request.param == "file":
        (tmp_path / "store").mkdir()
        yield f"file://{tmp_path}/store?writable=true"
    else:
        yield f"sqlite://{tmp_path}/store.db"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/one.db"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATASYNC_URL", "DATASYNC_TOKEN", "VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
