"""What a client learns of keys that a subscriber did not accept, and what the adapter says of them (C9, C10, C18)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasync.errors import DatasyncError, Permanent, PropagationError, Rejected, RetryAfter
from datasync.grpcsync import Client, Server, serve
from datasync.grpcsync.error_codes import change_error, mark_change
from datasync.syncbase.msg import DataChangeReply, DataChangeRequest, delete_request
from datasync.syncbase.msg.convert import change_reply
from tests.conftest import CANARY, PATIENT
from tests.grpcsync.support import Subscriber
from tests.support.registries import text


@pytest.fixture
def server() -> Iterator[Server]:
    with serve("127.0.0.1:0") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        client.wait_ready(PATIENT)
        yield client


def raising(error: BaseException) -> Callable[[Any], None]:
    def answer(event: Any) -> None:
        raise error

    return answer


def caught(attempt: Callable[[], object]) -> PropagationError:
    with pytest.raises(PropagationError) as found:
        attempt()
    return found.value


def test_c10_a_client_gets_the_reasons_of_each_subscription_by_key(server: Server, client: Client) -> None:
    # given two subscribers: one names the key, the other rejects the event as a whole
    with Subscriber(raising(Rejected({"k/a": ValueError("no such interface")}))) as first:
        with Subscriber(raising(RuntimeError("too busy"))) as second:
            server.adapter.watch("first", first.queue, first.queue, "k/")
            server.adapter.watch("second", second.queue, second.queue, "k/")
            # when a key is put / then the client has the same reasons as a caller inside the server
            error = caught(lambda: client.put("k/a", text("1")))
            assert error.reasons == {
                "first": {"k/a": "ValueError: no such interface"},
                "second": {"": "RuntimeError: too busy"},
            }
            assert (error.retryable, error.retry_after) == (True, None)


def test_c10_a_resync_tells_the_keys_that_were_not_accepted(server: Server, client: Client) -> None:
    with Subscriber(raising(Rejected({"k/b": "not with me"}))) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        error = caught(lambda: client.resync({"k/a": text("1"), "k/b": text("2")}))
    assert error.reasons == {"agent": {"k/b": "not with me"}}


@pytest.mark.parametrize(
    ("reason", "retryable", "retry_after"),
    [
        (Permanent("too long"), False, None),
        (RetryAfter(90.5, "the backend is down"), True, 90.5),
        (RetryAfter(0), True, 0.0),
        (ValueError("no"), True, None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("whole", [True, False])
def test_c10_a_client_learns_whether_and_when_to_try_again(
    server: Server, client: Client, reason: Exception, retryable: bool, retry_after: float | None, whole: bool
) -> None:
    with Subscriber(raising(reason if whole else Rejected({"k/a": reason}))) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        for attempt in (lambda: client.put("k/a", text("1")), lambda: client.resync({"k/a": text("1")})):
            error = caught(attempt)
            assert (error.retryable, error.retry_after) == (retryable, retry_after)
            assert error.reasons == {"agent": {"" if whole else "k/a": f"{type(reason).__name__}: {reason}"}}


def test_c10_more_reasons_than_a_reply_has_room_for_are_counted(server: Server) -> None:
    # given a client that takes small messages only, and a subscriber with much to say about many keys
    wanted = {f"k/{number:03}": text("1") for number in range(100)}
    reasons = dict.fromkeys(wanted, "☃" * 5000)
    with Subscriber(raising(Rejected(reasons))) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        with Client(server.address, max_message_size=16 * 1024) as client:
            # when it sends them / then it gets an answer nevertheless, which says how many are missing
            told = caught(lambda: client.resync(wanted)).reasons["agent"]
    assert told[""] == f"and {100 - (len(told) - 1)} more"
    assert told["k/000"] == "☃" * 4000


def test_c10_a_text_that_no_message_can_carry_is_told_with_question_marks(server: Server, client: Client) -> None:
    with Subscriber(raising(Rejected({"k/a": ValueError("half \ud800")}))) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        assert caught(lambda: client.put("k/a", text("1"))).reasons == {"agent": {"k/a": "ValueError: half ?"}}


def test_c10_peers_without_reasons_are_understood_and_understand() -> None:
    # given a reply with reasons
    request = DataChangeRequest(key="k")
    error = PropagationError({"agent": Rejected({"k": Permanent("no")})})
    reply = mark_change(change_reply(request, error), error)
    # when a peer reads it that knows only the fields of the original protocol / then they say what they said before
    assert (reply.key, reply.result) == ("k", 1)
    # and a reply of such a peer names the peer instead of the subscription
    old = change_error(DataChangeReply(key="k", result=1, error_text="no"), request, "peer:1")
    assert isinstance(old, PropagationError)
    assert old.reasons == {"peer:1": {"": "'k': no"}}
    assert isinstance(change_error(DataChangeReply(key="k", result=9), delete_request("k"), "peer:1"), DatasyncError)


def test_c18_the_status_of_an_adapter_has_the_owed_keys_of_all_sources(server: Server) -> None:
    # given two senders, and a subscriber that accepts a key of neither
    answer = raising(Rejected({"k/a": ValueError("no")}))
    with Subscriber(lambda event: None) as subscriber:
        server.adapter.watch("agent", subscriber.queue, subscriber.queue, "k/")
        subscriber._answer = answer
        for source, key in (("red", "k/a"), ("blue", "k/a")):
            with Client(server.address, source=source) as client:
                caught(lambda client=client, key=key: client.put(key, text(CANARY)))  # type: ignore[misc]
        # then it stands in the status, by name and error, and without the value
        status = server.adapter.status()
    owed = status.subscriptions["agent"].owed
    assert {key: (one.error, one.attempts) for key, one in owed.items()} == {"k/a": ("ValueError", 1)}
    assert {name for name, one in status.sources.items() if one.subscriptions["agent"].owed} == {"red", "blue"}
    assert CANARY not in repr(status)
