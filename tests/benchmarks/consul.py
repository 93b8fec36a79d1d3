"""Consul: the delay of a change, the commits per second, and a large prefix, beside bare HTTP on the same server."""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

from datasync.keyval.urls import connect
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.latency import Delays, start_writer, through_the_library
from tests.benchmarks.replay import PATIENCE
from tests.support.consul_server import ConsulServer

COMMITS = 300
PUTS = 300
KEYS = 5_000
VALUE = b"v" * 200


@contextmanager
def server() -> Iterator[ConsulServer]:
    with tempfile.TemporaryDirectory() as folder, ConsulServer(Path(folder)) as running:
        yield running


class BareQueries:
    """A loop of blocking queries in a thread: what the interface itself costs. It notes each value that is new."""

    def __init__(self, port: int, prefix: str) -> None:
        self.delays = Delays()
        self._pool = urllib3.HTTPConnectionPool("127.0.0.1", port)
        self._path = f"/v1/kv{prefix}?recurse&consistent&wait=5s"
        self._seen = self._index = self._ask(0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._thread.join()
        self._pool.close()

    def _ask(self, index: int) -> int:
        answer = self._pool.urlopen("GET", f"{self._path}&index={index}" if index else self._path)
        for pair in json.loads(answer.data or b"[]"):
            if index and pair["ModifyIndex"] > self._seen:
                self.delays.note(b64decode(pair["Value"] or b""))
        return int(answer.headers["X-Consul-Index"])

    def _run(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.delays.over.is_set() and time.monotonic() < deadline:
            self._index = self._ask(self._index)
            self._seen = self._index


@contextmanager
def consul_latency(scale: float) -> Iterator[Sides]:
    commits = max(20, int(COMMITS * scale))
    with server() as running, connect(running.url) as store:

        def ours() -> Figures:
            return through_the_library(store, running.url, commits, 0.02).figures("consul-put")

        def baseline() -> Figures:
            queries = BareQueries(running.port, "/bench/")
            with start_writer(running.url, commits, 0.02):
                assert queries.delays.over.wait(PATIENCE)
            queries.close()
            return queries.delays.figures("consul-put")

        yield Sides(ours, baseline)


@contextmanager
def consul_puts(scale: float) -> Iterator[Sides]:
    puts = max(20, int(PUTS * scale))
    with server() as running, connect(running.url) as store:
        broker = store.new_broker("/bench/")
        pool = urllib3.HTTPConnectionPool("127.0.0.1", running.port)
        value = b64encode(VALUE).decode()

        def ours() -> Figures:
            started = time.perf_counter()
            for number in range(puts):
                broker.put(f"key/{number % 50}", VALUE)
            return {"consul-puts": puts / (time.perf_counter() - started)}

        def baseline() -> Figures:
            started = time.perf_counter()
            for number in range(puts):
                operation = {"KV": {"Verb": "set", "Key": f"bench/key/{number % 50}", "Value": value}}
                assert pool.urlopen("PUT", "/v1/txn", body=json.dumps([operation])).status == 200
            return {"consul-puts": puts / (time.perf_counter() - started)}

        yield Sides(ours, baseline)
        pool.close()


@contextmanager
def consul_list(scale: float) -> Iterator[Sides]:
    keys = max(100, int(KEYS * scale)) // 50 * 50
    with server() as running, connect(running.url) as store:
        broker = store.new_broker("/bench/")
        for start in range(0, keys, 50):
            txn = broker.new_txn()
            for number in range(start, start + 50):
                txn.put(f"key/{number:05}", VALUE)
            txn.commit()
        pool = urllib3.HTTPConnectionPool("127.0.0.1", running.port)

        def ours() -> Figures:
            return {"consul-list-5000": _best(lambda: dict.fromkeys(store.scan("/bench/")))}

        def bare() -> dict[str, bytes]:
            answer = pool.urlopen("GET", "/v1/kv/bench/?recurse&consistent")
            return {pair["Key"]: b64decode(pair["Value"] or b"") for pair in json.loads(answer.data)}

        yield Sides(ours, lambda: {"consul-list-5000": _best(bare)})
        pool.close()


def _best(read: object) -> float:
    """Milliseconds of the median of five."""
    assert callable(read)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        read()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


BENCHES = (
    Bench(
        "consul-latency",
        "a bare loop of blocking queries",
        (Row("consul-put-p50", "ms", 1.3), Row("consul-put-p99", "ms")),
        consul_latency,
    ),
    Bench(
        "consul-puts",
        "bare transactions of one put",
        (Row("consul-puts", "commits/s", 0.8, higher_is_better=True),),
        consul_puts,
    ),
    Bench("consul-list", "a bare list into a dict", (Row("consul-list-5000", "ms"),), consul_list),
)
