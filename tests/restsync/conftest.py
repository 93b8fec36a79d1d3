"""An adapter, its server, and a client of it, each ended with its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasync.restsync import Adapter, Client, Server, serve
from tests.conftest import PATIENT
from tests.restsync.support import Http, Subscriber


@pytest.fixture
def adapter() -> Iterator[Adapter]:
    with Adapter() as adapter:
        yield adapter


@pytest.fixture
def subscriber(adapter: Adapter) -> Iterator[Subscriber]:
    """Watches everything under ``net/``."""
    with Subscriber(adapter, "net/") as subscriber:
        yield subscriber


@pytest.fixture
def server(adapter: Adapter) -> Iterator[Server]:
    with serve("127.0.0.1:0", adapter, done_timeout=PATIENT) as server:
        yield server


@pytest.fixture
def http(server: Server) -> Iterator[Http]:
    http = Http(server.url)
    yield http
    http.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client
