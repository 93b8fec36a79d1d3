"""The outcome of a request, for every status and reply of a server: applied, certainly not applied, or unknown.

A wrong "certainly not" makes a caller repeat what was done; a wrong "unknown" is only unkind.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc
import pytest

from datasync.errors import (
    ClosedError,
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
    UnsupportedError,
)
from datasync.grpcsync import Client
from datasync.grpcsync.error_codes import Result
from datasync.syncbase.msg import DataChangeReply, DataResyncReplies, Seq
from datasync.syncbase.msg.convert import change_reply, resync_replies
from datasync.syncbase.msg.datamsg_pb2 import DEL
from tests.conftest import PATIENT, wait_until
from tests.grpcsync.scripted_peer import Answer, ScriptedPeer, fail, nothing, reply_for, unanswered
from tests.support.proxy import TcpProxy, free_port
from tests.support.registries import text

FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
#: Statuses by which a server says that it does not apply the call, and what our client makes of them.
REFUSED = {
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
}
#: Statuses of a connection: with the report that nothing was taken, the request is sent again.
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
#: Statuses with which a session ends for good, so that nothing waits for a better one.
FOR_GOOD = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)

REQUESTS: dict[str, Callable[[Client], Future[Any]]] = {
    "put": lambda client: client.put_async("k/a", text("1")),
    "delete": lambda client: client.delete_async("k/a"),
    "resync": lambda client: client.resync_async({"k/a": text("1")}),
}


def outcome(answer: Answer, request: str, **options: Any) -> tuple[type[BaseException] | None, int]:
    """The kind of error that *request* ends with when its first answer is *answer*, and how often it was sent."""
    with ScriptedPeer(answer) as peer, Client(peer.address, **options) as client:
        error = REQUESTS[request](client).exception(PATIENT)
        return (None if error is None else type(error)), len(peer.seen)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasync.grpcsync.client.session.RECONNECT_BACKOFF", (0.01, 0.02))
    monkeypatch.setattr("datasync.grpcsync.client.session.AFTER_BREAK", 0.0)


# -- statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [None, 1])
@pytest.mark.parametrize("request_", REQUESTS)
def test_c17_a_status_after_the_request_was_sent_is_unknown_unless_it_is_a_refusal(
    request_: str, taken: int | None
) -> None:
    for code in FAILURES:
        expected = REFUSED.get(code, UnknownOutcome) if request_ == "resync" else UnknownOutcome
        assert outcome(fail(code, taken), request_) == (expected, 1), code


@pytest.mark.parametrize("request_", ["put", "delete"])
def test_c17_a_change_that_the_server_reports_as_not_taken_is_sent_again_or_certainly_not_applied(
    request_: str,
) -> None:
    for code in FAILURES:
        expected = (REFUSED[code], 1) if code in FOR_GOOD else (None, 2)
        assert outcome(fail(code, 0), request_) == expected, code


def test_c17_a_resync_that_the_server_reports_as_not_taken_is_sent_again_or_certainly_not_applied() -> None:
    for code in FAILURES:
        expected = (None, 2) if code in LOST else (REFUSED.get(code, StoreError), 1)
        assert outcome(fail(code, 0), "resync") == expected, code


@pytest.mark.parametrize("request_", ["put", "delete"])
def test_c17_a_stream_that_ends_well_without_the_reply_is_unknown(request_: str) -> None:
    def end(request: Any, context: Any) -> None:
        raise StopIteration

    with ScriptedPeer(end) as peer, Client(peer.address) as client:
        assert isinstance(REQUESTS[request_](client).exception(PATIENT), UnknownOutcome)


# -- what the connection does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS)
def test_c17_without_a_connection_nothing_was_sent(request_: str) -> None:
    with Client(f"127.0.0.1:{free_port()}", send_timeout=0.1) as client:
        assert type(REQUESTS[request_](client).exception(PATIENT)) is StoreConnectionError
        client._send_timeout = PATIENT
        waiting = REQUESTS[request_](client)
        client.close(0)
        assert type(waiting.exception(PATIENT)) is ClosedError


@pytest.mark.parametrize("end", ["reset", "timeout", "close"])
@pytest.mark.parametrize("request_", REQUESTS)
def test_c17_what_was_applied_and_not_answered_is_unknown(request_: str, end: str) -> None:
    def hold(request: Any, context: Any) -> None:
        wait_until(lambda: not context.is_active(), "the client has gone")

    timeout = 0.3 if end == "timeout" else PATIENT
    with ScriptedPeer(hold) as peer, TcpProxy(("127.0.0.1", int(peer.address.partition(":")[2]))) as proxy:
        with Client(proxy.address, answer_timeout=timeout) as client:
            future = REQUESTS[request_](client)
            wait_until(lambda: peer.seen, "the request has arrived")
            if end == "reset":
                proxy.reset()
            elif end == "close":
                client.close(0)
            assert isinstance(future.exception(PATIENT), UnknownOutcome)
        assert len(peer.seen) == 1


# -- replies that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("reply", [b"\xff\xff\xff", b"\x0a\x80\x80\x08" + b"x" * 131072], ids=["garbage", "too-large"])
def test_c17_a_reply_that_cannot_be_read_leaves_the_outcome_unknown(request_: str, reply: bytes) -> None:
    # given a reply beyond the limit of a client with small messages, of what was applied
    assert outcome(lambda *_: reply, request_, max_message_size=8192) == (UnknownOutcome, 1)


WRONG_REPLIES: dict[str, Answer] = {
    "another key": reply_for("k/b"),
    "no key": reply_for(""),
    "a beginning of the key": reply_for("k/"),
    "a beginning of the key, as too long": reply_for("k/", result=Result.INVALID),
    "another operation": lambda request, _: DataChangeReply(key=request.key, operationType=1 - request.operationType),
}


@pytest.mark.parametrize("wrong", WRONG_REPLIES)
@pytest.mark.parametrize("request_", ["put", "delete"])
def test_c23_a_reply_to_another_change_is_not_believed(request_: str, wrong: str) -> None:
    assert outcome(WRONG_REPLIES[wrong], request_) == (UnknownOutcome, 1)


def test_c23_a_reply_too_many_is_not_believed() -> None:
    # given a server that answers a put twice, and the same key is deleted next
    with ScriptedPeer(lambda request, _: change_reply(request)) as peer, Client(peer.address) as client:
        client.put("k/a", text("1"))
        peer._answers[:] = [lambda request, _: DataChangeReply(key="k/a", operationType=0)]
        assert isinstance(client.delete_async("k/a").exception(PATIENT), UnknownOutcome)


def test_c23_the_key_of_a_rejection_may_be_shortened() -> None:
    def reject(request: Any, _: Any) -> DataChangeReply:
        return DataChangeReply(key=request.key[:40], result=Result.INVALID, error_text="too long")

    with ScriptedPeer(reject) as peer, Client(peer.address) as client, pytest.raises(InvalidArgumentError):
        client.put("k/" + "x" * 100, text("1"))


def _swapped(requests: Any, _: Any) -> DataResyncReplies:
    replies = resync_replies(requests)
    replies.dataResyncs.replies.reverse()
    return replies


def _doubled(requests: Any, _: Any) -> DataResyncReplies:
    replies = resync_replies(requests)
    replies.dataResyncs.replies.add(key="k/a")
    return replies


def _halved(requests: Any, _: Any) -> DataResyncReplies:
    replies = resync_replies(requests)
    del replies.dataResyncs.replies[1:]
    return replies


def _of_another(requests: Any, _: Any) -> DataResyncReplies:
    replies = resync_replies(requests)
    replies.msgId.CopyFrom(Seq(originator="other", seq=7))
    return replies


@pytest.mark.parametrize("wrong", [_swapped, _doubled, _halved, _of_another])
def test_c23_a_reply_to_another_resync_is_not_believed(wrong: Answer) -> None:
    with ScriptedPeer(wrong) as peer, Client(peer.address) as client:
        with pytest.raises(UnknownOutcome, match="the reply to another request"):
            client.resync({"k/a": text("1"), "k/b": text("2")})
        # and the client goes on
        client.put("k/a", text("1"))


# -- cn-infra's own server --------------------------------------------------------------------------------------------


def test_c23_a_resync_of_which_no_key_is_confirmed_is_an_error() -> None:
    with ScriptedPeer(nothing, reports=False) as peer, Client(peer.address) as client:
        with pytest.raises(UnsupportedError, match="confirmed none of the 1 keys"):
            client.resync({"k/a": text("1")})


@pytest.mark.parametrize("options", [{"state": lambda: {"k/a": text("1")}}])
def test_c23_a_full_state_of_which_no_key_is_confirmed_begins_no_session(options: dict[str, Any]) -> None:
    with ScriptedPeer(*[nothing] * 1000, reports=False) as peer, Client(peer.address, **options) as client:
        # then what waits is told at once that it was not sent
        with pytest.raises(UnsupportedError, match="'k/b' was not sent: .* confirmed none"):
            client.put("k/b", text("2"))
        assert "k/b" not in peer.seen


def test_c17_a_server_that_never_answers_a_change_gets_one_and_the_others_are_told_why() -> None:
    # given a server that answers pings and no changes
    with ScriptedPeer(*[unanswered] * 1000, reports=False) as peer:
        with Client(peer.address, answer_timeout=0.3) as client:
            # when a hundred changes are sent
            futures = [client.put_async(f"k/{number}", text("v")) for number in range(100)]
            errors: list[DatasyncError] = [future.exception(PATIENT) for future in futures]  # type: ignore[misc]
        # then one of them went out, and the others say that they did not, and why
        assert peer.seen == ["k/0"]
    assert isinstance(errors[0], UnknownOutcome)
    assert "answers pings, but did not answer" in str(errors[0])
    assert {type(error) for error in errors[1:]} == {UnsupportedError}
    assert "'k/99' was not sent" in str(errors[-1])


def test_c17_a_server_that_answers_gets_a_window_after_its_first_reply() -> None:
    # given a peer that does not report what it takes, and holds back its first reply
    held = []

    def hold(request: Any, _: Any) -> DataChangeReply:
        held.append(len(peer.seen))
        wait_until(lambda: client.status().pending == 9, "the others wait")
        return change_reply(request)

    with ScriptedPeer(hold, reports=False) as peer, Client(peer.address) as client:
        futures = [client.put_async(f"k/{number}", text("v")) for number in range(10)]
        assert [bool(future.result(PATIENT)) for future in futures] == [True] * 10
    assert (held, len(peer.seen)) == ([1], 10)


def test_c17_a_server_that_went_silent_is_no_server_that_never_answers() -> None:
    # given a peer that cannot be reached any more when its first change is under way
    with ScriptedPeer(unanswered, reports=False) as peer:
        with TcpProxy(("127.0.0.1", int(peer.address.partition(":")[2]))) as proxy:
            with Client(proxy.address, answer_timeout=0.3) as client:
                first, second = client.put_async("k/a", text("1")), client.put_async("k/b", text("2"))
                wait_until(lambda: peer.seen, "the first change has arrived")
                proxy.black_hole(up=True, down=True)
                assert isinstance(first.exception(PATIENT), UnknownOutcome)
                proxy.heal()
                # then the second waits for a better time
                assert second.exception(PATIENT) is None


def test_an_operation_has_two_values() -> None:
    assert DEL == 1  # the test of another operation counts on it
