"""The server, spoken to as any peer speaks: one reply per request, full states, sources, health, limits, the end."""

from __future__ import annotations

import threading
from queue import Queue
from typing import Any
from unittest.mock import create_autospec

import grpc
import grpc.aio
import pytest

from datasync.api import KeyValProtoWatcher, WatchRegistration
from datasync.context import current_source
from datasync.errors import ClosedError, InvalidArgumentError, SubscriptionError
from datasync.events import Op
from datasync.grpcsync import Adapter, Limits, Result, Server, serve
from datasync.grpcsync.datasync_health_pb2 import HealthCheckRequest, HealthCheckResponse
from datasync.grpcsync.protocol import SERVICE, SOURCE_KEY, TAKEN_KEY
from datasync.grpcsync.server.executor import ThreadPerCallExecutor
from datasync.grpcsync.server.health import CHECK, WATCH
from datasync.grpcsync.server.sources import SourcesRegistration
from datasync.syncbase import msg
from datasync.syncbase.msg import CONTENT_PROTO, DataChangeRequest, DataResyncRequests, Seq
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import SubscriptionState
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.grpcsync.support import Feed, Subscriber, Wire
from tests.support.registries import removed, state, stored, text, told, values

#: The options of a server that are seconds.
TIMES = ("change_timeout", "resync_timeout", "keepalive", "keepalive_timeout")


def put(key: str, value: str = "v") -> DataChangeRequest:
    return msg.put_request(key, text(value))


def results(replies: list[msg.DataChangeReply]) -> list[tuple[str, int]]:
    return [(reply.key, reply.result) for reply in replies]


# -- one reply per request --------------------------------------------------------------------------------------------


def test_d43_every_request_gets_its_reply_in_order_whatever_becomes_of_it(server: Server, wire: Wire) -> None:
    def answer(event: Any) -> None:
        if event.get_changes()[0].get_key() == "k/refused":
            raise ValueError("no such interface")

    # given a subscriber that refuses one key
    with Subscriber(answer) as subscriber:
        server.adapter.watch("agent", subscriber.queue, None, "k/")
        # when requests of every fate come on one stream
        replies = wire.changes(
            put("k/a"), put("k/refused"), put("elsewhere"), DataChangeRequest(key="k/b", content=b"{"), put("k/c")
        )
    # then there is a reply for each, in order, and only what was applied is 0
    assert results(replies) == [
        ("k/a", Result.APPLIED),
        ("k/refused", Result.REFUSED),
        ("elsewhere", Result.UNWATCHED),
        ("k/b", Result.INVALID),
        ("k/c", Result.APPLIED),
    ]
    assert "ValueError: no such interface" in replies[1].error_text
    assert "no subscriber watches 'elsewhere'" in replies[2].error_text
    # and what could not be read changed nothing
    assert [change[0] for change in subscriber.changes] == ["k/a", "k/refused", "k/c"]
    assert server.adapter.registry.get("k/b") is None


def test_d44_overlapping_prefixes_and_two_subscribers_make_one_reply(server: Server, wire: Wire) -> None:
    # given one who watches a key twice over, and another who watches it too (C5)
    with Subscriber() as one, Subscriber() as other:
        server.adapter.watch("one", one.queue, None, "k/", "k/a")
        server.adapter.watch("other", other.queue, None, "k/")
        # when it changes / then each hears of it once, and the sender gets one answer
        assert results(wire.changes(put("k/a"))) == [("k/a", 0)]
        assert one.changes == other.changes == [("k/a", "v", None)]


def test_result_0_needs_every_subscriber(server: Server, wire: Wire) -> None:
    def refuse(event: Any) -> None:
        raise RuntimeError("not me")

    with Subscriber() as one, Subscriber(refuse) as other:
        server.adapter.watch("one", one.queue, None, "k/")
        server.adapter.watch("other", other.queue, None, "k/")
        (reply,) = wire.changes(put("k/a"))
    assert (reply.result, "other: RuntimeError: not me" in reply.error_text) == (Result.REFUSED, True)


