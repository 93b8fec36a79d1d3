"""I16: a client that loses its connection a thousand times leaves nothing behind: no thread, descriptor or object."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any, NamedTuple

import pytest

from datasync.grpcsync import Client as GrpcClient
from datasync.grpcsync import serve as serve_grpc
from datasync.grpcsync.client import session as grpc_link
from datasync.restsync import Adapter as RestAdapter
from datasync.restsync import Client as RestClient
from datasync.restsync import serve as serve_rest
from datasync.restsync import wsgi_app
from datasync.restsync.client import event_source as rest_reader
from datasync.syncbase.status import TransportState
from tests.conftest import wait_until
from tests.support.proxy import TcpProxy
from tests.support.registries import changes

#: Objects of the library that one connection more may be under way at the moment of a count.
SLACK = 40


class Scene(NamedTuple):
    """A client behind a proxy: how often it was connected, whether it is, what the server has open, a sign of life."""

    proxy: TcpProxy
    reconnects: Callable[[], int]
    ready: Callable[[], bool]
    streams: Callable[[], int]
    works: Callable[[], bool]


@contextmanager
def grpc_client() -> Iterator[Scene]:
    with (
        serve_grpc("127.0.0.1:0") as server,
        TcpProxy(("127.0.0.1", server.port)) as proxy,
        GrpcClient(proxy.address) as client,
    ):
        server.adapter.watch("all", None, Queue(), "")
        yield Scene(
            proxy,
            lambda: client.status().reconnects,
            lambda: client.status().state is TransportState.READY,
            lambda: server.adapter.status().streams,
            lambda: not client.delete("k"),
        )


@contextmanager
def rest_client() -> Iterator[Scene]:
    adapter = RestAdapter("rest")
    application = wsgi_app(adapter)
    server = serve_rest("127.0.0.1:0", application)
    events: Queue[Any] = Queue()
    try:
        with TcpProxy(("127.0.0.1", server.port)) as proxy, RestClient(f"http://{proxy.address}") as client:
            client.watch("all", events, events, "k/")

            def works() -> bool:
                adapter.registry.submit_changes(changes({"other": "1"}))
                revision = adapter.registry.revision
                wait_until(lambda: client.registry.revision >= revision, "the client follows", 30)
                return True

            yield Scene(
                proxy,
                lambda: client.status().reconnects,
                lambda: client.status().state is TransportState.READY,
                lambda: application.streams,
                works,
            )
    finally:
        server.close()
        adapter.close()


CLIENTS = {"grpc": grpc_client, "rest": rest_client}


class Count(NamedTuple):
    threads: int
    descriptors: int
    objects: int


def count(kinds: Counter[str]) -> Count:
    """What there is now, of this library and of grpc; *kinds* gets the objects by type."""
    gc.collect()
    kinds.clear()
    for one in gc.get_objects():
        module = type(one).__module__ or ""
        if module.partition(".")[0] in ("datasync", "grpc", "socket", "threading", "queue", "_thread"):
            kinds[f"{module}.{type(one).__qualname__}"] += 1
    threads = [one for one in threading.enumerate() if one.name.startswith(("datasync", "proxy"))]
    return Count(len(threads), len(os.listdir("/proc/self/fd")), sum(kinds.values()))


def lose(scene: Scene, times: int) -> None:
    """Lose the connection so often, each time when it is there, and wait for the next one."""
    for number in range(times):
        before = scene.reconnects()
        (scene.proxy.drop if number % 2 else scene.proxy.reset)()
        wait_until(lambda before=before: scene.reconnects() > before and scene.ready(), f"reconnect {number}", 30)


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        *((kind, 60) for kind in CLIENTS),
        *(pytest.param(kind, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)]) for kind in CLIENTS),
    ],
)
def test_i16_many_reconnects_leave_nothing_behind(
    kind: str, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "datasync")  # pytest keeps each record, and with it the error and its frames
    # given a client that was reconnected a few times, so that everything that is made once is made
    monkeypatch.setattr(grpc_link, "RECONNECT_BACKOFF", (0.001, 0.005))
    monkeypatch.setattr(rest_reader, "BACKOFF", (0.001, 0.005))
    kinds: Counter[str] = Counter()
    with CLIENTS[kind]() as scene:
        wait_until(scene.ready, "the client is there")
        lose(scene, 10)
        wait_until(lambda: scene.streams() == 1, "the server forgot the others")
        before, kinds_before = count(kinds), kinds.copy()
        # when it loses its connection again and again
        lose(scene, times)
        # then it works, and there is as much as before
        assert scene.works()
        wait_until(lambda: scene.streams() == 1, "the server forgot the others")
        wait_until(
            lambda: (now := count(kinds)).threads <= before.threads and now.descriptors <= before.descriptors + 4,
            "threads and descriptors are as before",
        )
        more = {name: kinds[name] - kinds_before[name] for name in kinds if kinds[name] > kinds_before[name] + 5}
        assert count(kinds).objects <= before.objects + SLACK, f"objects were left behind: {more}"
