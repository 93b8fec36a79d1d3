"""Failures between two processes: kills, half-open connections, age, size, slow subscribers, many calls, forks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest

from datasync.errors import DatasyncError, ForkedError, InvalidArgumentError, UnknownOutcome
from datasync.grpcsync import Client, Limits, Result, Server, serve
from datasync.syncbase import msg
from datasync.syncbase.msg import DataResyncRequests
from tests.conftest import PATIENT, take, wait_until
from tests.grpcsync.support import Feed, Subscriber, Wire
from tests.support.proxy import TcpProxy, free_port
from tests.support.registries import is_resync, stored, text
from tests.support.running import Running
from tests.support.timing import at_most

#: A client that streams for ever: target, then a line for each hundred answers.
SENDER = """
import sys
from collections import deque
from google.protobuf.wrappers_pb2 import StringValue
from datasync.grpcsync import Client
client = Client(sys.argv[1])
client.wait_ready(10)
waiting = deque()
number = 0
while True:
    waiting.append(client.put_async(f"k/{number % 10}", StringValue(value=str(number))))
    number += 1
    if len(waiting) > 50:
        waiting.popleft().result()
    if number % 100 == 0:
        print("sent", number, flush=True)
"""

#: A server whose subscriber answers everything but keys that end in "held".
RECEIVER = """
import sys
from queue import Queue
from datasync.grpcsync import serve
events = Queue()
server = serve("127.0.0.1:" + sys.argv[1])
server.adapter.watch("agent", events, events, "k/", in_flight=1000)
print("ready", flush=True)
while True:
    event = events.get()
    if not hasattr(event, "get_changes") or not event.get_changes()[0].get_key().endswith("held"):
        event.done()
