"""The CPU use of an idle agent, in its own process: etcd, gRPC and REST together, or SQLite alone.

``python -m tests.benchmarks.idle all|store|grpcio URL SECONDS`` prints per cent of a core and the names of its threads.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from datasync import grpcsync, restsync
from datasync.keyval.urls import connect
from datasync.kvdbsync.plugin import Plugin
from tests.benchmarks.bare_etcd import BareEtcd, BareWatch
from tests.benchmarks.etcd import server
from tests.benchmarks.grpc import Echo
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.support.running import environment

SECONDS = 20.0
#: Per cent of a core.
ALLOWED = 0.2


@contextmanager
def somewhere() -> Iterator[str]:
    """The address of an etcd server, or a SQLite file if there is none."""
    try:
        with server() as running:
            yield running.url
    except pytest.skip.Exception:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'bench.db'}"


@contextmanager
def agent(scale: float) -> Iterator[Sides]:
    with somewhere() as url:
        sides = _sides("idle-agent", "all", url, scale)
        yield sides
        if url.startswith("etcd:"):
            percent, _ = _measured("grpcio", url, scale)
            sides.notes.append(f"the limit: a bare grpcio watch, server and stream take {percent:.2g} % of a core")


@contextmanager
def sqlite(scale: float) -> Iterator[Sides]:
    with tempfile.TemporaryDirectory() as folder:
        yield _sides("sqlite-idle", "store", f"sqlite:///{Path(folder) / 'bench.db'}", scale)


def _sides(row: str, kind: str, url: str, scale: float) -> Sides:
    notes: list[str] = []

    def ours() -> Figures:
        percent, threads = _measured(kind, url, scale)
        notes.append(f"threads: {threads}")
        return {row: percent}

    return Sides(ours, lambda: {row: ALLOWED}, notes)


def _measured(kind: str, url: str, scale: float) -> tuple[float, str]:
    command = [sys.executable, "-m", "tests.benchmarks.idle", kind, url, str(max(1.0, SECONDS * scale))]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    percent, threads = done.stdout.splitlines()
    return float(percent), threads


def main(kind: str, url: str, seconds: float) -> None:
    with ExitStack() as stack:
        if kind == "grpcio":
            _bare_grpcio(stack, url)
        else:
            _agent(stack, kind, url)
        before = time.process_time()
        time.sleep(seconds)
        print(100 * (time.process_time() - before) / seconds)
        print(", ".join(sorted(thread.name for thread in threading.enumerate())))


def _agent(stack: ExitStack, kind: str, url: str) -> None:
    events: queue.Queue[Any] = queue.Queue()
    plugin = stack.enter_context(Plugin(kv=stack.enter_context(connect(url)), prefix="bench/"))
    plugin.watch("bench", events, events, "")
    if kind == "all":
        _servers_and_clients(stack, events)
    plugin.after_init()
    for _ in range(2 if kind == "all" else 1):  # the first RESYNCs of the store and of the REST client
        events.get(timeout=30).done()


def _bare_grpcio(stack: ExitStack, url: str) -> None:
    """The gRPC servers and channels of the agent, without datasync."""
    etcd = stack.enter_context(BareEtcd(url.removeprefix("etcd://")))
    stack.enter_context(BareWatch(etcd, "bench/", etcd.revision(), lambda key, value: None))
    echo = Echo()
    stack.callback(echo.close)
    stack.enter_context(echo.waiting())


def _servers_and_clients(stack: ExitStack, events: queue.Queue[Any]) -> None:
    """A server and a watching client of gRPC and of REST."""
    grpc_server = stack.enter_context(grpcsync.serve("127.0.0.1:0"))
    rest_adapter = stack.enter_context(restsync.Adapter())
    rest_server = stack.enter_context(restsync.serve("127.0.0.1:0", rest_adapter))
    sender = stack.enter_context(grpcsync.Client(grpc_server.address))
    client = stack.enter_context(restsync.Client(rest_server.url))
    grpc_server.adapter.watch("bench-grpc", events, events, "")
    rest_adapter.watch("bench-rest", events, events, "")
    client.watch("bench-client", events, events, "")
    sender.wait_ready(30)


BENCHES = [
    Bench(
        "idle",
        "what is allowed: 0.2 % of a core",
        [Row("idle-agent", "% of a core", 1.0)],
        agent,
        repeats=3,
    ),
    Bench(
        "sqlite-idle",
        "what is allowed: 0.2 % of a core",
        [Row("sqlite-idle", "% of a core", 1.0)],
        sqlite,
        repeats=3,
    ),
]

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
