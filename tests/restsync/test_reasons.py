"""Keys that a subscriber did not accept: what a writer learns, and where a reader finds the mark (C9, C10, C18)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest
from werkzeug.test import Client as WebClient

from datasync.errors import Permanent, PropagationError, Rejected, RetryAfter
from datasync.kvdbsync.local import ProtoTxn
from datasync.restsync import Adapter, Client, Server, serve, wsgi_app
from datasync.restsync.problems import PROBLEM_TYPE, error_of
from datasync.runtime.threads import Worker
from datasync.syncbase.change import ChangeBytes
from tests.conftest import CANARY, PATIENT
from tests.restsync.support import JSON
from tests.support.registries import text


class Judge:
    """Answers every event with the rejection of its keys that ``verdicts`` names; *name* may be any text."""

    def __init__(self, adapter: Adapter, name: str = "agent") -> None:
        self.verdicts: dict[str, BaseException | str] = {}
        self.whole: BaseException | None = None
        self._queue: Queue[Any] = Queue()
        self._worker = Worker("test-judge", self._run, wake=lambda: self._queue.put(None))
        self._worker.start()
        self._registration = adapter.watch(name, self._queue, self._queue, "net/")

    def close(self) -> None:
        self._registration.close()
        assert self._worker.close()

    def _run(self, worker: Worker) -> None:
        while (event := self._queue.get()) is not None:
            if hasattr(event, "get_changes"):
                keys = [change.get_key() for change in event.get_changes()]
            else:
                keys = [pair.get_key() for pairs in event.get_values().values() for pair in pairs]
            rejected = {key: self.verdicts[key] for key in keys if key in self.verdicts}
            event.done(self.whole or (Rejected(rejected) if rejected else None))


@pytest.fixture
def judge(adapter: Adapter) -> Iterator[Judge]:
    judge = Judge(adapter)
    yield judge
    judge.close()


@pytest.fixture
def web(adapter: Adapter) -> WebClient:
    return WebClient(wsgi_app(adapter, done_timeout=PATIENT))


def caught(attempt: Callable[[], object]) -> PropagationError:
    with pytest.raises(PropagationError) as found:
        attempt()
    return found.value


def test_c10_a_transaction_that_is_rejected_in_part_is_422_with_the_reason_of_each_key(
    web: WebClient, judge: Judge
) -> None:
    # given a subscriber that does not accept one key of two
    judge.verdicts["net/b"] = ValueError("not with me")
    changes = [{"op": "Put", "key": key, "value": 1} for key in ("net/a", "net/b")]
    # when both are put / then the answer names the one
    answer = web.patch("/keys", json={"changes": changes})
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["reasons"] == {"agent": {"net/b": "ValueError: not with me"}}
    assert (answer.json["retryable"], "retry_after" in answer.json) == (True, False)
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize(
    ("reason", "retryable", "header"),
    [(Permanent("too long"), False, None), (RetryAfter(1.5), True, "2"), (RetryAfter(0), True, "0")],
)
def test_c10_a_problem_says_whether_and_when_to_try_again(
    web: WebClient, judge: Judge, reason: Exception, retryable: bool, header: str | None
) -> None:
    judge.verdicts["net/a"] = reason
    answer = web.put("/keys/net/a", data="1", headers=JSON)
    assert answer.json is not None
    assert (answer.status_code, answer.json["retryable"]) == (422, retryable)
    assert answer.headers.get("Retry-After") == header


@pytest.mark.parametrize("prefix", ["", "net/"])
@pytest.mark.parametrize(
    ("reason", "retryable", "retry_after"),
    [(Permanent("x"), False, None), (RetryAfter(1.5, "x"), True, 1.5), (ValueError("x"), True, None)],
)
def test_c10_a_client_raises_the_same_reasons_with_keys_as_it_knows_them(
    server: Server, judge: Judge, prefix: str, reason: Exception, retryable: bool, retry_after: float | None
) -> None:
    judge.verdicts["net/a"] = reason
    key = "net/a".removeprefix(prefix)
    with Client(server.url, prefix=prefix) as client:
        for attempt in (
            lambda: client.put(key, text("1")),
            lambda: ProtoTxn(client.propagate_changes).put(key, text("1")).put(key + "b", text("1")).commit(),
        ):
            error = caught(attempt)
            assert error.reasons == {"agent": {key: f"{type(reason).__name__}: x"}}
            assert (error.retryable, error.retry_after) == (retryable, retry_after)


def test_c10_a_full_state_that_is_rejected_whole_has_one_reason_without_a_key(client: Client, judge: Judge) -> None:
    judge.whole = ValueError("not now")
    assert caught(lambda: client.resync({"net/a": text("1")})).reasons == {"agent": {"": "ValueError: not now"}}
    judge.whole, judge.verdicts["net/a"] = None, "no"
    assert caught(lambda: client.resync({"net/a": text("1")})).reasons == {"agent": {"net/a": "no"}}


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"reasons": 7},
        {"reasons": {"agent": 7}},
        {"reasons": {"agent": {}}, "retry_after": "soon"},
        {"reasons": {"agent": {"k": 7}}, "retry_after": -1, "retryable": "no"},
        {"errors": {"agent": 7}, "retry_after": True},
        {"reasons": {"agent": {"k": "x" * 100_000}}, "retry_after": 1e999},
    ],
)
def test_c16_a_problem_of_another_kind_of_server_is_a_propagation_error_too(members: dict[str, Any]) -> None:
    document = {"type": "urn:datasync:refused", "detail": "no", **members}
    error = error_of("put", 422, PROBLEM_TYPE, json.dumps(document).encode(), write=True)
    assert isinstance(error, PropagationError)
    assert (error.retryable, error.retry_after) == (True, None)
    assert len(str(error.reasons)) < 5000


def test_c10_reads_mark_a_value_that_was_not_accepted_until_it_is(web: WebClient, judge: Judge) -> None:
    # given a state that a client knows by its tag
    web.put("/keys/net/a", data="1", headers=JSON)
    web.put("/keys/net/b", data="1", headers=JSON)
    assert "ETag" in web.get("/keys").headers
    # when a key is not accepted
    judge.verdicts["net/a"] = ValueError("no")
    web.put("/keys/net/a", data="2", headers=JSON)
    # then its value is there, and each way to read it says by whom it was not accepted
    answer = web.get("/keys/net/a")
    assert (answer.data, answer.headers["Datasync-Not-Accepted"]) == (b"2", "agent")
    known = web.get("/keys/net/a", headers={"If-None-Match": answer.headers["ETag"]})
    assert (known.status_code, known.headers["Datasync-Not-Accepted"]) == (304, "agent")
    assert web.head("/keys/net/a").headers["Datasync-Not-Accepted"] == "agent"
    assert "Datasync-Not-Accepted" not in web.get("/keys/net/b").headers
    listing = web.get("/keys")
    assert listing.json is not None
    assert [(item.get("accepted"), item.get("not_accepted")) for item in listing.json["items"]] == [
        (False, {"agent": "ValueError"}),
        (None, None),
    ]
    # and the list has no tag, because the mark goes without a new revision
    assert "ETag" not in listing.headers
    # when what was listed is sent back, and now accepted / then the marks are gone
    judge.verdicts.clear()
    assert web.put("/keys", json={"items": listing.json["items"]}).status_code == 200
    assert "Datasync-Not-Accepted" not in web.get("/keys/net/a").headers
    assert "accepted" not in web.get("/keys").text
    assert "ETag" in web.get("/keys").headers


def test_c10_a_transaction_may_send_a_marked_item_back(web: WebClient, judge: Judge) -> None:
    mark = {"accepted": False, "not_accepted": {"agent": "ValueError"}, "revision": 1}
    changes = [{"op": "Put", "key": "net/a", "value": 1, **mark}, {"op": "Delete", "key": "net/b", **mark}]
    assert web.patch("/keys", json={"changes": changes}).status_code == 200


@pytest.mark.parametrize("name", ["agent", "an agent, of Zoë's", "half \ud800", "long" * 1000])
def test_c10_a_client_reads_who_has_not_accepted_a_value(adapter: Adapter, server: Server, name: str) -> None:
    judge = Judge(adapter, name)
    judge.verdicts["net/a"] = "no"
    with Client(server.url) as client:
        caught(lambda: client.put("net/a", text("1")))
        pair = client.get("net/a")
        assert pair is not None
        assert pair.not_accepted == (name.encode(errors="replace").decode()[:200],)
        judge.verdicts.clear()
        client.put("net/a", text("2"))
        assert client.get("net/a").not_accepted == ()  # type: ignore[union-attr]
    judge.close()


def test_c18_the_page_has_the_owed_keys_and_no_value_of_them(adapter: Adapter, judge: Judge) -> None:
    # given a key that was rejected when nobody waited, and one that a caller was told of
    web = WebClient(wsgi_app(adapter, done_timeout=PATIENT))
    judge.verdicts |= {f"net/{number:02}": Permanent(f"never {number}") for number in range(25)}
    adapter.registry.submit_changes(
        {key: ChangeBytes(key, json.dumps(CANARY).encode()) for key in judge.verdicts}
    ).exception(PATIENT)
    # then the document of the page names them, up to a limit
    document = web.get("/status").json
    assert document is not None
    (shown,) = document["sources"][0]["subscriptions"]
    assert (shown["state"], shown["owed"]["total"], len(shown["owed"]["items"])) == ("failing", 25, 20)
    assert shown["owed"]["items"][0] == {
        "key": "net/00",
        "error": "Permanent",
        "reason": "never 0",
        "attempts": 1,
        "next_in": None,
    }
    assert shown["resync_in"] is None
    assert document["sources"][0]["keys"]["items"][0]["not_accepted"] == {"agent": "Permanent"}
    assert CANARY not in json.dumps(document)


def test_c10_a_follower_that_rejects_a_key_gets_it_again_and_nobody_else_notices(adapter: Adapter) -> None:
    # given a subscriber of a client, which the server does not know of
    with serve("127.0.0.1:0", adapter) as server, Client(server.url) as client:
        queue: Queue[Any] = Queue()
        client.watch("follower", queue, queue, "net/")
        queue.get(timeout=PATIENT).done()
        adapter.registry.submit_changes({"net/a": ChangeBytes("net/a", b"1")})
        queue.get(timeout=PATIENT).done(Rejected({"net/a": RetryAfter(0)}))
        # then it comes again, and the server's own state has no mark
        again = queue.get(timeout=PATIENT)
        assert again.redelivery
        assert set(client.status().subscriptions["follower"].owed) == {"net/a"}
        again.done()
        assert adapter.registry.not_accepted("net/a") == {}