def test_d44_a_silent_subscriber_stalls_no_stream_for_ever() -> None:
    # given subscribers that have a tenth of a second, one of whom never answers
    with serve("127.0.0.1:0", change_timeout=0.1) as server, Wire(server.address) as wire, Subscriber() as well:
        silent: Queue[Any] = Queue()
        server.adapter.watch("silent", silent, None, "s/")
        server.adapter.watch("well", well.queue, None, "k/")
        # when both get something on one stream
        first, second = wire.changes(put("s/a"), put("k/a"))
        # then the sender is told who did not answer (C9), and the next one is served
        assert (first.result, second.result) == (Result.UNANSWERED, Result.APPLIED)
        assert "silent" in first.error_text
        # and the event is in flight still: its late answer counts
        assert take(silent).done() is True


def test_d46_changes_have_revisions_previous_values_and_the_senders_content_type(
    wire: Wire, subscriber: Subscriber
) -> None:
    # when a key is put in JSON, put in binary form, and deleted
    binary = msg.put_request("k/a", text("2"), CONTENT_PROTO)
    assert results(wire.changes(put("k/a", "1"), binary, msg.delete_request("k/a"))) == [("k/a", 0)] * 3
    # then each change tells what was before it (C6), and revisions grow
    assert subscriber.changes == [("k/a", "1", None), ("k/a", "2", "1"), ("k/a", None, "2")]
    revisions = [event.get_changes()[0].get_revision() for event in subscriber.events]
    assert revisions == sorted(set(revisions))
    assert subscriber.events[-1].get_changes()[0].get_change_type() is Op.DELETE


def test_c6_deleting_what_is_not_there_is_told_and_not_delivered(wire: Wire, subscriber: Subscriber) -> None:
    wire.changes(put("k/a"))
    there, gone, elsewhere = wire.changes(msg.delete_request("k/a"), msg.delete_request("k/a"), msg.delete_request("x"))
    assert [(reply.result, reply.absent) for reply in (there, gone)] == [(0, False), (0, True)]
    assert elsewhere.result == Result.UNWATCHED
    assert len(subscriber.changes) == 2


