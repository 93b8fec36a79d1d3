"""REST: puts per second from 16 clients in another process, memory of 1,000 event streams, and pages of all keys."""

from __future__ import annotations

import json
import queue
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from datasync.restsync import Adapter, serve, wsgi_app
from datasync.restsync.httpd.connection import ConnectionLimits
from datasync.restsync.httpd.server import Server
from datasync.syncbase.change import ChangeBytes
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


@contextmanager
def pages(scale: float, size: int = 40_000) -> Iterator[Sides]:
    """All keys, a page of 100 after the other; the application is called without a connection."""
    count = max(100, int(size * scale))
    names = [f"net/interface/{number:08d}" for number in range(count)]
    random.Random(1).shuffle(names)
    with Adapter() as adapter:
        adapter.registry.submit_changes({name: ChangeBytes(name, b'{"mtu":1500}') for name in names})
        application = wsgi_app(adapter)

        def ours() -> float:
            began, after, found = time.perf_counter(), "", 0
            while after is not None:
                environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/keys", "QUERY_STRING": f"after={quote(after)}"}
                page = json.loads(b"".join(application(environ, lambda *_: lambda _: None)))
                found, after = found + len(page["items"]), page["next"]
            assert found == count
            return time.perf_counter() - began

        def baseline() -> float:
            began, ordered = time.perf_counter(), sorted(names)
            for begin in range(0, count, 100):
                page = [{"key": name, "value": {"mtu": 1500}} for name in ordered[begin : begin + 100]]
                json.loads(json.dumps({"items": page}))
            return time.perf_counter() - began

        yield Sides(lambda: {"rest-pages": ours()}, lambda: {"rest-pages": baseline()})


BENCHES = [
    Bench(
        "rest-pages",
        "sorting once, and JSON of 100 items after the other",
        [Row("rest-pages", "s", 5.0)],
        pages,
        repeats=3,
    ),
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
