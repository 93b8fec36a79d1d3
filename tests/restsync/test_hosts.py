"""The names under which a server may be addressed: pages of other sites neither read nor write (C22)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client as WebClient

from datasync.errors import InvalidArgumentError, PermissionDenied
from datasync.restsync import Adapter, Client, Server, serve, wsgi_app
from tests.restsync.support import JSON, Http, Subscriber
from tests.support.registries import text

PAGES = ["/", "/keys", "/keys/net/a", "/escaped/net~2Fa", "/events?follow=false", "/status", "/openapi.json"]


def asked(server: Server, method: str, path: str, **headers: str) -> int:
    """The status of one request."""
    http = Http(f"http://127.0.0.1:{server.port}")
    try:
        return http(method, path, b'"x"' if method == "PUT" else None, {**JSON, **headers}).status
    finally:
        http.close()


@contextmanager
def served(adapter: Adapter, address: str = "127.0.0.1:0", **options: Any) -> Iterator[Server]:
    with serve(address, adapter, **options) as server:
        yield server


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "x", "127.0.0.1.nip.io"])
@pytest.mark.parametrize("path", PAGES)
def test_c22_on_loopback_a_page_whose_name_was_bent_to_it_reads_nothing(server: Server, host: str, path: str) -> None:
    assert asked(server, "GET", path, Host=host) == 403


def test_c22_on_loopback_a_page_whose_name_was_bent_to_it_writes_nothing(
    adapter: Adapter, server: Server, subscriber: Subscriber
) -> None:
    port = server.port
    for method, path in (("PUT", "/keys/net/a"), ("DELETE", "/keys/net/a"), ("PUT", "/keys"), ("PATCH", "/keys")):
        assert asked(server, method, path, Host=f"evil.example:{port}", Origin=f"http://evil.example:{port}") == 403
    assert adapter.registry.size == 0


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1", "127.0.0.1:9191", "[::1]", "[::1]:80"]
)
def test_the_names_of_loopback_are_allowed(server: Server, subscriber: Subscriber, host: str) -> None:
    assert asked(server, "PUT", "/keys/net/a", Host=host) == 201


@pytest.mark.parametrize("origin", ["http://evil.example", "https://evil.example:443", "null", "http://127.0.0.1.evil"])
def test_c22_a_page_of_another_site_writes_nothing(
    adapter: Adapter, server: Server, subscriber: Subscriber, origin: str
) -> None:
    assert asked(server, "PUT", "/keys/net/a", Origin=origin) == 403
    assert asked(server, "GET", "/keys", Origin=origin) == 200  # which its browser does not show to it
    assert adapter.registry.size == 0


def test_a_page_of_the_server_itself_writes(server: Server, subscriber: Subscriber) -> None:
    assert asked(server, "PUT", "/keys/net/a", Origin=server.url) == 201


def test_other_names_are_allowed_when_they_are_given(adapter: Adapter, subscriber: Subscriber) -> None:
    with served(adapter, allowed_hosts=["config.example", "10.1.2.3"]) as server:
        for host in ("config.example", "Config.Example:8443", "10.1.2.3", "localhost", f"127.0.0.1:{server.port}"):
            assert asked(server, "PUT", "/keys/net/a", Host=host, Origin="https://config.example") in (200, 201)
        assert asked(server, "GET", "/keys", Host="evil.example") == 403
        assert asked(server, "PUT", "/keys/net/a", Origin="http://evil.example") == 403


def test_with_a_token_every_name_is_allowed_unless_names_are_given(adapter: Adapter) -> None:
    bearer = {"Authorization": "Bearer t"}
    with served(adapter, token="t") as server:
        assert asked(server, "GET", "/keys", Host="config.example", **bearer) == 200
    with served(adapter, token="t", allowed_hosts=["config.example"]) as server:
        assert asked(server, "GET", "/keys", Host="config.example", **bearer) == 200
        assert asked(server, "GET", "/keys", Host="evil.example", **bearer) == 403


def test_beyond_loopback_every_name_is_allowed_unless_names_are_given(adapter: Adapter) -> None:
    with served(adapter, "0.0.0.0:0") as server:
        assert asked(server, "GET", "/keys", Host="config.example") == 200
    with served(adapter, "0.0.0.0:0", allowed_hosts=[]) as server:
        assert asked(server, "GET", "/keys", Host="config.example") == 403


def test_an_application_that_is_served_on_loopback_is_limited_too(adapter: Adapter) -> None:
    with served(wsgi_app(adapter)) as server:  # type: ignore[arg-type]
        assert asked(server, "GET", "/keys", Host="evil.example") == 403


def test_mounted_in_another_application_every_name_is_allowed_unless_names_are_given(
    adapter: Adapter, subscriber: Subscriber
) -> None:
    # given a legacy application, which knows its own names
    def legacy(environ: Any, start_response: Any) -> Any:
        start_response("404 Not Found", [])
        return []

    web = WebClient(DispatcherMiddleware(legacy, {"/sync": wsgi_app(adapter)}))
    named = WebClient(DispatcherMiddleware(legacy, {"/sync": wsgi_app(adapter, allowed_hosts=["own.example"])}))
    # when / then a page of the same name writes, and one of another name does not
    for host, other in (("own.example", 200), ("second.example", 403)):
        headers = {"Host": host, "Origin": f"https://{host}"}
        assert web.put("/sync/keys/net/a", json="x", headers=headers).status_code in (200, 201)
        assert named.put("/sync/keys/net/a", json="x", headers=headers).status_code == other
    assert web.put("/sync/keys/net/a", json="x", headers={"Origin": "https://evil.example"}).status_code == 403


def test_a_client_is_told_that_the_name_is_not_allowed(server: Server) -> None:
    with Client(server.url) as client:
        client._requests._headers["Host"] = "evil.example"
        with pytest.raises(PermissionDenied, match="allowed host of this server"):
            client.put("net/a", text("x"))


@pytest.mark.parametrize("hosts", ["localhost", [7], [""], ["http://x"], ["x:80"], ["a/b"]])
def test_c16_hosts_that_are_none_are_refused(adapter: Adapter, hosts: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="allowed.host"):
        wsgi_app(adapter, allowed_hosts=hosts)


def test_listening_on_loopback_without_a_token_is_a_warning(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    serve("127.0.0.1:0", adapter).close()
    assert "accepts reads and writes from every program of this machine" in caplog.text
    caplog.clear()
    serve("127.0.0.1:0", adapter, token="t").close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