def test_c6_the_reply_to_a_delete_of_an_absent_key_asks_no_subscription_in_turn(
    server: Server, wire: Wire, subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given subscriptions that can only be found through the index
    monkeypatch.delattr(Registry, "subscriptions")
    # then each key that is not there has its answer
    replies = wire.changes(msg.delete_request("k/none"), msg.delete_request("elsewhere"))
    assert results(replies) == [("k/none", Result.APPLIED), ("elsewhere", Result.UNWATCHED)]
    assert [reply.absent for reply in replies] == [True, True]


def test_an_early_change_waits_for_its_subscriber(server: Server, wire: Wire) -> None:
    # given a change that nobody watched when it came (C2)
    assert wire.changes(put("k/a"))[0].result == Result.UNWATCHED
    # when somebody subscribes / then the state is there
    with Subscriber() as late:
        server.adapter.watch("late", late.queue, late.queue, "k/")
        wait_until(lambda: late.resyncs == [{"k/a": "v"}], "the late subscriber has the state")


def test_many_requests_are_under_way_and_not_more_than_the_window(server: Server) -> None:
    # given a window of 4, and a subscriber that takes everything and answers nothing yet
    limits = Limits(window=4)
    with serve("127.0.0.1:0", limits=limits) as small, Wire(small.address) as wire:
        events: Queue[Any] = Queue()
        small.adapter.watch("agent", events, None, "k/", in_flight=100)
        # when 20 requests come
        feed = Feed(*(put(f"k/{number}") for number in range(20)))
        call = wire.stream(feed)
        held = [take(events) for _ in range(4)]
        # then 4 are under way: the fifth is not read before one is answered
        assert events.empty()
        # (answered in the wrong order, they are replied to in the right one)
        for event in reversed(held):
            event.done()
        replies = [next(call).key for _ in range(4)]
        assert replies == ["k/0", "k/1", "k/2", "k/3"]
        for _ in range(16):
            take(events).done()
        feed.end()
        assert [reply.key for reply in call] == [f"k/{number}" for number in range(4, 20)]


def test_large_values_fill_the_window_by_their_size() -> None:
    # given room for two such values, and far more requests than that
    limits = Limits(window=1000, window_bytes=150_000)
    with serve("127.0.0.1:0", limits=limits) as server, Wire(server.address) as wire:
        events: Queue[Any] = Queue()
        server.adapter.watch("agent", events, None, "k/", in_flight=1000)
        feed = Feed(*(put(f"k/{number}", "x" * 100_000) for number in range(400)))
        call = wire.stream(feed)
        held = [take(events), take(events)]
        # when nothing is answered / then nothing more is read, and gRPC's flow control stops the sender
        taken = feed.taken
        assert events.empty()
        assert taken < 400  # what the buffers on the way hold is far less than 40 MB
        for event in held:
            event.done()
        for _ in range(398):
            take(events).done()
        feed.end()
        assert len(list(call)) == 400


# -- full states ------------------------------------------------------------------------------------------------------


def test_d45_a_resync_replaces_the_state_echoes_its_id_and_tells_what_is_gone(
    wire: Wire, subscriber: Subscriber, server: Server
) -> None:
    # given two keys
    wire.changes(put("k/a", "1"), put("k/b", "2"))
    # when a resync leaves one of them out
    request = msg.resync_requests({"k/b": text("3"), "k/c": text("4")}, msg_id=Seq(originator="peer", seq=9))
    replies = wire.resync(request)
    # then the reply knows the request, and the subscriber what is gone (C7)
    assert replies.msgId == request.msgId
    assert [(one.key, one.result) for one in replies.dataResyncs.replies] == [("k/b", 0), ("k/c", 0)]
    assert subscriber.resyncs == [{"k/b": "3", "k/c": "4"}]
    assert removed(subscriber.events[-1]) == {"k/a": "1"}
    # when it is empty / then everything is
    assert not wire.resync(DataResyncRequests()).HasField("error")
    assert subscriber.resyncs[-1] == {}
    assert removed(subscriber.events[-1]) == {"k/b": "3", "k/c": "4"}
    assert stored(server.adapter.registry) == {}


def test_d45_a_resync_that_is_refused_says_so_for_each_key(server: Server, wire: Wire) -> None:
    def refuse(event: Any) -> None:
        raise ValueError("not today")

    with Subscriber(refuse) as subscriber:
        server.adapter.watch("agent", None, subscriber.queue, "k/")
        replies = wire.resync(msg.resync_requests({"k/a": text("1")}))
    assert "not today" in replies.error.message
    assert [one.result for one in replies.dataResyncs.replies] == [Result.REFUSED]


def test_c8_a_source_has_so_many_keys_and_no_more() -> None:
    # given room for two keys, and both taken
    with (
        serve("127.0.0.1:0", limits=Limits(keys=2)) as server,
        Subscriber() as subscriber,
        Wire(server.address) as wire,
    ):
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        assert [one.result for one in wire.changes(put("k/a", "1"), put("k/b", "2"))] == [0, 0]
        # when a third one comes / then it is refused by name, and what is there may change and go as before
        replies = wire.changes(put("k/c", "3"), put("k/a", "4"), msg.delete_request("k/b"), put("k/c", "5"))
        assert [one.result for one in replies] == [Result.INVALID, 0, 0, 0]
        assert "cannot add 'k/c'" in replies[0].error_text
        # and a full state of three is refused whole
        refused = wire.resync(msg.resync_requests({f"k/{number}": text("1") for number in range(3)}))
        assert refused.result == Result.INVALID
        assert stored(server.adapter.registry) == {"k/a": "4", "k/c": "5"}


def test_a_resync_with_one_bad_item_changes_nothing(server: Server, wire: Wire, subscriber: Subscriber) -> None:
    wire.changes(put("k/a", "1"))
    request = msg.resync_requests({"k/b": text("2")})
    request.dataResyncs.add(key="k/c", content=b"nonsense")
    replies = wire.resync(request)
    assert {one.result for one in replies.dataResyncs.replies} == {Result.INVALID}
    assert "nonsense" not in str(replies)
    assert stored(server.adapter.registry) == {"k/a": "1"}
    assert subscriber.resyncs == []


# -- sources ----------------------------------------------------------------------------------------------------------


def source_of(event: Any) -> str:
    name: str = event.get_context().run(current_source.get)
    return name


def test_c12_each_source_has_a_state_and_resyncs_of_its_own(server: Server, wire: Wire, subscriber: Subscriber) -> None:
    # given two named sources and one that is not named, with a key of the same name each
    with Wire(server.address, (SOURCE_KEY, "red")) as red, Wire(server.address, (SOURCE_KEY, "blue")) as blue:
        for peer, value in ((red, "r"), (blue, "b"), (wire, "d")):
            assert results(peer.changes(put("k/a", value))) == [("k/a", 0)]
        # then the events tell whose they are, and none knows the other's values
        assert [(source_of(event), told(event)) for event in subscriber.events] == [
            ("red", [("k/a", "r", None)]),
            ("blue", [("k/a", "b", None)]),
            ("grpc", [("k/a", "d", None)]),
        ]
        # when one of them resyncs with nothing / then only its own keys are gone
        red.resync(DataResyncRequests())
        assert source_of(subscriber.events[-1]) == "red"
        assert removed(subscriber.events[-1]) == {"k/a": "r"}
        assert {name: stored(one) for name, one in server.adapter.registries.items()} == {
            "grpc": {"k/a": "d"},
            "red": {},
            "blue": {"k/a": "b"},
        }


def test_a_subscription_follows_sources_that_come_later_with_the_prefixes_of_then(server: Server) -> None:
    # given a subscription that has got one prefix more and lost another, before a source first speaks
    with Subscriber() as subscriber, Wire(server.address, (SOURCE_KEY, "late")) as late:
        registration = server.adapter.watch("agent", subscriber.queue, subscriber.queue, "old/")
        registration.register("agent", "new/")
        registration.unregister("old/")
        # when it does / then the subscription has it as it is now
        assert [reply.result for reply in late.changes(put("new/a"), put("old/a"))] == [0, Result.UNWATCHED]
        # when it registers a prefix while there are two sources (C11) / then it has that of both
        registration.register("agent", "old/")
        wait_until(lambda: {"old/a": "v", "new/a": "v"} in subscriber.resyncs, "the prefix came with its state")
        assert late.changes(put("old/b"))[0].result == 0
        # when it closes / then it is gone from both, and its name is free
        registration.close()
        registration.close()
        assert late.changes(put("old/b"))[0].result == Result.UNWATCHED
        server.adapter.watch("agent", subscriber.queue, None, "x/").close()


def test_c11_names_and_prefixes_are_checked_over_all_sources(server: Server) -> None:
    events: Queue[Any] = Queue()
    registration = server.adapter.watch("agent", events, events, "k/")
    with pytest.raises(SubscriptionError, match="'agent' is already there"):
        server.adapter.watch("agent", events, events, "x/")
    with pytest.raises(SubscriptionError, match="not 'other'"):
        registration.register("other", "x/")
    with pytest.raises(SubscriptionError, match="'k/' already"):
        registration.register("agent", "k/")
    with pytest.raises(InvalidArgumentError):
        registration.register("agent", 7)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        server.adapter.watch("nobody", None, None, "x/")
    # what failed has left nothing behind
    server.adapter.watch("nobody", events, None, "x/").close()
    registration.close()
    with pytest.raises(ClosedError):
        registration.register("agent", "x/")


def test_sources_are_bounded_and_their_names_are_checked() -> None:
    with serve("127.0.0.1:0", limits=Limits(sources=2)) as server:
        for name, code in [
            ("one", None),
            ("two", grpc.StatusCode.RESOURCE_EXHAUSTED),
            ("x" * 201, grpc.StatusCode.INVALID_ARGUMENT),
            ("one", None),
        ]:
            with Wire(server.address, (SOURCE_KEY, name)) as wire:
                if code is None:
                    wire.resync(DataResyncRequests())
                else:
                    with pytest.raises(grpc.RpcError) as caught:
                        wire.resync(DataResyncRequests())
                    assert caught.value.code() is code


def test_a_source_that_is_forgotten_takes_its_keys_along_and_may_come_back(subscriber: Subscriber) -> None:
    # given room for one named source
    with serve("127.0.0.1:0", limits=Limits(sources=2)) as server:
        registration = server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        with Wire(server.address, (SOURCE_KEY, "red")) as red, Wire(server.address, (SOURCE_KEY, "blue")) as blue:
            feed = Feed(put("k/a", "r"))
            call = red.stream(feed)
            assert next(call).result == 0
            with pytest.raises(grpc.RpcError):
                blue.changes(put("k/a"))
            # when it is forgotten / then subscribers are told what is gone, and its stream ends
            server.adapter.forget("red").result()
            assert removed(subscriber.events[-1]) == {"k/a": "r"}
            with pytest.raises(grpc.RpcError):
                next(call)
            feed.end()
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            # and its place is free for another, which the same subscriptions watch
            assert results(blue.changes(put("k/a", "b"))) == [("k/a", 0)]
            assert subscriber.changes[-1] == ("k/a", "b", None)
            registration.register("agent", "more/")
            # and it may come back, with nothing
            server.adapter.forget("blue").result()
            assert results(red.changes(put("k/b"), put("more/b"))) == [("k/b", 0), ("more/b", 0)]
            assert sorted(server.adapter.registries) == ["grpc", "red"]
        for name in ("grpc", "blue"):
            with pytest.raises(InvalidArgumentError, match=f"no source '{name}' that can be removed"):
                server.adapter.forget(name)


def test_c15_sources_and_subscriptions_that_come_at_once_all_find_each_other(server: Server) -> None:
    # given threads that make sources, threads that subscribe, and threads that change prefixes, all at one time
    subscribers = [Subscriber() for _ in range(4)]
    start = threading.Barrier(12)

    def subscribe(number: int) -> None:
        start.wait()
        registration = server.adapter.watch(f"agent-{number}", subscribers[number].queue, None, "first/")
        for turn in range(10):
            registration.register(f"agent-{number}", f"{turn}/")
            registration.unregister(f"{turn - 1}/")
        registration.register(f"agent-{number}", "k/")

    def make(number: int) -> None:
        start.wait()
        server.adapter._sources.find(f"source-{number}")

    threads = [threading.Thread(target=subscribe, args=(number,)) for number in range(4)]
    threads += [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENT)
    # then every subscription watches the same prefixes in every source
    for registry in server.adapter.registries.values():
        prefixes = {name: sorted(one.prefixes) for name, one in registry.subscriptions.items()}
        assert prefixes == {f"agent-{number}": ["9/", "first/", "k/"] for number in range(4)}
    for subscriber in subscribers:
        subscriber.close()


def test_nothing_is_fed_to_a_new_source_before_every_subscription_watches_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a source that is being made: its subscription is about to be attached
    entered, gate = threading.Event(), threading.Event()
    attach = SourcesRegistration.attach

    def hesitate(registration: SourcesRegistration, registry: Registry) -> None:
        entered.set()
        gate.wait(PATIENT)
        attach(registration, registry)

    server.adapter.watch("agent", Queue(), None, "k/")
    monkeypatch.setattr(SourcesRegistration, "attach", hesitate)
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(server.adapter._sources.find("red").subscriptions)))
        for _ in range(2)
    ]
    threads[0].start()
    assert entered.wait(PATIENT)
    # when another stream speaks for it too / then it waits as well, instead of finding nobody there
    threads[1].start()
    threads[1].join(0.1)
    gate.set()
    for thread in threads:
        thread.join(PATIENT)
    assert found == [["agent"], ["agent"]]


