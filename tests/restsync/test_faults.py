"""What goes wrong between a client and a server: kills, silence, slow readers, crowds (C3, C8, C13, C15, C17)."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest

from datasync.errors import DatasyncError, StoreConnectionError, UnknownOutcome
from datasync.restsync import Adapter, Client, Server, serve
from datasync.syncbase.status import TransportState
from tests.conftest import PATIENT, take, wait_until
from tests.restsync.support import Subscriber, events_of, raw
from tests.support.proxy import TcpProxy, free_port
from tests.support.registries import changes, is_resync, state, text, told
from tests.support.running import Running
from tests.support.timing import at_most


@pytest.fixture
def proxy(server: Server) -> Iterator[TcpProxy]:
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: TcpProxy) -> Iterator[Client]:
    """A client behind the proxy, which is not patient."""
    with Client(f"http://{proxy.address}", timeout=1.0, connect_timeout=1.0, idle_limit=0.6) as client:
        yield client


def commit(adapter: Adapter, **values: str | None) -> None:
    adapter.registry.submit_changes(changes({f"net/{key}": value for key, value in values.items()}))


def following(client: Client) -> Queue[Any]:
    """The queue of a subscription whose first RESYNC is answered."""
    queue: Queue[Any] = Queue()
    client.watch("w", queue, queue, "net/")
    take(queue).done()
    return queue


def next_change(queue: Queue[Any]) -> Any:
    event = take(queue)
    assert not is_resync(event), event
    event.done()
    return told(event)


# -- breaks


@pytest.mark.parametrize("how", ["drop", "reset", "refuse"])
def test_c3_a_stream_that_breaks_is_resumed_without_a_gap_or_a_resync(
    adapter: Adapter, proxy: TcpProxy, far: Client, how: str
) -> None:
    # given a watcher
    queue = following(far)
    commit(adapter, a="1")
    assert next_change(queue) == [("net/a", "1", None)]
    # when its connection breaks while changes are made
    getattr(proxy, how)()
    commit(adapter, a="2")
    commit(adapter, a=None)
    proxy.heal()
    # then it gets each of them, with the value before, and no RESYNC
    assert next_change(queue) == [("net/a", "2", "1")]
    assert next_change(queue) == [("net/a", None, "2")]
    wait_until(lambda: far.status().reconnects >= 1, "the reconnect is counted")


def test_c13_a_stream_that_breaks_within_a_snapshot_begins_it_again(adapter: Adapter, proxy: TcpProxy) -> None:
    # given a large state, and a connection that is reset in the middle of it
    adapter.registry.propagate_changes(changes({f"net/{number}": "x" * 1000 for number in range(2000)}))
    proxy.reset_after(500_000)
    with Client(f"http://{proxy.address}") as client:
        queue: Queue[Any] = Queue()
        client.watch("w", queue, queue, "net/")
        wait_until(lambda: proxy.accepted >= 2, "it has tried again")
        assert queue.empty()
        # when the connection holds / then there is one RESYNC, whole
        proxy.heal()
        event = take(queue)
        assert len(state(event)) == 2000
        event.done()


def test_c8_a_watcher_that_was_away_too_long_gets_a_resync(server: Server, proxy: TcpProxy) -> None:
    # given a server that remembers two transactions
    with Adapter(history=2) as adapter, serve("127.0.0.1:0", adapter) as small:
        with TcpProxy(("127.0.0.1", small.port)) as way, Client(f"http://{way.address}") as client:
            queue = following(client)
            # when more happens while it is away
            way.refuse()
            for value in "12345":
                commit(adapter, a=value)
            way.heal()
            # then it starts over
            event = take(queue)
            assert is_resync(event)
            assert (event.reason.value, state(event)) == ("compacted", {"net/a": "5"})
            event.done()


@pytest.mark.parametrize("way", [{"up": True, "down": True}, {"up": False, "down": True}])
def test_c13_a_half_open_connection_is_found_within_the_idle_limit(
    adapter: Adapter, proxy: TcpProxy, far: Client, way: dict[str, bool]
) -> None:
    # given a watcher whose packets get lost, without a word
    queue = following(far)
    proxy.black_hole(**way)
    began = time.monotonic()
    wait_until(lambda: far.status().state is TransportState.DOWN, "it has noticed")
    assert time.monotonic() - began < at_most(0.6 + 1.0)  # I14
    # when the way is free again / then it goes on where it was
    commit(adapter, a="1")
    proxy.heal()
    assert next_change(queue) == [("net/a", "1", None)]


def test_a_quiet_stream_is_not_taken_for_a_broken_one(adapter: Adapter, proxy: TcpProxy) -> None:
    # given an idle limit that a busy machine can keep, and a stream that is quiet for longer
    with Client(f"http://{proxy.address}", idle_limit=2.0) as client:
        queue = following(client)
        before = proxy.accepted
        began = time.monotonic()
        silences = []

        def quiet() -> bool:
            silences.append(client.status().silence or 0.0)
            return time.monotonic() - began > 2.5

        wait_until(quiet, "time has passed")
        # then heartbeats have kept it open
        assert proxy.accepted == before
        assert max(silences) < 2.0
        commit(adapter, a="1")
        assert next_change(queue) == [("net/a", "1", None)]


def test_a_delayed_stream_is_late_and_complete(adapter: Adapter, proxy: TcpProxy, far: Client) -> None:
    # a proxy that buffers: everything comes a while later, several events in one piece
    queue = following(far)
    proxy.delay(0.3)
    for value in ("1", "2", "3"):
        commit(adapter, a=value)
    assert [next_change(queue)[0][1] for _ in range(3)] == ["1", "2", "3"]


class Buffering:
    """A proxy that holds back what comes from the server until *size* bytes are together, or the server is silent."""

    def __init__(self, port: int, size: int) -> None:
        self._target, self._size = ("127.0.0.1", port), size
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for act in (self._up, self._down):
                self._threads.append(threading.Thread(target=act, args=(client, server)))
                self._threads[-1].start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with server:
            try:
                while data := client.recv(65536):
                    server.sendall(data)
                server.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        held = b""
        with client:
            try:
                while data := server.recv(65536):
                    held += data
                    if len(held) >= self._size:
                        client.sendall(held)
                        held = b""
            except OSError:
                pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENT)


def test_behind_a_buffering_proxy_heartbeats_push_the_events_out(adapter: Adapter, server: Server) -> None:
    # given a proxy that passes nothing on before 512 bytes have come, and a client that asks for many heartbeats
    buffering = Buffering(server.port, 512)
    try:
        with Client(f"http://127.0.0.1:{buffering.port}", idle_limit=3.0) as client:
            client._reader._target = client._reader._target.replace("heartbeat=1", "heartbeat=0.1")
            queue: Queue[Any] = Queue()
            client.watch("w", queue, queue, "net/")
            # when something happens / then it comes, if late, and in order
            take(queue).done()
            commit(adapter, a="1")
            commit(adapter, a="2")
            assert [next_change(queue)[0][1] for _ in range(2)] == ["1", "2"]
    finally:
        buffering.close()


def test_a_server_that_forgot_everything_is_told_as_such() -> None:
    # given a watcher of a server
    port = free_port()
    with Client(f"http://127.0.0.1:{port}") as client:
        with Adapter() as adapter, serve(f"127.0.0.1:{port}", adapter):
            commit(adapter, a="1", b="2")
            queue = following(client)
        # when another one takes its place, with a state of its own
        with Adapter() as adapter, serve(f"127.0.0.1:{port}", adapter):
            commit(adapter, a="3")
            # then that is a RESYNC which says why, and lists what is gone
            event = take(queue)
            assert (event.reason.value, state(event)) == ("rewound", {"net/a": "3"})
            assert [pair.get_key() for pair in event.get_removed()] == ["net/b"]
            event.done()


# -- writes


def test_c17_every_put_ends_when_its_server_is_killed() -> None:
    # given a server in a process of its own, whose subscriber never answers
    program = """
