"""The application: what each route answers, alone and mounted in others."""

from __future__ import annotations

import base64
import io
import json
import logging

import flask
import pytest
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.wrappers_pb2 import StringValue
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client as WebClient
from werkzeug.test import TestResponse as WebResponse

from datasync.errors import DecodeError, InvalidArgumentError
from datasync.events import ChangeValue
from datasync.restsync import Adapter, serve, wsgi_app
from datasync.syncbase.change import Change, ChangeBytes, KeyVal
from tests.conftest import CANARY, PATIENT
from tests.restsync.support import JSON, PROTO, Http, Subscriber, events_of
from tests.support.registries import OpaqueChange


@pytest.fixture
def web(adapter: Adapter, subscriber: Subscriber) -> WebClient:
    return WebClient(wsgi_app(adapter, done_timeout=PATIENT, max_body=1000))


def put(web: WebClient, key: str, value: str = '"x"', **headers: str) -> WebResponse:
    extra = {name.replace("_", "-"): text for name, text in headers.items()}
    return web.put(f"/keys/{key}", data=value, headers={**JSON, **extra})


def code(response: WebResponse) -> str:
    assert response.mimetype == "application/problem+json"
    assert response.json is not None
    kind: str = response.json["type"].removeprefix("urn:datasync:")
    return kind


# -- one key


def test_d47_a_put_of_a_nested_key_arrives_and_is_answered(web: WebClient, subscriber: Subscriber) -> None:
    # given a subscriber / when a nested key is put, with a query nowhere near it
    response = put(web, "net/if/eth0%20a", '"up"')
    # then it was created, at a revision, and the subscriber saw it under its real name
    assert (response.status_code, response.json) == (201, {"key": "net/if/eth0 a", "revision": 1})
    (change,) = subscriber.changes
    assert (change.get_key(), change.get_value(StringValue()).value) == ("net/if/eth0 a", "up")
    # and a second one is a change with the value before
    assert put(web, "net/if/eth0%20a", '"down"').status_code == 200
    before = StringValue()
    assert subscriber.changes[1].get_prev_value(before)
    assert before.value == "up"


def test_what_was_put_is_given_back_byte_for_byte(web: WebClient) -> None:
    text = '{ "b" : 1,\r\n  "a":"\\u00e9" }'
    put(web, "net/a", text)
    web.put("/keys/net/b", data=b"\x00\xff", headers=PROTO)
    first, second = web.get("/keys/net/a"), web.get("/keys/net/b")
    assert (first.data.decode(), first.content_type) == (text, "application/json")
    assert (second.data, second.content_type) == (b"\x00\xff", "application/x-protobuf")
    assert web.head("/keys/net/a").headers["ETag"] == first.headers["ETag"]


def test_a_binary_value_is_read_as_such_by_the_subscriber(web: WebClient, subscriber: Subscriber) -> None:
    web.put("/keys/net/a", data=StringValue(value="x").SerializeToString(), headers=PROTO)
    assert subscriber.changes[0].get_value(StringValue()).value == "x"


def test_c16_a_value_that_does_not_fit_the_message_fails_at_its_reader(web: WebClient, subscriber: Subscriber) -> None:
    assert put(web, "net/a", '{"no":"string"}').status_code == 201
    with pytest.raises(DecodeError):
        subscriber.changes[0].get_value(StringValue())


def test_d47_a_delete_of_an_unknown_key_says_so(web: WebClient, subscriber: Subscriber) -> None:
    put(web, "net/a")
    assert web.delete("/keys/net/a").status_code == 200
    assert code(web.delete("/keys/net/a")) == "no-such-key"
    assert code(web.get("/keys/net/a")) == "no-such-key"
    assert [change.get_change_type().value for change in subscriber.changes] == ["Put", "Delete"]


def test_a_key_that_nobody_watches_is_not_applied(web: WebClient) -> None:
    response = put(web, "other/a")
    assert (response.status_code, code(response)) == (404, "unwatched")
    assert code(web.get("/keys/other/a")) == "no-such-key"