"""


def ended(*futures: Any) -> bool:
    return all(future.done() for future in futures)


def test_a_client_killed_mid_stream_leaves_no_half_event_and_no_stream(server: Server, subscriber: Subscriber) -> None:
    # given a client in a process of its own, in full flight
    with Running("-c", SENDER, server.address) as sender:
        sender.wait_for("sent 300")
        # when it is killed
        sender.send(signal.SIGKILL)
        sender.wait()
    # then the server lets its stream go, and every change that arrived was whole and in order (C4)
    wait_until(lambda: server.adapter.status().streams == 0, "the stream is gone")
    wait_until(subscriber.queue.empty, "what arrived is handled")
    numbers = [int(value) for _, value, _ in subscriber.changes]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 200  # those whose answer the sender has waited for
    # and the state is what was delivered last
    last = {key: value for key, value, _ in subscriber.changes}
    assert stored(server.adapter.registry) == last


def test_every_future_ends_when_the_server_is_killed_with_requests_in_flight() -> None:
    # given a server in a process of its own that holds some answers back
    port = free_port()
    with (
        Running("-c", RECEIVER, str(port)) as receiver,
        Client(f"127.0.0.1:{port}", in_flight=20, send_timeout=60) as client,
    ):
        receiver.wait_for("ready")
        client.wait_ready(PATIENT)
        answered = client.put_async("k/a", text("v"))
        assert answered.result(PATIENT)
        futures = [client.put_async(f"k/{number}held", text("v")) for number in range(40)]
        wait_until(lambda: client.status().in_flight == 20, "the window is full")
        # when it is killed
        receiver.send(signal.SIGKILL)
        receiver.wait()
        # then what was sent is unknown at once
        wait_until(lambda: ended(*futures[:20]), "every request that was sent is settled")
        assert {type(future.exception(0)) for future in futures[:20]} == {UnknownOutcome}
        # and what was not is sent to the server that comes back, and settled with it
        with Running("-c", RECEIVER, str(port)) as again:
            again.wait_for("ready")
            wait_until(lambda: client.status().in_flight == 20, "the rest was sent")
            again.send(signal.SIGKILL)
            again.wait()
            wait_until(lambda: ended(*futures), "every future has ended")
            assert {type(future.exception(0)) for future in futures[20:]} == {UnknownOutcome}


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("way", [{"up": True, "down": True}, {"up": True, "down": False}, {"up": False, "down": True}])
def test_i14_a_half_open_connection_is_detected_by_either_side(way: dict[str, bool], side: str) -> None:
    # given one side with a keepalive of one second, and another with a long one
    patience: dict[str, dict[str, Any]] = {
        one: {"keepalive": 1.0, "keepalive_timeout": 0.5}
        if one == side
        else {"keepalive": 900, "keepalive_timeout": 900}
        for one in ("client", "server")
    }
    with serve("127.0.0.1:0", change_timeout=60.0, **patience["server"]) as server, Subscriber() as subscriber:
        events: Queue[Any] = Queue()
        server.adapter.watch("agent", events, None, "k/")
        server.adapter.watch("other", subscriber.queue, None, "other/")
        with (
            TcpProxy(("127.0.0.1", server.port)) as proxy,
            Client(proxy.address, answer_timeout=60.0, **patience["client"]) as client,
        ):
            # when a request waits for its reply, and the connection drops everything
            future = client.put_async("k/a", text("v"))
            take(events)
            proxy.black_hole(**way)
            # then its outcome is unknown, and the stream gone: long before any other limit (the end of one side reaches
            # the other through the proxy)
            error = future.exception(PATIENT)
            assert isinstance(error, UnknownOutcome)
            wait_until(lambda: server.adapter.status().streams == 0, "the stream is gone")
            # and when the connection works again, the client reconnects
            proxy.heal()
            client.wait_ready(PATIENT)
            assert client.put_async("other/b", text("v")).result(PATIENT)


def test_connections_that_are_of_age_lose_nothing() -> None:
    # given connections that live for half a second (GOAWAY)
    with serve("127.0.0.1:0", max_age=0.5) as server, Subscriber() as subscriber:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        with Client(server.address) as client:
            number = 0
            while client.status().reconnects < 4:
                client.put("k/a", text(str(number)))
                number += 1
        # then nothing that was sent over them was lost, repeated or unknown
        assert [value for _, value, _ in subscriber.changes] == [str(one) for one in range(number)]
        assert client.status().unknown == 0


def test_a_connection_closed_for_its_age_is_handled_like_any_other_failure(
    server: Server, subscriber: Subscriber
) -> None:
    # given a server that closes connections (GOAWAY, then abort) whose streams would last longer
    with serve("127.0.0.1:0", max_age=0.3, limits=Limits(stream_age=60)) as old:
        old.adapter.watch("agent", subscriber.queue, None, "k/")
        with Client(old.address) as client:
            told, number = [], 0
            while client.status().reconnects < 3:
                try:
                    client.put("k/a", text(str(number)))
                    told.append(number)
                except UnknownOutcome:
                    pass
                number += 1
        # then nothing was repeated, and what was reported as applied was
        applied = [int(value) for _, value, _ in subscriber.changes]
        assert applied == sorted(set(applied))
        assert set(told) <= set(applied)
        assert number - len(told) <= 3


def test_4_mib_pass_and_64_mib_are_refused_on_either_side(server: Server, client: Client) -> None:
    with Subscriber() as subscriber, Wire(server.address) as wire:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        large, huge = text("x" * 4 * 1024 * 1024), text("x" * 64 * 1024 * 1024)
        client.put("k/large", large)
        client.resync({"k/large": large, "k/other": large})
        with pytest.raises(InvalidArgumentError, match="more than"):
            client.put("k/huge", huge)
        # a peer that does not look first gets a status, and the server is well
        with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
            wire.changes(msg.put_request("k/huge", huge))
        assert wire.changes(msg.put_request("k/small", text("v")))[0].result == Result.APPLIED
    assert sorted(stored(server.adapter.registry)) == ["k/large", "k/other", "k/small"]


def test_c8_a_slow_consumer_slows_its_own_sender_only(server: Server) -> None:
    # given a subscriber that takes its time, and one that does not
    gate = threading.Event()
    with Subscriber(lambda event: (gate.wait(PATIENT), None)[1]) as slow, Subscriber() as quick:
        server.adapter.watch("slow", slow.queue, None, "slow/")
        server.adapter.watch("quick", quick.queue, None, "quick/")
        with Client(server.address) as patient, Client(server.address) as other:
            held = [patient.put_async(f"slow/{number}", text("v")) for number in range(100)]
            # when the slow one holds everything up / then the other sender does not notice
            for number in range(100):
                other.put(f"quick/{number}", text("v"))
            assert not any(future.done() for future in held)
            gate.set()
            for future in held:
                assert future.result(PATIENT)


def test_200_open_streams_do_not_keep_a_call_waiting_nor_the_server_from_closing(server: Server) -> None:
    # given 200 streams on one server, each with a request answered
    with Subscriber() as subscriber, Wire(server.address) as wire:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        feeds = [Feed(msg.put_request(f"k/{number}", text("v"))) for number in range(200)]
        calls = [wire.stream(feed) for feed in feeds]
        for call in calls:
            assert next(call).result == 0
        assert server.adapter.status().streams == 200
        # then another call is served
        assert wire.ping() == "it works"
        wire.resync(DataResyncRequests())
        # when the server closes / then it does so within its bound (C15), and every stream is told
        begin = time.monotonic()
        server.close()
        assert time.monotonic() - begin < at_most(4.0)
        codes = set()
        for call in calls:
            with pytest.raises(Exception, match="UNAVAILABLE"):
                next(call)
            codes.add(call.code().name)
        for feed in feeds:
            feed.end()
        assert codes == {"UNAVAILABLE"}
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("datasync-grpcsync")]


def test_more_calls_than_allowed_are_turned_away_and_the_others_go_on() -> None:
    with serve("127.0.0.1:0", max_calls=3) as server, Wire(server.address) as wire:
        feeds = [Feed() for _ in range(3)]
        calls = [wire.stream(feed) for feed in feeds]
        wait_until(lambda: server.adapter.status().streams == 3, "three streams are open")
        with pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
            wire.ping()
        feeds[0].end()
        assert list(calls[0]) == []

        def served() -> bool:
            try:
                return wire.ping() == "it works"
            except Exception:
                return False

        wait_until(served, "there is room again")
        for feed in feeds[1:]:
            feed.end()
        for call in calls[1:]:
            assert list(call) == []


def test_i12_a_stuck_consumer_leaves_memory_bounded() -> None:
    # given a subscriber that never answers, and a sender that does not wait for answers
    limits = Limits(window=8)
    with serve("127.0.0.1:0", limits=limits, change_timeout=60.0) as server, Wire(server.address) as wire:
        events: Queue[Any] = Queue()
        server.adapter.watch("agent", events, None, "k/")
        feed = Feed(*(msg.put_request(f"k/{number}", text("x" * 10_000)) for number in range(1000)))
        call = wire.stream(feed)
        take(events)
        # when it has sent what the line takes / then the server holds a window of it, and the sender is stopped
        wait_until(lambda: len(stored(server.adapter.registry)) == 8, "the window is full")
        assert server.adapter.status().subscriptions["agent"].pending <= 8
        call.cancel()
        feed.end()


def test_i9_every_future_ends_while_the_connection_breaks_repeatedly(server: Server) -> None:
    # given a subscriber that acknowledges, and a connection that breaks every few requests, in the middle of messages
    with Subscriber() as subscriber, TcpProxy(("127.0.0.1", server.port)) as proxy:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        with Client(proxy.address, in_flight=8) as client:
            futures = []
            for number in range(300):
                futures.append(client.put_async(f"k/{number}", text(str(number))))
                if number % 60 == 30:
                    client.wait_ready(PATIENT)
                    proxy.reset_after(200)
                    wait_until(lambda: proxy.budget == 0, "the line broke")
                    proxy.heal()
            # then every future ends, applied or unknown, and nothing else
            kinds: dict[str, int] = {}
            for future in futures:
                error = future.exception(PATIENT)
                kinds[type(error).__name__] = kinds.get(type(error).__name__, 0) + 1
            assert set(kinds) <= {"NoneType", "UnknownOutcome"}
            assert kinds.get("UnknownOutcome", 0) <= 5 * 8
        # and nothing was applied twice, nor out of order (C17)
        applied = [int(value) for _, value, _ in subscriber.changes]
        assert applied == sorted(set(applied))
        # and what was reported as applied is applied
        told = {number for number, future in enumerate(futures) if future.exception(0) is None}
        assert told <= set(applied)


def in_child(check: Callable[[], object]) -> int:
    """Run *check* in a forked child; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_c15_i17_a_forked_child_can_do_no_harm(server: Server, client: Client, subscriber: Subscriber) -> None:
    # given a server and a client in full working order
    client.put("k/a", text("v"))
    queue: Queue[Any] = Queue()

    def child() -> None:
        for attempt in (
            lambda: client.put("k/b", text("v")),
            lambda: client.delete("k/b"),
            lambda: client.resync({}),
            client.status,
            lambda: client.wait_ready(1),
            lambda: server.adapter.watch("child", queue, None, "k/"),
            server.adapter.status,
        ):
            try:
                attempt()
            except ForkedError:
                continue
            raise AssertionError("no ForkedError")
        client.close()
        server.close()

    # when the process forks / then the child is refused at every door, hangs nowhere, and closes nothing
    assert in_child(child) == 0
    client.put("k/b", text("v"))
    assert [change[0] for change in subscriber.changes] == ["k/a", "k/b"]


