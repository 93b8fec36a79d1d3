"""A new session of a sender fences off the previous one: its leftover requests are not applied after the new state."""

from __future__ import annotations

import threading
from queue import Queue
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.grpcsync import Client, Limits, Server, serve
from datasync.grpcsync.protocol import DATA_RESYNCS
from datasync.grpcsync.server import fencing as fencing
from datasync.grpcsync.server.fencing import SessionFences
from datasync.syncbase.msg import DataResyncReplies, DataResyncRequests
from datasync.syncbase.msg.convert import CONTENT_JSON, resync_requests
from datasync.syncbase.msg.datamsg_pb2 import Seq
from tests.conftest import PATIENT, take, wait_until
from tests.support.proxy import TcpProxy
from tests.support.registries import is_resync, plain, text
from tests.support.timing import at_most


def test_c3_what_a_dead_line_still_holds_is_not_applied_after_the_full_state_that_settled_it() -> None:
    # given a sender whose requests wait at the server for a slow subscriber
    wanted = {f"k/{number}": text("old") for number in range(20)}
    events: Queue[Any] = Queue()
    with (
        serve("127.0.0.1:0", limits=Limits(window=1), change_timeout=60.0, resync_timeout=0.2) as server,
        TcpProxy(("127.0.0.1", server.port)) as line,
        TcpProxy(("127.0.0.1", server.port)) as other,
        Client(f"ipv4:{line.address},{other.address}", answer_timeout=0.5, state=lambda: wanted) as client,
    ):
        server.adapter.watch("agent", events, events, "k/")
        client.wait_ready(PATIENT)
        registry = server.adapter.registry
        take(events).done()  # the full state
        held = [client.put_async(key, value) for key, value in wanted.items()]
        first = take(events)
        wait_until(lambda: client.status().in_flight == len(held), "all but perhaps the last one are on their way")
        # when the connection is half open: the server does not notice, and the sender reconnects over another one
        wanted.update({key: text("new") for key in wanted})
        line.freeze()
        line.deafen()
        wait_until(lambda: client.status().reconnects and other.accepted, "the sender is back")
        assert all(one.done() for one in held)
        wait_until(lambda: _values(registry) == {"new"}, "the full state is there")
        # and the subscriber goes on, so that there is room for the requests of the first connection
        first.done()
        told = [take(events)]
        told[0].done()
        # then none of them is applied
        assert is_resync(told[0])
        client.put_async("k/0", text("newer"))
        change = take(events)
        assert [plain(one.get_value(StringValue())) for one in change.get_changes()] == ["newer"]
        change.done()
        assert {key: value for key, value in _state(registry).items() if value == "old"} == {}


def _state(registry: Any) -> dict[str, str]:
    return {pair.get_key(): plain(pair.get_value(StringValue())) for pair in registry.items()}


def _values(registry: Any) -> set[str]:
    return set(_state(registry).values())


def test_c15_a_resync_whose_sender_has_gone_keeps_no_thread(server: Server) -> None:
    # given a subscriber that does not acknowledge, and a long timeout
    events: Queue[Any] = Queue()
    server.adapter.watch("agent", events, events, "k/")
    channel = grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
    call = channel.unary_unary(DATA_RESYNCS, DataResyncRequests.SerializeToString, DataResyncReplies.FromString)
    request = resync_requests({"k/a": text("1")}, CONTENT_JSON, Seq())
    future = call.future(request, timeout=60)
    event = take(events)
    assert [one for one in threading.enumerate() if one.name.startswith("datasync-grpcsync-call")]
    # when the sender cancels
    future.cancel()
    # then its thread ends at once, long before the timeout
    wait_until(
        lambda: not [one for one in threading.enumerate() if one.name.startswith("datasync-grpcsync-call")],
        "the thread of the call has ended",
        at_most(2.0),
    )
    event.done()
    channel.close()


def test_a_session_counts_until_a_newer_one_begins() -> None:
    fences = SessionFences()
    ended: list[str] = []
    with fences.of("s", "sender/1") as first, fences.of("s", "sender/2") as second:
        # given a session that takes requests
        assert first.begin(lambda: ended.append("first"))
        assert first.enter()
        first.leave()
        # when the next one begins / then the first is ended, takes no more requests and cannot begin again
        assert second.begin()
        assert ended == ["first"]
        assert not first.enter()
        assert not first.begin()
        assert second.enter()
        second.leave()


def test_a_session_that_is_handing_something_over_is_waited_for_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fencing, "CLOSE_TIMEOUT", 0.05)
    fences = SessionFences()
    with fences.of("s", "sender/1") as first, fences.of("s", "sender/2") as second:
        first.begin()
        assert first.enter()
        # a submission that does not return: the new session is rejected, and may try again
        assert not second.begin()
        first.leave()
        assert second.begin()


def test_senders_are_fenced_separately_and_need_no_session_metadata() -> None:
    fences = SessionFences()
    with (
        fences.of("s", "one/2") as one,
        fences.of("s", "two/1") as two,
        fences.of("t", "one/1") as three,
        fences.of("s", "") as silent,
        fences.of("s", "one/x") as nonsense,
        fences.of("s", "x" * 100 + "/1") as endless,
    ):
        everybody = [one, two, three, silent, nonsense, endless]
        assert all(session.begin() and session.enter() for session in everybody)
        for session in everybody:
            session.leave()


def test_c8_the_number_of_remembered_senders_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fencing, "MAX_REMEMBERED", 20)
    fences = SessionFences()
    with fences.of("s", "busy/7") as busy:
        busy.begin()
        for number in range(100):
            with fences.of("s", f"sender{number}/1") as session:
                session.begin()
        assert len(fences._fences) <= 21
        # then the one with a call is still known
        with fences.of("s", "busy/6") as late:
            assert not late.begin()