def test_c9_a_refusal_comes_back_with_its_text(web: WebClient) -> None:
    response = put(web, "net/refuse")
    assert (response.status_code, code(response)) == (422, "refused")
    assert response.json is not None
    assert response.json["errors"] == {"agent": "ValueError: not with me"}


def test_c9_silence_is_504_and_names_the_silent(adapter: Adapter, subscriber: Subscriber) -> None:
    response = put(WebClient(wsgi_app(adapter, done_timeout=0.2)), "net/silent")
    assert (response.status_code, code(response)) == (504, "unanswered")
    assert response.json is not None
    assert response.json["silent"] == ["agent"]
    subscriber.events[-1].done()


def test_a_closed_adapter_is_503(web: WebClient, adapter: Adapter) -> None:
    put(web, "net/a")
    adapter.close()
    # whatever is asked of it: what it held is not the state of anything any more
    answers = [put(web, "net/a"), *(web.get(path) for path in ("/keys", "/keys/net/a", "/events?follow=false"))]
    assert [(answer.status_code, code(answer)) for answer in answers] == [(503, "closed")] * 4


# -- conditions


def test_a_put_with_if_match_wins_once(web: WebClient) -> None:
    # given a key
    tag = put(web, "net/a").headers["ETag"]
    # when it is changed on condition of its revision, twice
    first, second = put(web, "net/a", '"y"', If_Match=tag), put(web, "net/a", '"z"', If_Match=tag)
    # then the second comes too late, and learns the tag that is there
    assert (first.status_code, second.status_code) == (200, 412)
    assert second.headers["ETag"] == first.headers["ETag"] != tag
    assert web.get("/keys/net/a").data == b'"y"'


def test_a_put_with_if_none_match_star_only_creates(web: WebClient) -> None:
    assert put(web, "net/a", If_None_Match="*").status_code == 201
    assert code(put(web, "net/a", If_None_Match="*")) == "conflict"
    assert code(put(web, "net/b", If_Match="*")) == "conflict"
    assert put(web, "net/a", If_Match="*").status_code == 200


def test_a_delete_with_a_stale_tag_is_refused(web: WebClient) -> None:
    tag = put(web, "net/a").headers["ETag"]
    put(web, "net/a", '"y"')
    assert code(web.delete("/keys/net/a", headers={"If-Match": tag})) == "conflict"
    assert web.get("/keys/net/a").status_code == 200


def test_a_tag_of_another_life_of_the_server_matches_nothing(web: WebClient) -> None:
    tag = put(web, "net/a").headers["ETag"]
    other = '"00000000-' + tag.partition("-")[2]
    assert put(web, "net/a", If_Match=other).status_code == 412


def test_a_get_with_the_tag_it_gave_is_304_until_the_key_changes(web: WebClient) -> None:
    tag = put(web, "net/a").headers["ETag"]
    response = web.get("/keys/net/a", headers={"If-None-Match": tag})
    assert (response.status_code, response.data) == (304, b"")
    put(web, "net/a", '"y"')
    assert web.get("/keys/net/a", headers={"If-None-Match": tag}).status_code == 200


# -- bad requests