# -- a bad request ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (DataChangeRequest(content=b"{}"), "must not be empty"),
        (DataChangeRequest(key="k/a", content=b"{}", content_type="text/xml"), "unknown content type 'text/xml'"),
        (DataChangeRequest(key="k/a", content=b"{no"), "not valid JSON"),
        (DataChangeRequest(key="k/a"), "not valid JSON"),
        (DataChangeRequest(key="k/a", content=b"[" * 100_000), "not valid JSON"),
        (DataChangeRequest(key="k/a", content=b"NaN"), "not valid JSON"),
        (DataChangeRequest(key="k/a", content=b'{"a":[-Infinity]}'), "not valid JSON"),
        (DataChangeRequest(key="k/a", content='{"a":1}'.encode("utf-16")), "not valid JSON"),
        (DataChangeRequest(key="k/a", content='{"a":1}'.encode("utf-16-le")), "not valid JSON"),
        (DataChangeRequest(key="k/a", content=b"\xef\xbb\xbf{}"), "not valid JSON"),
        (DataChangeRequest(key="k/a", content=b'"\\ud800"'), "not valid JSON"),
        (DataChangeRequest(key="k/a", content=b'{"a":1}{}'), "not valid JSON"),
        (DataChangeRequest(key="k/a", content=b"\xff", content_type=CONTENT_PROTO), "not valid protobuf"),
        (DataChangeRequest(key="k/a", operationType=7, content=b"{}"), "unknown operation 7"),  # type: ignore[arg-type]
        (DataChangeRequest(key="k/" + "x" * 5000, content=b"{}"), "longer than 4096 bytes"),
        (DataChangeRequest(key="k/" + "\N{SNOWMAN}" * 1400, content=b"{}"), "longer than 4096 bytes"),
    ],
)
def test_c16_a_bad_request_gets_a_clear_answer_and_the_stream_goes_on(
    wire: Wire, subscriber: Subscriber, request_: DataChangeRequest, complaint: str
) -> None:
    bad, good = wire.changes(request_, put("k/good"))
    assert (bad.result, good.result) == (Result.INVALID, Result.APPLIED)
    assert complaint in bad.error_text
    # the answer is small, whatever came, and quotes no value
    assert bad.ByteSize() < 400
    assert "{no" not in bad.error_text
    assert subscriber.changes == [("k/good", "v", None)]


