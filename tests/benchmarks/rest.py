"""REST: puts per second from 16 clients in another process, and the memory of 1,000 event streams."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from datasync.restsync import Adapter, serve
from datasync.restsync.httpd.connection import ConnectionLimits
from datasync.restsync.httpd.server import Server
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.limits import reached
from tests.benchmarks.local import answering
from tests.benchmarks.rest_peer import CLIENTS


def peer(*arguments: object) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.rest_peer", *map(str, arguments)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout)


def bare(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The minimum that answers a put: read the body and respond."""
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b'{"key": "k", "revision": 1}']


class Least:
    """The minimum that keeps the promise of a put: parse the JSON, and wait for a subscriber in another thread."""

    parts = "JSON that is read, a queue to the subscriber's thread and his answer"

    def __init__(self) -> None:
        self.asked: queue.Queue[Future[None] | None] = queue.Queue()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        json.loads(environ["wsgi.input"].read())
        answer: Future[None] = Future()
        self.asked.put_nowait(answer)
        answer.result(10)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [b'{"key": "k", "revision": 1}']


def bare_server(application: Any) -> Server:
    server = Server(("127.0.0.1", 0), application, None, ConnectionLimits(100, 10, 10, 10, 60))
    server.start()
    return server


@contextmanager
def puts(scale: float) -> Iterator[Sides]:
    count = max(CLIENTS, int(8_000 * scale))
    events: queue.Queue[Any] = queue.Queue()
    with Adapter() as adapter, serve("127.0.0.1:0", adapter) as server:
        adapter.watch("bench", events, events, "k", in_flight=CLIENTS)

        def rate(of: Server) -> float:
            return count / peer("puts", of.port, count)

        notes: list[str] = []
        least = Least()
        with bare_server(bare) as baseline, answering(events.get, lambda event: event.done(), events.put):
            yield Sides(lambda: {"rest-puts-16": rate(server)}, lambda: {"rest-puts-16": rate(baseline)}, notes)
            with bare_server(least) as other:
                with answering(least.asked.get, lambda answer: answer.set_result(None), least.asked.put):
                    notes.append(reached(Least.parts, lambda: rate(other), lambda: rate(baseline)))


@contextmanager
def streams(scale: float) -> Iterator[Sides]:
    count = max(10, int(1_000 * scale))

    def side(kind: str) -> Figures:
        return {"rest-streams-1000": peer("streams", kind, count)}

    yield Sides(lambda: side("ours"), lambda: side("baseline"))


BENCHES = [
    Bench(
        "rest-puts",
        "a WSGI application that reads the body and answers, on the same server",
        [Row("rest-puts-16", "puts/s", 0.6, higher_is_better=True)],
        puts,
        repeats=5,
    ),
    Bench(
        "rest-streams",
        "as many connections that wait for their next request",
        [Row("rest-streams-1000", "KiB each", 2.0)],
        streams,
        repeats=3,
    ),
]