@pytest.mark.parametrize(
    "body",
    ["", "{", "NaN", "1e999", "[1,]", "\ufeff1", "[" * 100_000, "1" * 5000, "[" * 101 + "]" * 101],
    ids=lambda body: f"{body[:5]}-{len(body)}",
)
def test_invalid_json_is_400_and_its_text_is_nowhere(
    adapter: Adapter, subscriber: Subscriber, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    web = WebClient(wsgi_app(adapter))
    response = put(web, "net/a", body)
    assert (response.status_code, code(response)) == (400, "bad-request")
    assert subscriber.events == []
    assert len(body) < 5 or body[:50] not in response.text + caplog.text


@pytest.mark.parametrize(
    "text", ["[" * 100 + "]" * 100, '{"a":' * 100 + "1" + "}" * 100, f"[{','.join(['[]'] * 300)}]", r'"\ud800"']
)
def test_json_at_the_limits_is_the_same_in_every_place(web: WebClient, subscriber: Subscriber, text: str) -> None:
    # given a value that can just be / when it is put alone, in a full state and in a transaction
    item = f'{{"key":"net/b","value":{text}}}'
    assert put(web, "net/a", text).status_code == 201
    assert web.put("/keys", data=f'{{"items":[{item}]}}', headers=JSON).status_code == 200
    assert web.patch("/keys", data=f'{{"changes":[{{"op":"Put",{item[1:]}]}}', headers=JSON).status_code == 200
    # then the list has it as it is
    listing = web.get("/keys").json
    assert listing is not None
    assert listing["items"][0]["value"] == json.loads(text)


def test_a_number_that_is_none_is_refused_in_a_full_state_too(web: WebClient, subscriber: Subscriber) -> None:
    state = '{"items":[{"key":"net/a","value":[-1e999]}]}'
    assert code(web.put("/keys", data=state, headers=JSON)) == "bad-request"
    assert subscriber.events == []


def test_json_that_is_no_utf8_is_400(web: WebClient) -> None:
    assert web.put("/keys/net/a", data=b'"\xff"', headers=JSON).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_a_wrong_content_type_is_415(web: WebClient, headers: dict[str, str]) -> None:
    assert code(web.put("/keys/net/a", data="1", headers=headers)) == "unsupported-type"


def test_a_body_above_the_limit_is_413_and_one_at_it_is_not(web: WebClient) -> None:
    assert web.put("/keys/net/a", data=b"x" * 1000, headers=PROTO).status_code == 201
    assert code(web.put("/keys/net/a", data=b"x" * 1001, headers=PROTO)) == "too-large"


@pytest.mark.parametrize("path", ["..", "a/../b", "%2e%2e/b", "a/%2e", "a%00b", "a%0ab", "", "x" * 1025])
def test_path_tricks_are_400(web: WebClient, path: str) -> None:
    assert code(web.get(f"/keys/{path}")) == "bad-request"


def test_an_encoded_slash_is_a_slash(web: WebClient) -> None:
    put(web, "net%2Fa", '"x"')
    assert web.get("/keys/net/a").data == b'"x"'


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/keys/a"), ("DELETE", "/keys"), ("PUT", "/events"), ("PATCH", "/")]
)
def test_a_wrong_method_is_405_and_says_which_are_right(web: WebClient, method: str, path: str) -> None:
    response = web.open(path, method=method)
    assert (response.status_code, code(response)) == (405, "method-not-allowed")
    assert response.headers["Allow"]


@pytest.mark.parametrize(
    "query", ["x=1", "limit=0", "limit=1001", "limit=x", "limit=1&limit=2", "values=1", "after=%00", "prefix=%ff"]
)
def test_an_unknown_or_wrong_parameter_is_400(web: WebClient, query: str) -> None:
    assert code(web.get(f"/keys?{query}")) == "bad-request"


def test_an_unknown_path_is_404(web: WebClient) -> None:
    assert code(web.get("/key/net/a")) == "not-found"


def test_a_bug_is_500_without_a_word_of_what_it_said(
    web: WebClient, adapter: Adapter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: str) -> None:
        raise RuntimeError(f"{CANARY} value")

    monkeypatch.setattr(adapter.registry, "get", fail)
    response = web.get("/keys/net/a")
    assert code(response) == "internal"
    assert CANARY not in response.text + caplog.text
    assert "RuntimeError" in caplog.text