def test_bytes_that_are_no_request_end_the_stream_with_a_status(wire: Wire, subscriber: Subscriber) -> None:
    # given a good request, then something that is none
    call = wire.stream([put("k/a"), b"\xff\xff\xff", put("k/b")])
    # then the good one is answered, and the status says what was wrong, and how far it went
    assert next(call).key == "k/a"
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(call.trailing_metadata())[TAKEN_KEY] == "1"
    with pytest.raises(grpc.RpcError) as caught:
        wire.resync(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        wire.method("unary_unary", CHECK, HealthCheckResponse)(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        next(wire.method("unary_stream", WATCH, HealthCheckResponse)(b"\xff\xff\xff"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("flood", [[("x-long", "y" * 100_000)], [(f"x-{number}", "y" * 200) for number in range(500)]])
def test_a_flood_of_metadata_is_refused_and_the_server_goes_on(
    flood: list[tuple[str, str]], server: Server, wire: Wire, subscriber: Subscriber
) -> None:
    with Wire(server.address, *flood) as flooding:
        for attempt in (lambda: flooding.changes(put("k/a")), lambda: flooding.ping()):
            with pytest.raises(grpc.RpcError) as caught:
                attempt()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert wire.changes(put("k/b"))[0].result == Result.APPLIED
    assert subscriber.changes == [("k/b", "v", None)]


def test_messages_beyond_the_limit_are_refused_before_they_are_read() -> None:
    # given a limit of 100 kB, once of a server of ours and once of an adapter on another's server
    executor = ThreadPerCallExecutor()
    foreign = grpc.server(executor, options=[("grpc.max_receive_message_length", -1)])
    adapter = Adapter(foreign, limits=Limits(message_size=100_000))
    port = foreign.add_insecure_port("127.0.0.1:0")
    foreign.start()
    with serve("127.0.0.1:0", limits=Limits(message_size=100_000)) as server:
        for address in (server.address, f"127.0.0.1:{port}"):
            with Wire(address) as wire:
                # when more comes / then the status says so, for changes and for resyncs
                with pytest.raises(grpc.RpcError) as caught:
                    wire.changes(put("k/a", "x" * 100_000))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                with pytest.raises(grpc.RpcError) as caught:
                    wire.resync(msg.resync_requests({"k/a": text("x" * 100_000)}))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert wire.ping() == "it works"
    adapter.close()
    foreign.stop(None).wait(PATIENT)
    executor.shutdown()


# -- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown", ["", "Bearer wrong", f"{CANARY}-1", f"bearer {CANARY}-1", f"Bearer {CANARY}-1 ", "Bearer \u2713"]
)
def test_a_wrong_token_opens_nothing(shown: str) -> None:
    with serve("127.0.0.1:0", token=[f"{CANARY}-1", f"{CANARY}-2"]) as server:
        metadata = [("authorization", shown)] if shown and shown.isascii() else []
        with Wire(server.address, *metadata) as wire, Subscriber() as subscriber:
            server.adapter.watch("agent", subscriber.queue, None, "k/")
            for attempt in (
                lambda: wire.changes(put("k/a")),
                lambda: wire.resync(DataResyncRequests()),
                lambda: wire.ping(),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    attempt()
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert CANARY not in str(caught.value)
            assert subscriber.seen == []


@pytest.mark.parametrize("token", [f"{CANARY}-1", f"{CANARY}-2"])
def test_any_of_the_tokens_opens_it(token: str) -> None:
    with serve("127.0.0.1:0", token=[f"{CANARY}-1", f"{CANARY}-2"]) as server:
        with Wire(server.address, ("authorization", f"Bearer {token}")) as wire:
            assert wire.ping() == "it works"


@pytest.mark.parametrize("token", ["", "with space", "ümlaut", "new\nline", []])
def test_a_token_that_cannot_be_one_is_refused_without_being_shown(token: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        serve("127.0.0.1:0", token=token)
    assert not token or str(token) not in str(caught.value)


# -- health -----------------------------------------------------------------------------------------------------------


def test_the_health_service_says_when_it_serves_and_when_no_longer(server: Server, wire: Wire) -> None:
    check = wire.method("unary_unary", CHECK, HealthCheckResponse)
    for service in ("", SERVICE):
        assert check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        check(HealthCheckRequest(service="msg.Other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    # given somebody who watches it
    watching = wire.method("unary_stream", WATCH, HealthCheckResponse)(HealthCheckRequest())
    unknown = wire.method("unary_stream", WATCH, HealthCheckResponse)(HealthCheckRequest(service="msg.Other"))
    assert next(watching).status == HealthCheckResponse.SERVING
    assert next(unknown).status == HealthCheckResponse.SERVICE_UNKNOWN
    # when the adapter closes / then that is told
    server.adapter.close()
    assert next(watching).status == HealthCheckResponse.NOT_SERVING
    assert check(HealthCheckRequest()).status == HealthCheckResponse.NOT_SERVING


def test_watchers_of_health_are_bounded(server: Server, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasync.grpcsync.server.health.MAX_WATCHERS", 2)
    watch = wire.method("unary_stream", WATCH, HealthCheckResponse)
    watching = [watch(HealthCheckRequest()) for _ in range(2)]
    for one in watching:
        next(one)
    with pytest.raises(grpc.RpcError) as caught:
        next(watch(HealthCheckRequest()))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # when one goes / then there is room
    watching[0].cancel()

    def welcome() -> bool:
        try:
            return bool(next(watch(HealthCheckRequest())).status == HealthCheckResponse.SERVING)
        except grpc.RpcError:
            return False

    wait_until(welcome, "there is room again")


def test_what_a_subscriber_says_is_cut_to_a_bound(server: Server, wire: Wire) -> None:
    def shout(event: Any) -> None:
        raise ValueError("no" * 100_000)

    with Subscriber(shout) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        assert len(wire.changes(put("k/a"))[0].error_text) == 4000
        assert len(wire.resync(msg.resync_requests({"k/a": text("v")})).error.message) == 4000


# -- the end ----------------------------------------------------------------------------------------------------------


def test_d46_closing_an_adapter_leaves_the_server_of_others_running() -> None:
    # given a server of the application's, with a service of its own beside the adapter
    executor = ThreadPerCallExecutor()
    foreign = grpc.server(executor)
    own = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    foreign.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("app.Own", {"echo": own}),))
    adapter = Adapter(foreign)
    port = foreign.add_insecure_port("127.0.0.1:0")
    foreign.start()
    with Wire(f"127.0.0.1:{port}") as wire, Subscriber() as subscriber:
        adapter.watch("agent", subscriber.queue, None, "k/")
        feed = Feed(put("k/a"))
        open_stream = wire.stream(feed)
        assert next(open_stream).result == 0
        # when the adapter is closed, twice
        adapter.close()
        adapter.close()
        # then its stream ends, later calls are told that it is not there, and the other service is
        with pytest.raises(grpc.RpcError):
            next(open_stream)
        feed.end()
        assert open_stream.code() is grpc.StatusCode.UNAVAILABLE
        for attempt in (lambda: wire.changes(put("k/b")), lambda: wire.resync(DataResyncRequests()), wire.ping):
            with pytest.raises(grpc.RpcError) as caught:
                attempt()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        echo = wire.method("unary_unary", "/app.Own/echo", HealthCheckRequest)
        assert echo(HealthCheckRequest(service="x")).service == "x"
        with pytest.raises(ClosedError):
            adapter.watch("other", subscriber.queue, None, "k/")
    foreign.stop(None).wait(PATIENT)
    executor.shutdown()


def test_d46_no_server_is_an_error_that_says_so() -> None:
    with pytest.raises(InvalidArgumentError, match=r"must be a grpc\.Server, not NoneType"):
        Adapter(None)
    # and so is a server of grpc.aio, which would end every stream in good order and hand on nothing
    with pytest.raises(InvalidArgumentError, match=r"must be a grpc\.Server"):
        Adapter(create_autospec(grpc.aio.Server, instance=True))


def test_closing_sends_the_answers_that_are_there_and_promises_none_for_the_rest() -> None:
    with serve("127.0.0.1:0") as server, Wire(server.address) as wire:
        events: Queue[Any] = Queue()
        server.adapter.watch("agent", events, None, "k/", in_flight=10)
        # given three requests of which the first is answered
        feed = Feed(put("k/0"), put("k/1"), put("k/2"))
        call = wire.stream(feed)
        held = [take(events) for _ in range(3)]
        held[0].done()
        assert next(call).key == "k/0"
        # when the third is answered out of turn and the server closes
        # then the second has no answer, and none is made up
        held[2].done()
        server.close()
        with pytest.raises(grpc.RpcError):
            next(call)
        feed.end()
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(call.trailing_metadata())[TAKEN_KEY] == "3"


def test_an_old_stream_ends_in_order_and_tells_how_far_it_went() -> None:
    # given streams that live for a fifth of a second
    with serve("127.0.0.1:0", limits=Limits(stream_age=0.2)) as server, Wire(server.address) as wire:
        events: Queue[Any] = Queue()
        server.adapter.watch("agent", events, None, "k/")
        feed = Feed(put("k/a"))
        call = wire.stream(feed)
        event = take(events)
        # when its time is over while a request is under way / then that one is answered first
        wait_until(lambda: next(iter(server.adapter._streams)).ended_because, "the stream is of age")
        event.done()
        assert next(call).result == 0
        with pytest.raises(grpc.RpcError):
            next(call)
        feed.end()
        assert dict(call.trailing_metadata())[TAKEN_KEY] == "1"
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_c18_status_tells_of_every_source(server: Server, wire: Wire, subscriber: Subscriber) -> None:
    server.adapter.wait_ready(1)
    wire.changes(put("k/a"))
    with Wire(server.address, (SOURCE_KEY, "red")) as red:
        red.changes(put("k/a"))
        status = server.adapter.status()
    assert (status.name, sorted(status.sources)) == ("grpc", ["grpc", "red"])
    agent = status.subscriptions["agent"]
    assert (agent.state, agent.ok, agent.prefixes) == (SubscriptionState.SYNCED, 2, ("k/",))
    server.adapter.close()
    with pytest.raises(ClosedError):
        server.adapter.wait_ready(1)


def test_the_adapter_is_a_watcher_by_protocol(server: Server) -> None:
    assert isinstance(server.adapter, KeyValProtoWatcher)
    with server.adapter.watch("agent", Queue(), None, "k/") as registration:
        assert isinstance(registration, WatchRegistration)


def test_an_address_in_use_is_an_error_and_not_shared_in_silence(server: Server) -> None:
    with pytest.raises(InvalidArgumentError, match=f"cannot listen on '127.0.0.1:{server.port}'"):
        serve(server.address)


def test_a_socket_in_the_file_system_serves_too(tmp_path: Any) -> None:
    path = f"unix:{tmp_path}/sync.sock"
    with serve(path) as server, Wire(path) as wire:
        assert (server.address, server.port, wire.ping()) == (path, 0, "it works")


@pytest.mark.parametrize(
    "options",
    [
        {"limits": {"window": 0}},
        {"limits": {"stream_age": -1}},
        {"max_age": 0},
        {"max_connections": 0},
        {"name": ""},
        {"name": "a\nb"},
        *({name: bad} for name in TIMES for bad in (None, float("nan"), 0)),
    ],
)
def test_c16_unusable_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        if "limits" in options:
            options = {"limits": Limits(**options["limits"])}
        serve("127.0.0.1:0", **options)


def test_a_resync_under_several_prefixes_has_each_key_once(server: Server, wire: Wire) -> None:
    # C5
    with Subscriber() as subscriber:
        server.adapter.watch("agent", None, subscriber.queue, "k/", "k/long/", "none/")
        wire.resync(msg.resync_requests({"k/a": text("1"), "k/long/b": text("2")}))
        assert values(subscriber.events[0]) == {"k/": {"k/a": "1"}, "k/long/": {"k/long/b": "2"}, "none/": {}}
        assert state(subscriber.events[0]) == {"k/a": "1", "k/long/b": "2"}