def test_i16_a_hundred_clients_leave_nothing_behind(server: Server, subscriber: Subscriber) -> None:
    # given the threads and streams of now
    for number in range(100):
        with Client(server.address, source=f"source-{number % 10}") as client:
            client.put("k/a", text(str(number)))
    # then none is left of those that came and went
    wait_until(lambda: server.adapter.status().streams == 0, "every stream is gone")
    wait_until(
        lambda: not [one for one in threading.enumerate() if one.name.startswith("datasync-grpcsync")],
        "every thread is gone",
    )
    assert len(subscriber.changes) == 100
    assert not any(is_resync(event) for event in subscriber.events)


@pytest.fixture
def starve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the next thread whose name begins like that fail to start, as where there are too many."""
    names: list[str] = []
    start = threading.Thread.start

    def try_to_start(thread: threading.Thread) -> None:
        if names and thread.name.startswith(names[0]):
            names.clear()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", try_to_start)
    return names.append


def test_a_call_for_which_there_is_no_thread_waits_and_the_server_goes_on(
    server: Server, wire: Wire, starve: Callable[[str], None]
) -> None:
    # given a call that gets no thread
    starve("datasync-grpcsync-call")
    waiting = threading.Thread(target=wire.ping)
    waiting.start()
    with Wire(server.address) as other:

        def both_served() -> bool:
            return other.ping() == "it works" and not waiting.is_alive()

        # when others end / then it has its turn, and nobody is turned away
        wait_until(both_served, "the call that waited is served")


def test_c9_every_future_ends_when_the_client_gets_no_thread(
    server: Server, subscriber: Subscriber, starve: Callable[[str], None]
) -> None:
    # given a client whose thread for the replies does not start
    starve("datasync-grpcsync-replies")
    with Client(server.address) as client:
        futures = [client.put_async(f"k/{number}", text(str(number))) for number in range(5)]
        # then each request is answered over the next stream, or unknown; no answer goes to another one
        for future in futures:
            assert isinstance(future.exception(PATIENT), (UnknownOutcome, type(None)))
        client.put("k/a", text("v"))
        # and those that were reported as applied are
        told = {str(number) for number, future in enumerate(futures) if future.exception(0) is None}
        assert told <= {value for _, value, _ in subscriber.changes}
        assert "belongs to no request" not in str(client.status().last_error)


def test_errors_are_all_of_the_house(server: Server) -> None:
    # nothing of grpc leaks out of the client
    with Client(f"127.0.0.1:{free_port()}", send_timeout=0.1) as client:
        with pytest.raises(DatasyncError):
            client.put("k/a", text("v"))