def test_c16_a_line_end_in_a_path_begins_no_line_in_the_log(web: WebClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    web.get("/x%0aforged%20line")
    assert "forged line" in caplog.text
    assert "\nforged line" not in caplog.text


# -- all keys


def test_the_list_is_in_key_order_and_paged(web: WebClient) -> None:
    # given five keys
    for name in "dbaec":
        put(web, f"net/{name}", f'"{name}"')
    # when they are read two at a time
    found: list[str] = []
    after, sizes = "", []
    while after is not None:
        page = web.get("/keys", query_string={"prefix": "net/", "limit": 2, "after": after}).json
        assert page is not None
        found += [item["value"] for item in page["items"]]
        sizes.append(len(page["items"]))
        after = page["next"]
    # then each came once
    assert (found, sizes) == (list("abcde"), [2, 2, 1])


def test_the_list_shows_json_as_itself_and_the_rest_in_base64(web: WebClient) -> None:
    put(web, "net/a", '{"x":[1,"é"]}')
    web.put("/keys/net/b", data=b"\xff", headers=PROTO)
    page = web.get("/keys").json
    assert page is not None
    assert page["items"] == [
        {"key": "net/a", "revision": 1, "content_type": "application/json", "value": {"x": [1, "é"]}},
        {
            "key": "net/b",
            "revision": 2,
            "content_type": "application/x-protobuf",
            "data": base64.b64encode(b"\xff").decode(),
        },
    ]
    bare = web.get("/keys?values=false").json
    assert bare is not None
    assert all("value" not in item and "data" not in item for item in bare["items"])


def test_a_value_that_was_put_inside_the_process_is_listed_too(web: WebClient, adapter: Adapter) -> None:
    adapter.registry.propagate_changes({"net/a": Change("net/a", StringValue(value="x"))})
    assert web.get("/keys/net/a").data == b'"x"'


def test_c16_a_value_without_bytes_is_refused_before_anything_is_applied(web: WebClient, adapter: Adapter) -> None:
    # given changes, and a full state, of which one could never be sent to who follows over HTTP
    changes: dict[str, ChangeValue] = {
        "net/a": Change("net/a", StringValue(value="x")),
        "net/own": OpaqueChange("net/own"),
    }
    for submit in (adapter.registry.submit_changes, adapter.registry.submit_resync):
        # then whoever makes them is told, and everything else can still be read
        with pytest.raises(InvalidArgumentError, match="'net/own': a OpaqueChange .* has no bytes"):
            submit(changes)
    assert web.get("/keys").json == {"revision": 0, "items": [], "next": None}


@pytest.mark.parametrize("data", [b'1},{"key":"x"', b"\xff", b"{"])
def test_c16_json_that_comes_as_data_is_checked_to_be_json(
    web: WebClient, subscriber: Subscriber, adapter: Adapter, data: bytes
) -> None:
    # given what would break every list that it stands in
    item = {"key": "net/a", "data": base64.b64encode(data).decode(), "content_type": "application/json"}
    for method, document in (("PUT", {"items": [item]}), ("PATCH", {"changes": [{"op": "Put", **item}]})):
        # then it is refused
        answer = web.open("/keys", method=method, json=document)
        assert (answer.status_code, code(answer)) == (400, "bad-request")
    assert adapter.registry.items() == []


def test_c16_a_pair_without_a_value_is_no_put(web: WebClient, adapter: Adapter) -> None:
    with pytest.raises(InvalidArgumentError):
        adapter.registry.submit_resync({"net/a": KeyVal("net/a", None)})
    assert web.get("/keys").json == {"revision": 0, "items": [], "next": None}


def test_an_event_of_another_source_is_passed_on(web: WebClient, adapter: Adapter) -> None:
    # given what a subscriber of another source was told, as bytes and as a message
    with Adapter("other") as other, Subscriber(other, "net/") as subscriber:
        other.registry.propagate_changes(
            {"net/a": Change("net/a", StringValue(value="x")), "net/b": ChangeBytes("net/b", b'"y"')}
        )
        passed = {change.get_key(): change for change in subscriber.changes}
    # when it is given to the adapter as it is / then it can be read there
    adapter.registry.propagate_changes(passed)
    assert [web.get(f"/keys/net/{key}").data for key in "ab"] == [b'"x"', b'"y"']


def test_a_message_that_has_no_json_is_shown_as_protobuf(web: WebClient, adapter: Adapter) -> None:
    # an Any of a type that nobody knows
    message = Any_(type_url="type.googleapis.com/of.nobody", value=b"\x08\x01")
    adapter.registry.propagate_changes({"net/a": Change("net/a", message)})
    answer = web.get("/keys/net/a")
    assert (answer.mimetype, answer.data) == ("application/x-protobuf", message.SerializeToString())
    assert web.get("/keys").json["items"][0]["data"] == base64.b64encode(answer.data).decode()  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("PUT", '{"items":[],"items":[{"key":"net/a","value":1}]}'),
        ("PUT", '{"items":[{"key":"net/a","value":1,"value":2}]}'),
        ("PUT", '{"items":[{"key":"net/a","value":{"x":1,"x":2}}]}'),
        ("PATCH", '{"changes":[{"op":"Delete","key":"net/a","op":"Put","value":1}]}'),
    ],
)
def test_c16_a_name_that_stands_twice_is_400_and_not_half_read(
    web: WebClient, subscriber: Subscriber, method: str, body: str
) -> None:
    answer = web.open("/keys", method=method, data=body, headers=JSON)
    assert (answer.status_code, code(answer)) == (400, "bad-request")
    assert not subscriber.events