import sys, threading
from queue import Queue
from datasync.restsync import Adapter, serve
adapter = Adapter()
adapter.watch("silent", Queue(), None, "", in_flight=100)
with serve("127.0.0.1:0", adapter, done_timeout=60) as server:
    print("port", server.port, flush=True)
    threading.Event().wait()
"""
    with Running("-c", program) as process:
        process.wait_for("port ")
        wait_until(lambda: process.output.endswith("\n"), "the line is whole")
        outcomes: list[DatasyncError] = []
        with Client(f"http://127.0.0.1:{int(process.output.split()[1])}", timeout=30) as client:

            def put(number: int) -> None:
                try:
                    client.put(f"k{number}", text("x"))
                except DatasyncError as error:
                    outcomes.append(error)

            threads = [threading.Thread(target=put, args=(number,)) for number in range(20)]
            for thread in threads:
                thread.start()
            wait_until(lambda: len(client.list()) == 20, "all have arrived")
            # when it is killed
            process.send(signal.SIGKILL)
            for thread in threads:
                thread.join(PATIENT)
            # then nobody waits any more, and each knows that it does not know
            assert [type(error) for error in outcomes] == [UnknownOutcome] * 20
            with pytest.raises(StoreConnectionError):
                client.put("k", text("x"))


def test_c17_a_put_whose_answer_is_lost_was_applied_once_and_is_not_repeated(
    proxy: TcpProxy, far: Client, subscriber: Subscriber
) -> None:
    proxy.black_hole(up=False, down=True)
    with pytest.raises(UnknownOutcome):
        far.put("net/a", text("x"))
    proxy.heal()
    far.put("net/b", text("y"))
    assert [change.get_key() for change in subscriber.changes] == ["net/a", "net/b"]


# -- crowds and slow readers


def test_200_event_streams_and_a_put_that_arrives_in_all_of_them(
    adapter: Adapter, subscriber: Subscriber, record_property: Callable[[str, object], None]
) -> None:
    # given 200 streams
    with serve("127.0.0.1:0", adapter) as server, Client(server.url) as client:
        peers = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(200)]
        for peer in peers:
            peer.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for peer in peers:
            seen = b""
            while b"event: synced" not in seen:
                seen += peer.recv(65536)
        # when a key is put
        began = time.monotonic()
        client.put("net/a", text("x"))
        answered = time.monotonic() - began
        # then it is answered, and is in every stream
        for peer in peers:
            seen = b""
            while b"\n\n" not in seen:
                seen += peer.recv(65536)
            assert events_of(seen.decode())[0][1]["changes"][0]["key"] == "net/a"
        record_property("answered after seconds", answered)
        record_property("in all streams after seconds", time.monotonic() - began)
        for peer in peers:
            peer.close()
        # and when the peers have gone, so are their streams
        wait_until(lambda: server.application.streams == 0, "the server has noticed")  # type: ignore[attr-defined]


def test_c8_a_reader_that_does_not_read_holds_up_nobody_and_is_ended(adapter: Adapter, subscriber: Subscriber) -> None:
    # given a stream that nobody reads, on a server with little patience
    with serve("127.0.0.1:0", adapter, write_timeout=0.5, max_body=2_000_000) as server, Client(server.url) as client:
        with raw(server) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert slow.recv(10)
            # when far more is put than fits into any buffer
            for _ in range(12):
                client.put("net/a", text("x" * 1_000_000))
            # then every put was answered, and the stream is ended
            wait_until(lambda: server.application.streams == 0, "the slow stream is ended")  # type: ignore[attr-defined]
    assert len(subscriber.changes) == 12


def test_c15_a_server_process_ends_at_once_with_open_streams_when_it_is_asked_to() -> None:
    # given a server in a process of its own, with streams and a client
    program = """
import signal, threading
from datasync.restsync import Adapter, serve
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
with Adapter() as adapter, serve("127.0.0.1:0", adapter) as server:
    print("port", server.port, flush=True)
    ended.wait()
print("threads left:", [t.name for t in threading.enumerate() if t.name.startswith("datasync")], flush=True)
"""
    with Running("-c", program) as process:
        process.wait_for("port ")
        wait_until(lambda: process.output.endswith("\n"), "the line is whole")
        with Client(f"http://127.0.0.1:{int(process.output.split()[1])}") as client:
            client.watch("w", Queue(), Queue(), "")
            client.wait_ready(PATIENT)
            # when it gets SIGTERM / then it ends in order
            process.send(signal.SIGTERM)
            assert process.wait(PATIENT) == 0
            assert "threads left: []" in process.output
