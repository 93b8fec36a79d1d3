"""A gateway between client and server that rewrites paths: nginx as it is usually set up (C23)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import NotReadyError, StoreError, UnknownOutcome
from datasync.restsync import Adapter, Client, Server
from datasync.restsync.keys import escape
from datasync.syncbase.change import ChangeBytes
from tests.conftest import take
from tests.restsync.support import JSON, Http, Subscriber
from tests.support.nginx import Nginx
from tests.support.registries import plain, state, text, told

#: Keys that a gateway could turn into others, each with those that it could become.
KEYS = {
    "net/a": [],
    "net//b": ["net/b"],
    "/net/c": ["net/c"],
    "net/d/": ["net/d"],
    "net/e%2Ff": ["net/e/f"],
    "net/g%252Fh": ["net/g%2Fh", "net/g/h"],
    "net/i j": ["net/i", "net/i%20j"],
    "net/k?l": ["net/k"],
    "net/m#n": ["net/m"],
    "net/ö☃": [],
    "net/o\\p": ["net/o/p"],
    "net/q;r=s": ["net/q"],
    "net/t+u": ["net/t u"],
    "net/~2Fv": ["net//v", "net/v"],
    "net/1.2.3.4:5,x=@y": [],
}

SERVER = """
server {{
    listen 127.0.0.1:{{port}};
    merge_slashes {merge};
    location / {{ proxy_pass http://127.0.0.1:{port}; }}
    location /with-uri/ {{ proxy_pass http://127.0.0.1:{port}/; }}
    location /variable/ {{ rewrite ^/variable(/.*)$ $1 break; proxy_pass http://127.0.0.1:{port}$uri$is_args$args; }}
    location /moved/ {{ rewrite ^/moved/keys/.*$ /keys/net/other break; proxy_pass http://127.0.0.1:{port}; }}
    location /silent/ {{
        rewrite ^/silent/keys/.*$ /keys/net/other break;
        proxy_set_header Datasync-Key "";
        proxy_pass http://127.0.0.1:{port};
    }}
    location /query/ {{ set $args "follow=$arg_follow&prefix=else/"; proxy_pass http://127.0.0.1:{port}/; }}
}}
"""


@pytest.fixture(params=["on", "off"])
def merge(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gateway(server: Server, tmp_path: Path, merge: str) -> Iterator[str]:
    """The URL of nginx in front of the server."""
    with Nginx(tmp_path / "nginx", SERVER.format(port=server.port, merge=merge)) as nginx:
        yield f"http://{nginx.address}"


@pytest.fixture
def everywhere(adapter: Adapter) -> Iterator[Subscriber]:
    with Subscriber(adapter, "", willing=True) as subscriber:
        yield subscriber


def held(adapter: Adapter) -> dict[str, bytes]:
    return {pair.key: pair.raw for pair in adapter.registry.items()}


@pytest.mark.parametrize("way", ["", "/with-uri", "/variable"])
def test_c23_every_key_is_the_same_on_both_sides_of_a_gateway(
    adapter: Adapter, everywhere: Subscriber, gateway: str, way: str
) -> None:
    # given strangers' keys, which a gateway could turn ours into
    strangers = {other for others in KEYS.values() for other in others} - KEYS.keys()
    adapter.registry.submit_changes({key: ChangeBytes(key, b'"stranger"') for key in strangers})
    with Client(gateway + way) as client:
        # when every key is put, read and deleted through it
        for key in KEYS:
            client.put(key, text(key))
            pair = client.get(key)
            assert pair is not None
            assert plain(pair.get_value(StringValue())) == key
        assert {pair.get_key() for pair in client.list()} == KEYS.keys() | strangers
        assert held(adapter).keys() == KEYS.keys() | strangers
        assert [bool(client.delete(key)) for key in KEYS] == [True] * len(KEYS)
        assert [bool(client.delete(key)) for key in KEYS] == [False] * len(KEYS)
    # then the strangers' keys are as they were
    assert held(adapter) == dict.fromkeys(strangers, b'"stranger"')


def test_c23_a_watch_through_a_gateway_has_the_same_keys(everywhere: Subscriber, gateway: str) -> None:
    with Client(f"{gateway}/with-uri", prefix="net//") as client:
        queue: Queue[Any] = Queue()
        client.watch("w", queue, queue, "")
        event = take(queue)
        assert state(event) == {}
        event.done()
        client.put("b", text("x"))
        event = take(queue)
        assert told(event) == [("b", "x", None)]
        event.done()


def test_c23_a_request_whose_path_was_rewritten_is_refused_before_anything_is_applied(
    adapter: Adapter, everywhere: Subscriber, gateway: str, merge: str
) -> None:
    # given a stranger's key
    adapter.registry.submit_changes({"net/b": ChangeBytes("net/b", b'"stranger"')})
    http = Http(gateway)
    # when a path that a gateway may rewrite comes with the key that is meant
    meant = {"Datasync-Key": escape("net//b")}
    put = http("PUT", "/with-uri/keys/net//b", b'"x"', {**JSON, **meant})
    deleted = http("DELETE", "/with-uri/keys/net//b", None, meant)
    http.close()
    # then it is as asked, or not at all
    expected = (412, 412) if merge == "on" else (201, 200)
    assert (put.status, deleted.status) == expected
    assert put.headers["Datasync-Key"] == escape("net/b" if merge == "on" else "net//b")
    assert held(adapter) == {"net/b": b'"stranger"'}


def test_c23_a_client_behind_a_gateway_that_moves_keys_changes_nothing(
    adapter: Adapter, everywhere: Subscriber, gateway: str
) -> None:
    adapter.registry.submit_changes({"net/other": ChangeBytes("net/other", b'"stranger"')})
    with Client(f"{gateway}/moved") as client:
        for act in (
            lambda: client.put("net/a", text("x")),
            lambda: client.delete("net/a"),
            lambda: client.get("net/a"),
        ):
            with pytest.raises(StoreError, match="another key") as caught:
                act()
            assert not isinstance(caught.value, UnknownOutcome)
    assert held(adapter) == {"net/other": b'"stranger"'}


def test_c23_an_answer_about_another_key_is_never_taken_for_success(everywhere: Subscriber, gateway: str) -> None:
    # given a gateway that takes away the header, too
    with Client(f"{gateway}/silent") as client:
        with pytest.raises(UnknownOutcome, match="another key may have been changed"):
            client.put("net/a", text("x"))
        with pytest.raises(StoreError, match="about another key"):
            client.get("net/a")
        for _ in range(2):  # a key that is there, and one that is not
            with pytest.raises(UnknownOutcome, match="another key"):
                client.delete("net/a")


def test_c23_a_stream_of_other_prefixes_is_not_taken_for_an_empty_state(
    everywhere: Subscriber, client: Client, gateway: str
) -> None:
    client.put("net/a", text("x"))
    with Client(f"{gateway}/query", prefix="net/") as misled:
        with pytest.raises(StoreError, match="not from a datasync server"):
            misled.list()
        queue: Queue[Any] = Queue()
        misled.watch("w", queue, queue, "")
        with pytest.raises(NotReadyError):
            misled.wait_ready(0.3)
        assert queue.empty()