def test_c7_a_full_state_replaces_all_there_was(web: WebClient, subscriber: Subscriber) -> None:
    # given two keys
    put(web, "net/a")
    put(web, "net/b")
    # when a full state comes with one of them and a new one
    state = {"items": [{"key": "net/b", "value": "new"}, {"key": "net/c", "data": "CgF4"}]}
    response = web.put("/keys", json=state)
    # then the subscriber got a RESYNC that lists what is gone
    assert response.json == {"revision": 3, "keys": 2}
    (resync,) = subscriber.resyncs
    assert [pair.get_key() for pair in resync.get_removed()] == ["net/a"]
    assert {pair.get_key(): pair.get_value(StringValue()).value for pair in resync.get_values()["net/"]} == {
        "net/b": "new",
        "net/c": "x",
    }


@pytest.mark.parametrize(
    "state",
    [
        [],
        {},
        {"items": [], "more": 1},
        {"items": [{"value": 1}]},
        {"items": [{"key": "a"}]},
        {"items": [{"key": "a", "value": 1, "data": ""}]},
        {"items": [{"key": "a", "value": 1}, {"key": "a", "value": 2}]},
        {"items": [{"key": "../a", "value": 1}]},
        {"items": [{"key": "a", "data": "no base64!"}]},
        {"items": [{"key": "a", "data": 7}]},
        {"items": [{"key": "a", "value": 1, "content_type": "application/x-protobuf"}]},
    ],
)
def test_a_malformed_full_state_is_refused_whole(web: WebClient, subscriber: Subscriber, state: object) -> None:
    assert web.put("/keys", json=state).status_code == 400
    assert subscriber.events == []


# -- tokens


@pytest.fixture
def locked(adapter: Adapter, subscriber: Subscriber) -> WebClient:
    return WebClient(wsgi_app(adapter, token=[f"{CANARY}-old", f"{CANARY}-new"]))


@pytest.mark.parametrize("path", ["/keys", "/keys/net/a", "/events?follow=false", "/status"])
@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Basic WnE5Y2FuYXJ5LW5ldw==", "Bearer", f"Bearer {CANARY}-newx"]
)
def test_without_the_token_everything_is_401(locked: WebClient, path: str, given: str | None) -> None:
    response = locked.get(path, headers={"Authorization": given} if given else {})
    assert (response.status_code, code(response)) == (401, "unauthorized")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert f"{CANARY}-new" not in response.text


@pytest.mark.parametrize("token", [f"{CANARY}-old", f"{CANARY}-new"])
def test_either_token_is_good_while_one_is_replaced(locked: WebClient, token: str) -> None:
    assert locked.get("/keys", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_a_body_is_not_read_before_the_token_was_seen(locked: WebClient) -> None:
    class Unreadable(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("the body was read")

    response = locked.put("/keys/net/a", input_stream=Unreadable(), content_length=5, headers=JSON)
    assert response.status_code == 401


@pytest.mark.parametrize("token", ["", "with space", "ümlaut", "line\nend", [], [""]])
def test_c16_a_token_that_could_not_stand_in_a_header_is_refused(adapter: Adapter, token: object) -> None:
    with pytest.raises(InvalidArgumentError, match="token"):
        wsgi_app(adapter, token=token)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"max_body": 0}, {"heartbeat": -1}, {"done_timeout": "2"}])
