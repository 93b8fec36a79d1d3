"""Servers and clients on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasync.grpcsync import Client, Server, serve
from tests.conftest import PATIENT
from tests.grpcsync.support import Subscriber, Wire


@pytest.fixture
def server() -> Iterator[Server]:
    with serve("127.0.0.1:0", change_timeout=PATIENT) as running:
        yield running


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    """A raw channel to the server, with a connection of its own."""
    with Wire(server.address) as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as one:
        one.wait_ready(PATIENT)
        yield one


@pytest.fixture
def subscriber(server: Server) -> Iterator[Subscriber]:
    """A subscriber that watches ``k/`` and acknowledges every event."""
    with Subscriber() as one:
        server.adapter.watch("agent", one.queue, one.queue, "k/")
        yield one
