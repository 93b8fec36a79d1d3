"""A log handler of the program raises between a change and its answer: nobody waits, and nothing stays taken (C15)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from datasync.restsync import Adapter, Client, serve
from datasync.syncbase.status import TransportState
from tests.conftest import take, wait_until
from tests.restsync.support import JSON, Http, Subscriber, everything, raw
from tests.support.proxy import TcpProxy, free_port
from tests.support.registries import changes, told


class Raising(logging.Handler):
    """A handler whose disk is full."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        raise RuntimeError("the disk is full")


@pytest.fixture
def broken() -> Iterator[Raising]:
    """Every line of the package from here on raises."""
    log, handler = logging.getLogger("datasync.restsync"), Raising()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


def test_c15_a_server_starts_answers_and_frees_its_port(
    adapter: Adapter, subscriber: Subscriber, broken: Raising
) -> None:
    port = free_port()
    for _ in range(2):
        with serve(f"127.0.0.1:{port}", adapter) as server:
            http = Http(server.url)
            # when a key is put, a stream is read, and a request is none
            assert http("PUT", "/keys/net/a", b'"x"', JSON).status in (200, 201)
            assert http("GET", "/events?follow=false").status == 200
            http.close()
            with raw(server, b"nonsense\r\n\r\n") as connection:
                assert b" 400 " in everything(connection)
            # then each is answered, and no stream counts as open
            wait_until(lambda: server.application.streams == 0, "no stream is open")  # type: ignore[attr-defined]
    assert broken.count


def test_c13_a_mirror_goes_on(adapter: Adapter, broken: Raising) -> None:
    # given a watcher whose connection breaks, which is logged
    with serve("127.0.0.1:0", adapter) as server, TcpProxy(("127.0.0.1", server.port)) as proxy:
        with Client(f"http://{proxy.address}") as client:
            queue: Queue[Any] = Queue()
            client.watch("w", queue, queue, "")
            take(queue).done()
            proxy.refuse()
            wait_until(lambda: client.status().state is TransportState.DOWN, "it has noticed")
            # when the way is free again / then it goes on
            proxy.heal()
            adapter.registry.submit_changes(changes({"net/a": "1"}))
            event = take(queue)
            assert told(event) == [("net/a", "1", None)]
            event.done()