def test_c16_an_option_that_cannot_be_is_refused_by_name(adapter: Adapter, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        wsgi_app(adapter, **options)  # type: ignore[arg-type]


# -- mounted


def test_it_works_under_a_path_of_plain_wsgi(adapter: Adapter, subscriber: Subscriber) -> None:
    # given the application under a path, as a legacy program would have it
    legacy = flask.Flask("legacy")
    web = WebClient(DispatcherMiddleware(legacy, {"/datasync": wsgi_app(adapter)}))
    # when a key is put there / then it arrives, and the page and the document know where they are
    assert web.put("/datasync/keys/net/a", data='"x"', headers=JSON).status_code == 201
    assert subscriber.changes[0].get_key() == "net/a"
    assert web.get("/datasync").headers["Location"] == "/datasync/"
    assert web.get("/datasync/").status_code == 200
    document = web.get("/datasync/openapi.json").json
    assert document is not None
    assert document["servers"] == [{"url": "/datasync"}]
    assert web.get("/keys/net/a").status_code == 404  # the legacy program's own


def test_it_works_inside_flask_and_its_routes_stay(adapter: Adapter, subscriber: Subscriber) -> None:
    legacy = flask.Flask("legacy")
    legacy.add_url_rule("/hello", view_func=lambda: "hello")
    legacy.wsgi_app = DispatcherMiddleware(legacy.wsgi_app, {"/sync": wsgi_app(adapter)})  # type: ignore[method-assign]
    web = legacy.test_client()
    assert web.put("/sync/keys/net/a", data='"x"', headers=JSON).status_code == 201
    assert web.get("/sync/keys/net/a").get_json() == "x"
    assert web.get("/hello").text == "hello"


def test_d48_two_subscriptions_of_one_prefix_each_get_a_change_once(web: WebClient, adapter: Adapter) -> None:
    with Subscriber(adapter, "net/", name="second") as second:
        put(web, "net/a")
        assert len(second.changes) == 1


def test_d48_a_prefix_without_a_slash_is_as_good_and_ends_with_its_subscription(adapter: Adapter) -> None:
    # given a prefix that would be no route
    web = WebClient(wsgi_app(adapter))
    with Subscriber(adapter, "ne"):
        assert put(web, "net/a").status_code == 201
    # when its subscription is closed / then nobody watches it any more
    assert code(put(web, "net/a")) == "unwatched"


def test_the_page_can_be_switched_off(adapter: Adapter) -> None:
    web = WebClient(wsgi_app(adapter, page=False))
    assert [web.get(path).status_code for path in ("/", "/status", "/openapi.json")] == [404, 404, 200]


def test_a_snapshot_of_events_is_of_one_moment_and_survives_line_ends_in_values(web: WebClient) -> None:
    put(web, "net/a", given := '{"a":\r\n1,\r"b":\n2}')
    text = web.get("/events?follow=false&prefix=net/").text
    assert [name for name, _, _ in events_of(text)] == ["resync", "items", "synced"]
    (item,) = events_of(text)[1][1]
    assert base64.b64decode(item["data"]).decode() == given


def test_serving_an_application_takes_no_more_options(adapter: Adapter) -> None:
    with pytest.raises(InvalidArgumentError, match="token"):
        serve("127.0.0.1:0", wsgi_app(adapter), token="x")


def test_the_status_has_no_values_unless_allowed(adapter: Adapter, subscriber: Subscriber) -> None:
    shy, open_hearted = WebClient(wsgi_app(adapter)), WebClient(wsgi_app(adapter, show_values=True))
    put(shy, "net/a", '"secret"')
    assert "secret" not in shy.get("/status").text
    assert "secret" in open_hearted.get("/status").text
    shown = json.loads(shy.get("/status").text)
    assert shown["sources"][0]["subscriptions"][0]["prefixes"] == ["net/"]
    assert shown["events"][0]["key"] == "net/a"


def test_plain_http_over_the_server_gives_the_same(http: Http, subscriber: Subscriber) -> None:
    assert http.put("net/a", "x").status == 201
    assert http("GET", "/keys/net/a").data == b'"x"'
