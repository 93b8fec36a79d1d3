"""The client against our server: answers, order, what surely was not sent, what nobody knows, and full states."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from queue import Queue
from typing import Any

import pytest
from google.protobuf.message import Message

from datasync.aggregator import KVProtoWriters
from datasync.api import KeyProtoValDeleter
from datasync.errors import (
    AggregateError,
    ClosedError,
    DatasyncError,
    DoneTimeout,
    InvalidArgumentError,
    NotReadyError,
    PermissionDenied,
    PropagationError,
    StoreConnectionError,
    SubscriptionError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.grpcsync import Client, Limits, Server, serve
from datasync.grpcsync.client.session import SessionManager
from datasync.options import with_client_lifetime_ttl, with_prefix, with_ttl
from datasync.syncbase.msg import CONTENT_PROTO
from datasync.syncbase.status import TransportState
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.grpcsync.support import Subscriber
from tests.support.grpc_calls import all_calls_freed
from tests.support.proxy import TcpProxy, free_port
from tests.support.registries import removed, stored, text

#: The options of a client that are seconds.
TIMES = ("send_timeout", "answer_timeout", "keepalive", "keepalive_timeout")


class Journal:
    """A writer that keeps what it was given."""

    def __init__(self) -> None:
        self.puts: list[str] = []

    def put(self, key: str, data: Message, *opts: Any) -> None:
        self.puts.append(key)


# -- answers ----------------------------------------------------------------------------------------------------------


def test_put_and_delete_return_when_the_subscriber_has_applied_them(client: Client, subscriber: Subscriber) -> None:
    assert isinstance(client, KeyProtoValDeleter)
    client.put("k/a", text("1"))
    assert subscriber.changes == [("k/a", "1", None)]
    # C17: the truth about what was deleted
    assert [bool(client.delete("k/a")) for _ in range(2)] == [True, False]
    assert subscriber.changes[1:] == [("k/a", None, "1")]


def test_c9_a_refusal_is_raised_with_the_subscribers_text(server: Server, client: Client) -> None:
    def refuse(event: Any) -> None:
        raise ValueError("no such interface")

    with Subscriber(refuse) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        for attempt in (lambda: client.put("k/a", text("1")), lambda: client.resync({"k/a": text("1")})):
            with pytest.raises(PropagationError, match="agent: ValueError: no such interface") as caught:
                attempt()
            assert list(caught.value.errors) == ["agent"]


def test_c9_a_subscriber_that_leaves_is_neither_a_closed_server_nor_a_broken_session(server: Server) -> None:
    # given a client whose full state has reached a subscriber, and is not answered
    events: Queue[Any] = Queue()
    registration = server.adapter.watch("guest", events, events, "k/")
    with Client(server.address, state=lambda: {"k/a": text("1")}) as client:
        take(events)
        # when the subscriber leaves instead / then the session begins, and is the first one
        registration.close()
        client.wait_ready(PATIENT)
        assert client.status().reconnects == 0
        assert isinstance(client.status().last_error, NotReadyError)
        # and a resync, or a change, of which the same becomes is answered as what it is
        for send in (lambda: client.resync_async({"k/b": text("1")}), lambda: client.put_async("k/c", text("1"))):
            registration = server.adapter.watch("guest", events, events, "k/")
            take(events).done()
            answer = send()
            take(events)
            registration.close()
            with pytest.raises(NotReadyError, match="closed before it was acknowledged by: guest"):
                answer.result(PATIENT)
        assert client.status().reconnects == 0


def test_other_answers_keep_the_class_that_a_local_caller_would_get() -> None:
    with serve("127.0.0.1:0", change_timeout=0.1) as server, Client(server.address) as client:
        events: Queue[Any] = Queue()
        server.adapter.watch("agent", events, None, "k/")
        with pytest.raises(SubscriptionError, match="no subscriber watches 'x'"):
            client.put("x", text("1"))
        with pytest.raises(DoneTimeout, match="by: agent"):
            client.put("k/a", text("1"))
        with pytest.raises(InvalidArgumentError, match="longer than 4096 bytes"):
            client.put("k/" + "x" * 5000, text("1"))
        # and the client is well after all of them
        take(events).done()
        answered = client.put_async("k/b", text("1"))
        take(events).done()
        assert answered.result(PATIENT)


def test_many_requests_are_answered_in_their_order(client: Client, subscriber: Subscriber) -> None:
    # given more requests than the window and the queue hold
    order: list[int] = []
    futures = [client.put_async("k/a", text(str(number))) for number in range(1500)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
    for future in futures:
        assert future.result(30)
    # then they were applied in that order, and none twice
    assert [value for _, value, _ in subscriber.changes] == [str(number) for number in range(1500)]
    wait_until(lambda: len(order) == 1500, "every callback ran")
    assert order == sorted(order)
    assert client.status().ok == 1500


@pytest.mark.parametrize("in_flight", [1, 7])
def test_never_more_in_flight_than_allowed(server: Server, in_flight: int) -> None:
    # I11
    events: Queue[Any] = Queue()
    server.adapter.watch("agent", events, None, "k/", in_flight=100)
    with Client(server.address, in_flight=in_flight) as client:
        futures = [client.put_async(f"k/{number}", text("v")) for number in range(30)]
        held = [take(events) for _ in range(in_flight)]
        assert events.empty()
        status = client.status()
        assert (status.in_flight, status.pending) == (in_flight, 30 - in_flight)
        for event in held:
            event.done()
        for _ in range(30 - in_flight):
            take(events).done()
        assert [bool(future.result(PATIENT)) for future in futures] == [True] * 30


def test_a_resync_keeps_its_place_between_changes(client: Client, subscriber: Subscriber, server: Server) -> None:
    # when changes and a resync are sent without waiting
    before = [client.put_async(f"k/{number}", text("old")) for number in range(50)]
    middle = client.resync_async({"k/0": text("new")})
    after = client.put_async("k/after", text("v"))
    for future in (*before, middle, after):
        assert future.result(PATIENT)
    # then the subscriber saw them in that order
    kinds = [kind for kind, _ in subscriber.seen]
    assert kinds == ["change"] * 50 + ["resync"] + ["change"]
    assert stored(server.adapter.registry) == {"k/0": "new", "k/after": "v"}
    # and an empty one deletes everything (D45)
    client.resync({})
    assert removed(subscriber.events[-1]) == {"k/0": "new", "k/after": "v"}


def test_values_travel_in_binary_form_when_asked_to(server: Server, subscriber: Subscriber) -> None:
    with Client(server.address, content_type=CONTENT_PROTO) as client:
        client.put("k/a", text("\N{SNOWMAN}"))
        client.resync({"k/a": text("2")})
    assert subscriber.changes == [("k/a", "\N{SNOWMAN}", None)]
    assert subscriber.resyncs == [{"k/a": "2"}]


def test_sources_are_told_apart(server: Server, subscriber: Subscriber) -> None:
    # C12
    with Client(server.address, source="red") as red, Client(server.address, source="blue") as blue:
        red.put("k/a", text("r"))
        blue.put("k/a", text("b"))
        red.resync({})
    assert {name: stored(one) for name, one in server.adapter.registries.items()} == {
        "grpc": {},
        "red": {},
        "blue": {"k/a": "b"},
    }


def test_it_works_as_a_member_of_writers(client: Client, subscriber: Subscriber) -> None:
    # C12
    journal = Journal()
    writers = KVProtoWriters(client, journal)
    writers.put("k/a", text("1"))
    assert writers.delete("k/a") is True
    with pytest.raises(AggregateError, match="no subscriber watches"):
        writers.put("x", text("1"))
    assert journal.puts == ["k/a", "x"]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_c16_unusable_arguments_are_refused_before_anything_is_sent(client: Client, subscriber: Subscriber) -> None:
    unusable: list[tuple[type[Exception], Any]] = [
        (InvalidArgumentError, lambda: client.put("", text("v"))),
        (InvalidArgumentError, lambda: client.put(7, text("v"))),  # type: ignore[arg-type]
        (InvalidArgumentError, lambda: client.put("k/a", None)),  # type: ignore[arg-type]
        (InvalidArgumentError, lambda: client.put("k/a", text("v"), "option")),  # type: ignore[arg-type]
        (InvalidArgumentError, lambda: client.delete("")),
        (InvalidArgumentError, lambda: client.resync({"": text("v")})),
        (InvalidArgumentError, lambda: client.resync({"k/a": None})),  # type: ignore[dict-item]
        (UnsupportedError, lambda: client.put("k/a", text("v"), with_ttl(5))),
        (UnsupportedError, lambda: client.put("k/a", text("v"), with_client_lifetime_ttl())),
        (UnsupportedError, lambda: client.delete("k/", with_prefix())),
    ]
    for kind, attempt in unusable:
        with pytest.raises(kind):
            attempt()
    assert subscriber.seen == []
    assert client.status().failed == 0


@pytest.mark.parametrize(
    "options",
    [
        {"target": ""},
        {"source": "a\nb"},
        {"token": "a b"},
        {"in_flight": 0},
        {"max_pending": 0},
        {"state": dict, "keep_state": True},
        *({name: bad} for name in TIMES for bad in (None, float("nan"), float("inf"), 0, -1, "1", True)),
    ],
)
def test_c16_unusable_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        Client(**{"target": "127.0.0.1:1", **options})


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -1, "1"])
def test_c16_an_unusable_timeout_changes_nothing(client: Client, subscriber: Subscriber, bad: Any) -> None:
    for act in (client.wait_ready, client.close):
        with pytest.raises(InvalidArgumentError, match="timeout must be"):
            act(bad)
    # the client is neither closed nor broken
    client.put("k/a", text("1"))


def test_what_is_too_large_is_refused_here_and_harms_no_other(server: Server, subscriber: Subscriber) -> None:
    with Client(server.address, max_message_size=100_000) as client:
        with pytest.raises(InvalidArgumentError, match="more than max_message_size=100000"):
            client.put("k/a", text("x" * 100_000))
        with pytest.raises(InvalidArgumentError, match="resync takes"):
            client.resync({"k/a": text("x" * 100_000)})
        client.put("k/b", text("v"))
    assert subscriber.changes == [("k/b", "v", None)]


# -- surely not sent, or nobody knows ---------------------------------------------------------------------------------


def test_c17_what_could_not_be_sent_says_so_and_why() -> None:
    with Client(f"127.0.0.1:{free_port()}", send_timeout=0.3) as client:
        with pytest.raises(StoreConnectionError, match=r"'k/a' was not sent in time: .*refused"):
            client.put("k/a", text("v"))
        with pytest.raises(NotReadyError, match="was not reached within"):
            client.wait_ready(0.1)
        status = client.status()
        assert (status.state, status.failed, status.silence) == (TransportState.WAITING, 1, None)


def test_c8_a_queue_that_is_full_makes_its_caller_wait_and_then_say_so() -> None:
    with Client(f"127.0.0.1:{free_port()}", send_timeout=60.0, max_pending=1) as client:
        client.put_async("k/a", text("v"))
        client._send_timeout = 0.05
        with pytest.raises(StoreConnectionError, match=r"'k/b' was not sent: 1 requests to .* are already pending"):
            client.put_async("k/b", text("v"))


def test_what_waits_is_sent_when_the_server_comes_up() -> None:
    # given a client without a server
    port = free_port()
    with Client(f"127.0.0.1:{port}") as client, Subscriber() as subscriber:
        future = client.put_async("k/a", text("v"))
        wait_until(lambda: client.status().last_error, "the first attempt has failed")
        # when there is one / then what waited is sent
        with serve(f"127.0.0.1:{port}") as server:
            server.adapter.watch("agent", subscriber.queue, None, "k/")
            try:
                assert future.result(PATIENT)
            except SubscriptionError:  # it was quicker than the subscriber
                client.put("k/a", text("v"))
            client.close()


def test_c17_a_request_without_an_answer_has_an_unknown_outcome_and_is_not_repeated(server: Server) -> None:
    # given a request that the subscriber holds
    events: Queue[Any] = Queue()
    server.adapter.watch("agent", events, None, "k/")
    with TcpProxy(("127.0.0.1", server.port)) as proxy, Client(proxy.address) as client:
        future = client.put_async("k/a", text("v"))
        event = take(events)
        # when the connection breaks / then nobody knows
        proxy.reset()
        with pytest.raises(UnknownOutcome, match="'k/a' was sent and not answered"):
            future.result(PATIENT)
        assert event.done() is True
        # and the client is back, without having sent it again
        client.wait_ready(PATIENT)
        second = client.put_async("k/b", text("v"))
        event = take(events)
        assert [change.get_key() for change in event.get_changes()] == ["k/b"]
        event.done()
        assert second.result(PATIENT)
        status = client.status()
        assert (status.unknown, status.ok, status.reconnects) == (1, 1, 1)


def test_a_peer_that_never_answers_is_left_after_the_answer_timeout() -> None:
    with serve("127.0.0.1:0", change_timeout=60.0) as server:
        events: Queue[Any] = Queue()
        server.adapter.watch("agent", events, events, "k/")
        with TcpProxy(("127.0.0.1", server.port)) as proxy, Client(proxy.address, answer_timeout=0.3) as client:
            with pytest.raises(UnknownOutcome, match=r"no answer for 0\.3 s"):
                client.put("k/a", text("v"))
            take(events).done()
            client.wait_ready(PATIENT)
            proxy.black_hole(up=False, down=True)
            with pytest.raises(UnknownOutcome, match="resync was sent and not answered"):
                client.resync({})
            assert len(take(events).get_values()) == 1


def test_c9_a_resync_that_is_not_answered_in_time_names_the_silent(server: Server) -> None:
    # given a peer that gives up sooner than the subscribers' time is over / then it still hears who was too slow
    with Client(server.address, answer_timeout=4.0) as client:
        events: Queue[Any] = Queue()
        server.adapter.watch("sleepy", None, events, "k/")
        with pytest.raises(DoneTimeout, match="sleepy"):
            client.resync({})
        take(events).done()


def test_a_stream_that_ends_by_age_loses_nothing_and_leaves_nothing_unknown() -> None:
    # given streams that live for a tenth of a second
    with serve("127.0.0.1:0", limits=Limits(stream_age=0.1)) as server, Subscriber() as subscriber:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        with Client(server.address) as client:
            # when requests are sent over a dozen of them
            number = 0
            while client.status().reconnects < 5:
                futures = [client.put_async("k/a", text(str(number + step))) for step in range(50)]
                for future in futures:
                    assert future.result(PATIENT)
                number += 50
        # then each was applied once, in order
        assert [value for _, value, _ in subscriber.changes] == [str(one) for one in range(number)]


def test_a_wrong_token_is_told_at_once_and_a_renewed_one_is_taken_up() -> None:
    with serve("127.0.0.1:0", token=f"{CANARY}-right") as server, Subscriber() as subscriber:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        tokens = [f"{CANARY}-wrong"]
        with Client(server.address, token=lambda: tokens[-1]) as client:
            with pytest.raises(PermissionDenied, match="a valid token is needed"):
                client.put("k/a", text("v"))
            tokens.append(f"{CANARY}-right")
            client.wait_ready(PATIENT)
            client.put("k/a", text("v"))
        with Client(server.address, token=f"{CANARY}-right") as client:
            client.put("k/a", text("v"))


# -- full state on reconnect ------------------------------------------------------------------------------------------


def restarted(port: int, subscriber: Subscriber) -> Server:
    server = serve(f"127.0.0.1:{port}")
    server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
    return server


def test_a_restarted_server_gets_everything_again_from_the_callable() -> None:
    # given a client that knows how to tell its state
    port = free_port()
    truth: dict[str, Message] = {"k/a": text("1")}
    with Subscriber() as first, Subscriber() as second:
        server = restarted(port, first)
        with Client(f"127.0.0.1:{port}", state=lambda: truth) as client:
            client.wait_ready(PATIENT)
            assert first.resyncs == [{"k/a": "1"}]
            # when the server restarts, without any memory
            truth["k/b"] = text("2")
            server.close()
            with restarted(port, second):
                # then it has the state of now, and changes go on after it
                wait_until(lambda: second.resyncs == [{"k/a": "1", "k/b": "2"}], "the state was sent")
                client.put("k/c", text("3"))
                assert second.seen[-1] == ("change", [("k/c", "3", None)])
                client.close()


def test_a_server_that_restarts_just_after_it_got_the_state_gets_no_change_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    running = [serve(f"127.0.0.1:{port}")]
    told: list[int] = []
    tell = SessionManager._send_state

    def tell_and_restart(link: SessionManager) -> None:
        # given a server that starts again between the full state and the first change
        tell(link)
        told.append(1)
        if len(told) == 1:
            running.pop().close()
            running.append(serve(f"127.0.0.1:{port}"))

    monkeypatch.setattr(SessionManager, "_send_state", tell_and_restart)
    with Client(f"127.0.0.1:{port}", state=lambda: {"k/state": text("1")}) as client, Subscriber() as subscriber:
        # when the client goes on / then it has told the state to the new one too
        wait_until(lambda: len(told) == 2, "the state was told again")
        running[0].adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        client.put("k/a", text("2"))
        assert stored(running[0].adapter.registry) == {"k/state": "1", "k/a": "2"}
    running[0].close()


def test_what_was_applied_is_kept_and_sent_again_when_asked_for() -> None:
    port = free_port()
    with Subscriber() as first, Subscriber() as second:
        server = restarted(port, first)
        with Client(f"127.0.0.1:{port}", keep_state=True) as client:
            # given a state of puts, deletes and a resync, and one put that was refused
            client.put("k/gone", text("0"))
            client.resync({"k/a": text("1"), "k/b": text("2")})
            client.put("k/c", text("3"))
            client.delete("k/b")
            with pytest.raises(SubscriptionError):
                client.put("elsewhere", text("4"))
            # nothing was sent before something was applied: a first session is no resync
            assert first.resyncs == [{"k/a": "1", "k/b": "2"}]
            server.close()
            with restarted(port, second):
                wait_until(lambda: second.resyncs == [{"k/a": "1", "k/c": "3"}], "the state was sent")
                client.close()


def test_a_state_that_a_subscriber_refuses_or_that_raises_is_told_in_the_status(server: Server) -> None:
    def refuse(event: Any) -> None:
        raise ValueError("not like this")

    def broken() -> Mapping[str, Message]:
        raise RuntimeError("secret")

    with Subscriber(refuse) as subscriber:
        server.adapter.watch("agent", None, subscriber.queue, "k/")
        # a refusal keeps nothing back
        with Client(server.address, state=lambda: {"k/a": text("1")}) as client:
            client.wait_ready(PATIENT)
            assert "not like this" in str(client.status().last_error)
        # without a state there is no session
        with Client(server.address, state=broken, send_timeout=0.3) as client:
            with pytest.raises(StoreConnectionError, match="RuntimeError"):
                client.put("k/a", text("1"))
            assert "secret" not in str(client.status().last_error)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_closing_waits_for_the_answers_that_are_due(server: Server, subscriber: Subscriber) -> None:
    client = Client(server.address)
    futures = [client.put_async(f"k/{number}", text("v")) for number in range(100)]
    client.wait_ready(PATIENT)
    client.close()
    client.close()
    assert [bool(future.result(0)) for future in futures] == [True] * 100
    for attempt in (lambda: client.put("k/a", text("v")), lambda: client.resync({}), lambda: client.wait_ready(1)):
        with pytest.raises(ClosedError):
            attempt()
    assert client.status().state is TransportState.CLOSED


def test_closing_settles_every_future(server: Server) -> None:
    # given a subscriber that holds one of many requests
    events: Queue[Any] = Queue()
    server.adapter.watch("agent", events, None, "k/")
    client = Client(server.address, in_flight=2)
    futures = [client.put_async(f"k/{number}", text("v")) for number in range(5)]
    futures.append(client.resync_async({}))
    take(events)
    # when it closes / then those that were sent are unknown, the others surely were not sent
    client.close(timeout=0.1)
    kinds = [type(future.exception(0)) for future in futures]
    assert kinds == [UnknownOutcome] * 2 + [ClosedError] * 4


def test_closing_an_unconnected_client_is_prompt() -> None:
    client = Client(f"127.0.0.1:{free_port()}")
    future = client.put_async("k/a", text("v"))
    client.close(timeout=60)
    assert isinstance(future.exception(0), ClosedError)


def test_a_peer_that_accepts_and_says_nothing_holds_up_neither_a_deadline_nor_close() -> None:
    # given something that listens, and never speaks
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        client = Client(f"127.0.0.1:{dumb.getsockname()[1]}", send_timeout=0.2)
        # then a request is given up in its time, long before the attempt to connect is
        assert isinstance(client.put_async("k/a", text("v")).exception(3), StoreConnectionError)
        future = client.put_async("k/b", text("v"))
        client.close()
        assert isinstance(future.exception(0), (ClosedError, StoreConnectionError))


def test_c15_a_callback_may_send_more_and_close_but_not_wait(client: Client, subscriber: Subscriber) -> None:
    # given callbacks that run in the client's own threads
    told: Queue[Any] = Queue()

    def again(_: object) -> None:
        try:
            client.put("k/b", text("v"))
        except DatasyncError as error:
            told.put(error)
        told.put(client.put_async("k/c", text("v")))

    client.put_async("k/a", text("v")).add_done_callback(again)
    # then waiting there is an error instead of a deadlock, and sending works
    refusal = take(told)
    assert "use put_async()" in str(refusal)
    assert take(told).result(PATIENT)
    # and closing from there ends it too
    closed = threading.Event()
    client.put_async("k/d", text("v")).add_done_callback(lambda _: (client.close(), closed.set()))
    assert closed.wait(PATIENT)
    wait_until(lambda: client.status().state is TransportState.CLOSED, "it is closed")


def test_c15_a_callback_that_would_end_the_thread_ends_no_future_but_its_own(
    client: Client, subscriber: Subscriber
) -> None:
    def leave(_: object) -> None:
        raise SystemExit(3)

    # given callbacks that call sys.exit(), in the thread that reads answers
    futures = [client.put_async(f"k/{number}", text("v")) for number in range(20)]
    for future in futures:
        future.add_done_callback(leave)
    # then every request has its answer, and the client goes on
    assert [future.exception(PATIENT) for future in futures] == [None] * 20
    client.put("k/a", text("v"))
    assert client.status().reconnects == 0
    # and the same where requests are given up, by their clock or by close
    for patience in (0.2, 60.0):
        lost = Client(f"127.0.0.1:{free_port()}", send_timeout=patience)
        late = [lost.put_async("k/a", text("v")) for _ in range(3)]
        for future in late:
            future.add_done_callback(leave)
        if patience < 1:
            wait_until(lambda late=late: all(future.done() for future in late), "all are given up")
        lost.close(timeout=0.1)
        assert all(isinstance(future.exception(0), (ClosedError, StoreConnectionError)) for future in late)


def test_callers_that_wait_for_room_are_freed_by_close() -> None:
    client = Client(f"127.0.0.1:{free_port()}", max_pending=1)
    client.put_async("k/a", text("v"))
    caught: Queue[Any] = Queue()

    def wait() -> None:
        try:
            client.put_async("k/b", text("v"))
        except DatasyncError as error:
            caught.put(error)

    thread = threading.Thread(target=wait)
    thread.start()
    client.close()
    assert isinstance(take(caught), (ClosedError, StoreConnectionError))
    thread.join(PATIENT)


def leave_after_an_answer(server: Server) -> None:
    with Client(server.address, state=lambda: {"k/b": text("1")}) as client:
        client.put("k/a", text("2"))


def leave_at_once(server: Server) -> None:
    Client(server.address).close()


def leave_where_the_state_raises(server: Server) -> None:
    def broken() -> Mapping[str, Message]:
        raise RuntimeError

    with Client(server.address, state=broken) as client:
        wait_until(lambda: client.status().last_error, "the state was asked for")


def leave_a_server_that_is_closed(server: Server) -> None:
    with Client(server.address) as client:
        client.wait_ready(PATIENT)
        server.close()
        wait_until(lambda: client.status().last_error, "the session is over")


def leave_what_was_never_there(server: Server) -> None:
    with Client(f"127.0.0.1:{free_port()}") as client:
        wait_until(lambda: client.status().last_error, "it was tried once")


@pytest.mark.parametrize(
    "leave",
    [
        leave_after_an_answer,
        leave_at_once,
        leave_where_the_state_raises,
        leave_a_server_that_is_closed,
        leave_what_was_never_there,
    ],
)
def test_c15_no_call_is_left_to_the_collector_whichever_way_a_client_ends(
    server: Server, subscriber: Subscriber, leave: Callable[[Server], None]
) -> None:
    with all_calls_freed():
        leave(server)
