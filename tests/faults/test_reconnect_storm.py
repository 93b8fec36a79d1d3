"""I13: what a crowd does to a server that comes back.

What holds, by simulation (``tests/runtime/test_backoff.py``) and here with real clients, for pauses with full jitter
from 0.1 s to 30 s, of which the first one after a break is from a span of 1 s:

- In the first seconds nobody can be held to a tenth: who is to be back within 2 s after a short break must try at least
  once in 2 s. The worst second of a break is its first, with 1.8 attempts per client (it was 3.9 when the pauses began
  with 0.1 s), and they decline from there on.
- From half a minute of an outage on, and at the moment when the server is back, no second has more than a tenth of the
  clients: one attempt each 15 s on the average is 7 %, and chance adds to that: of 100 trials with 500 clients 2 have a
  second above 10 %, none above 12 %.
- Of all attempts of an outage, the worst second holds 22 % after 30 s, 13 % after two minutes, 7 % after five.
- After a break of up to 0.5 s 99 % of the clients are back 1.5 s after the server; after long ones within 30 s.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datasync.grpcsync import Client
from datasync.grpcsync import serve as serve_grpc
from datasync.grpcsync.client import session
from datasync.keyval import reader
from datasync.keyval.etcd.client import EtcdClient
from datasync.restsync import Adapter as RestAdapter
from datasync.restsync import serve as serve_rest
from datasync.restsync import wsgi_app
from datasync.runtime.backoff import Backoff
from tests.conftest import PATIENT, wait_until
from tests.faults.workloads import measurements as measure
from tests.faults.workloads.crowd import Crowd, Gate
from tests.support.child_process import Peer as Program
from tests.support.servers import EtcdServer, find_etcd
from tests.support.timing import at_most

#: Seconds after which a session counts as one that was there; before that its end is one more failed attempt.
SETTLED = 1.2
#: Seconds in which a crowd must be back: the longest pause, an attempt that failed because all came at once, another
#: pause, and time for a busy machine.
BACK = 100.0


class Scene(NamedTuple):
    """A server that counts who watches it, and where it listens."""

    port: int
    watchers: Callable[[], int]


@contextmanager
def grpc_server() -> Iterator[Scene]:
    with serve_grpc("127.0.0.1:0", max_calls=3000) as server:
        yield Scene(server.port, lambda: server.adapter.status().streams)


@contextmanager
def etcd_server() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as folder, EtcdServer(find_etcd("3.5"), Path(folder)) as server:
        port = server.port
        yield Scene(port, lambda: int(server.metric("etcd_debugging_mvcc_watcher_total")))


@contextmanager
def rest_server() -> Iterator[Scene]:
    adapter = RestAdapter("rest")
    application = wsgi_app(adapter, max_streams=1000)
    server = serve_rest("127.0.0.1:0", application, max_connections=2000)
    try:
        yield Scene(server.port, lambda: application.streams)
    finally:
        server.close()
        adapter.close()


SERVERS = {"grpc": grpc_server, "rest": rest_server, "etcd": etcd_server}
#: Attempts of one client in the worst second, with what chance adds; a client of etcd asks once why it is refused.
WORST = {"grpc": 2.8, "rest": 2.8, "etcd": 3.8}
KINDS = ["grpc", "rest", pytest.param("etcd", marks=pytest.mark.etcd)]


class Pauses:
    """The pauses of a loop whose ``Backoff`` this makes, each of them as long as *SECONDS*."""

    #: Long enough that grpc, left alone with a channel, would try again many times.
    SECONDS = 1.6

    def __init__(self) -> None:
        self._begun: list[float] = []
        pauses = self

        class Noted(Backoff):
            def next(self) -> float:
                pauses._begun.append(time.monotonic())
                return super().next()

        self._kind = Noted

    def __call__(self, *_: Any, **__: Any) -> Backoff:
        return self._kind(self.SECONDS, self.SECONDS, spread=(1.0, 1.0))

    def wait(self, since: float, count: int) -> list[tuple[float, float]]:
        """Return the second halves of the first *count* pauses that begin after *since*, when they are over.

        A client that reconnects does so to the end of a pause. A call that began before the pause ends in its first
        half, on a busy machine too.
        """
        wait_until(lambda: len([one for one in self._begun if one >= since]) > count, f"{count} pauses are over")
        begun = [one for one in self._begun if one >= since][:count]
        return [(one + self.SECONDS / 2, one + self.SECONDS) for one in begun]


def reconnects(gate: Gate, pauses: list[tuple[float, float]]) -> list[float]:
    return [one for one in gate.attempts for begin, end in pauses if begin <= one < end]


def test_i13_while_a_client_pauses_nothing_of_it_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a client whose pauses are long
    pauses = Pauses()
    monkeypatch.setattr(session, "Backoff", pauses)
    with grpc_server() as server, Gate(("127.0.0.1", server.port)) as gate, Client(gate.address) as client:
        client.wait_ready(PATIENT)
        # when its server is away / then nobody comes while it pauses, and it does try in between
        gone = gate.shut()
        assert reconnects(gate, pauses.wait(gone, 2)) == []
        assert any(attempt >= gone for attempt in gate.attempts)


@pytest.mark.etcd
@pytest.mark.parametrize("when", ["it follows", "it is about to follow"])
def test_i13_while_a_reader_of_etcd_pauses_nothing_of_it_reconnects(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a reader whose pauses are long
    pauses = Pauses()
    monkeypatch.setattr(reader, "Backoff", pauses)
    gone: list[float] = []
    crowd = Crowd()
    with etcd_server() as server, Gate(("127.0.0.1", server.port)) as gate:
        if when == "it is about to follow":
            watch = EtcdClient.open_stream

            def too_late(client: EtcdClient, *arguments: Any) -> Any:
                if not gone:
                    gone.append(gate.shut())
                return watch(client, *arguments)

            monkeypatch.setattr(EtcdClient, "open_stream", too_late)
        crowd.make("etcd", gate.address, 1)
        try:
            # when its server is away, from before its watch or in the middle of it
            if when == "it follows":
                wait_until(lambda: server.watchers() == 1, "the reader follows")
                gone.append(gate.shut())
            wait_until(lambda: gone, "the server is away")
            # then nobody comes while it pauses, and it does try in between
            assert reconnects(gate, pauses.wait(gone[0], 2)) == []
            assert any(attempt >= gone[0] for attempt in gate.attempts)
        finally:
            crowd.drop()


def busiest(attempts: list[float], begin: float) -> int:
    """Attempts in the worst second that begins with one, from *begin* on."""
    later = sorted(one for one in attempts if one >= begin)
    return max((bisect_left(later, one + 1.0) - place for place, one in enumerate(later)), default=0)


class Storm(NamedTuple):
    """How it went; times count from when the server was gone."""

    attempts: list[float]
    back: float
    all_back: float


def storm(kind: str, clients: int, outage: float) -> Storm:
    """Lose and find the server once; nothing is left of it afterwards (I16)."""
    with SERVERS[kind]() as server:
        threads = set(threading.enumerate())
        before = measure.footprint(server.watchers())
        crowd = Program("tests.faults.workloads.crowd")
        crowd.start()
        try:
            empty = crowd.ask("footprint")
            with Gate(("127.0.0.1", server.port)) as gate:
                for _ in range(0, clients, 50):
                    crowd.ask("make", kind=kind, target=gate.address, count=50)
                wait_until(lambda: crowd.ask("ready")["ready"] == clients, "everybody is there", BACK)
                wait_until(lambda: server.watchers() == clients, "the server knows all of them")
                threading.Event().wait(SETTLED)
                gone = gate.shut()
                gate.attempts.clear()
                threading.Event().wait(outage)
                back = gate.open()
                wait_until(lambda: crowd.ask("ready")["ready"] == clients, "everybody is back", BACK)
                all_back = time.monotonic()
                attempts = [one - gone for one in gate.attempts]
                wait_until(lambda: server.watchers() == clients, "the server forgot the connections of before")
                while crowd.ask("drop", count=50)["left"]:
                    pass
                wait_until(lambda: server.watchers() == 0, "the server is alone")
                left = wait_until(
                    lambda: (now := crowd.ask("footprint"))["threads"] <= empty["threads"] and now,
                    "the threads of the crowd have ended",
                )
                # grpc keeps a few descriptors of its own from the first channel on
                assert left["descriptors"] <= empty["descriptors"] + 20
        finally:
            crowd.stop()
        after = measure.footprint_after(before, server.watchers)
        assert after.descriptors <= before.descriptors + 20
        assert not measure.threads_left(threads)
    return Storm(attempts, back - gone, all_back - gone)


@pytest.mark.parametrize("kind", KINDS)
def test_i8_i13_a_crowd_is_back_soon_after_a_short_break_and_does_not_hammer(kind: str) -> None:
    # when 50 clients lose their server for half a second
    seen = storm(kind, 50, 0.5)
    # then in the worst second each tries less than three times (it was four), and they are back within seconds
    assert len(seen.attempts) >= 50
    assert busiest(seen.attempts, 0.0) < WORST[kind] * 50
    assert seen.all_back - seen.back < at_most(8.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_i13_a_large_crowd_after_a_long_outage(kind: str) -> None:
    # when 500 clients (of etcd 250: each has a channel and four threads) lose their server for 45 s
    clients = 250 if kind == "etcd" else 500
    seen = storm(kind, clients, 45.0)
    # then the worst second is the first
    assert busiest(seen.attempts, 0.0) < WORST[kind] * clients
    # and from half a minute on it is a tenth of them at most, with what chance adds in any one trial
    rate = clients / 15
    tenth = max(0.12 * clients, rate + 5.5 * math.sqrt(rate))  # of fewer clients chance has a larger share
    assert busiest(seen.attempts, 30.0) <= tenth
    late = [one for one in seen.attempts if 30.0 <= one < seen.back]
    assert len(late) / (seen.back - 30.0) <= 0.1 * clients
    assert busiest(seen.attempts, seen.back) <= tenth
