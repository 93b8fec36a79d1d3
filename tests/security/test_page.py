"""The page shows a process and not its values, and releases deletes only for clients that may write (contract C16)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from werkzeug.test import Client as WebClient

from datasync import View, codecs
from datasync.events import ResyncReason
from datasync.keyval import Store, connect
from datasync.kvdbsync import Plugin
from datasync.restsync import Adapter, wsgi_app
from datasync.restsync.app.store_adapter import PluginAdapter
from datasync.runtime.monitoring import enrolled
from tests.conftest import CANARY, wait_until
from tests.restsync.support import JSON, Subscriber

TOKEN = f"{CANARY}-token"


@pytest.fixture
def store() -> Iterator[Store]:
    with connect(f"memory://{uuid4().hex}") as store:
        yield store


@pytest.fixture
def plugin(store: Store) -> Iterator[Plugin]:
    with Plugin(kv=store, prefix="app/", name=f"plugin-{uuid4().hex}") as plugin:
        yield plugin


def shown(web: WebClient, name: str, **headers: str) -> tuple[dict[str, Any], str]:
    """Return the source *name* of the document of the page, and the whole document as text."""
    answer = web.get("/status", headers={key.replace("_", "-"): text for key, text in headers.items()})
    document = json.loads(answer.text)
    return next(one for one in document["sources"] if one["name"] == name), answer.text


def test_c16_values_of_a_transport_that_nobody_named_are_never_on_the_page(store: Store, plugin: Plugin) -> None:
    # given a process with a store whose values are secrets, and an adapter that has nothing to do with it
    store.new_broker("app/").put("password", json.dumps(CANARY).encode())
    wait_until(lambda: plugin.registry.get("password"), "the plugin has the key")
    with Adapter() as adapter:
        # then its keys are shown, and no values, although those of the adapter may be
        source, text = shown(WebClient(wsgi_app(adapter, show_values=True)), plugin.registry.name)
        assert [one["key"] for one in source["keys"]["items"]] == ["password"]
        assert source["values"] is False
        assert CANARY not in text
        # and they are where the application names it
        source, text = shown(WebClient(wsgi_app(adapter, show_values=True, sources=[plugin])), plugin.registry.name)
        assert (source["values"], CANARY in text) == (True, True)
        source, text = shown(WebClient(wsgi_app(adapter, sources=[plugin])), plugin.registry.name)
        assert (source["values"], CANARY in text) == (False, False)
        # and an empty list hides everything but the adapter
        web = WebClient(wsgi_app(adapter, sources=[]))
        assert len(json.loads(web.get("/status").text)["sources"]) == 1


def test_c16_the_page_of_a_plugin_shows_values_only_where_that_is_allowed(store: Store, plugin: Plugin) -> None:
    store.new_broker("app/").put("password", json.dumps(CANARY).encode())
    store.new_broker("app/").put("binary", CANARY.encode() + b"\xff")
    wait_until(lambda: plugin.registry.size == 2, "the plugin has the keys")
    _, text = shown(WebClient(wsgi_app(plugin)), plugin.registry.name)
    assert CANARY not in text
    assert CANARY.encode().hex(" ") not in text
    source, text = shown(WebClient(wsgi_app(plugin, show_values=True)), plugin.registry.name)
    assert json.dumps(CANARY) in [one["value"] for one in source["keys"]["items"]]


def test_c16_nothing_about_the_process_is_told_without_the_token(plugin: Plugin) -> None:
    web = WebClient(wsgi_app(plugin, token=TOKEN))
    for answer in (web.get("/status"), web.post("/release", data="{}", headers=JSON)):
        assert answer.status_code == 401
        assert plugin.registry.name not in answer.text
    assert TOKEN not in shown(web, plugin.registry.name, Authorization=f"Bearer {TOKEN}")[1]


@pytest.fixture
def holding(store: Store, plugin: Plugin) -> Iterator[View[Any]]:
    """A view that holds the deletes of three keys."""
    with View(plugin, f"limits-{uuid4().hex}", "", codec=codecs.json, max_delete=1) as view:
        for number in range(4):
            store.new_broker("app/").put(f"limit/{number}", b"1")
        wait_until(lambda: len(view) == 4, "the view has all keys")
        plugin.registry.feed_snapshot(plugin.registry.revision, {"limit/0": (1, b"1")}, ResyncReason.RECONNECTED)
        wait_until(lambda: held(plugin), "the deletes are held")
        yield view


def held(plugin: Plugin, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(WebClient(wsgi_app(plugin, **options)).get("/status").text)["held"]
    return [one for one in found if one["name"].startswith("limits-")]


def test_c20_only_those_who_may_write_release_deletes_and_only_what_they_have_seen(
    plugin: Plugin, holding: View[Any], caplog: pytest.LogCaptureFixture
) -> None:
    ((one),) = held(plugin)
    assert one["keys"] == ["limit/1", "limit/2", "limit/3"]
    wish = {name: one[name] for name in ("kind", "name", "seen")}

    def ask(body: object, target: Any = plugin, headers: dict[str, str] = JSON, **options: Any) -> int:
        web = WebClient(wsgi_app(target, **options))
        return web.post("/release", data=json.dumps(body), headers=headers).status_code

    # then a server that only reads, one that shows its adapter alone, and a page of another site release nothing
    assert ask(wish, PluginAdapter(plugin, read_only=True)) == 403
    assert ask(wish, sources=[]) == 403
    assert ask(wish, headers={**JSON, "Origin": "http://elsewhere.example"}) == 403
    assert ask(wish, headers={"Content-Type": "text/plain"}) == 415  # a form of another site can send that
    assert ask(wish, page=False) == 404
    # and neither does a wish that is not one, or for other keys than are held
    assert ask({}) == ask([]) == ask({**wish, "seen": 1}) == ask({**wish, "more": ""}) == 400
    assert ask({**wish, "seen": "another"}) == 412
    assert ask({**wish, "name": "another"}) == 404
    assert len(holding) == 4
    # when the wish names what is held / then it is released, once, and the log tells
    with caplog.at_level(logging.WARNING, "datasync.restsync"):
        assert ask(wish) == 200
    wait_until(lambda: len(holding) == 1, "the deletes were released")
    assert "3 held deletes released over HTTP" in caplog.text
    assert ask(wish) == 404


def test_c20_deletes_that_a_reconciler_holds_are_released_as_well(store: Store, plugin: Plugin) -> None:
    from datasync import Reconciler

    known: set[str] = set()

    def apply(key: str, value: Any, previous: Any) -> None:
        (known.discard if value is None else known.add)(key)

    name = f"limits-{uuid4().hex}"
    with Reconciler(plugin, name, "", apply=apply, codec=codecs.json, max_delete=1):
        for number in range(4):
            store.new_broker("app/").put(f"limit/{number}", b"1")
        wait_until(lambda: len(known) == 4, "all keys were applied")
        plugin.registry.feed_snapshot(plugin.registry.revision, {"limit/0": (1, b"1")}, ResyncReason.RECONNECTED)
        (one,) = wait_until(lambda: held(plugin), "the deletes are held")
        wish = {key: one[key] for key in ("kind", "name", "seen")}
        answer = WebClient(wsgi_app(plugin)).post("/release", data=json.dumps(wish), headers=JSON)
        assert json.loads(answer.text) == {"released": 3}
        wait_until(lambda: known == {"limit/0"}, "the deletes were applied")


def test_c16_a_text_that_another_librarys_error_quotes_is_not_on_the_page(plugin: Plugin) -> None:
    plugin.registry.source_lost(OSError(f"cannot read {CANARY}"))
    source, text = shown(WebClient(wsgi_app(plugin)), plugin.registry.name)
    assert source["last_error"] == "OSError"
    assert CANARY not in text


def test_the_page_of_a_plugin_leaves_nothing_behind(plugin: Plugin) -> None:
    # given adapters over one plugin / when they are closed
    before = len(enrolled("source"))
    for _ in range(3):
        adapter = PluginAdapter(plugin)
        assert plugin.registry._core.observers
        adapter.close()
        adapter.close()
    # then the registry has no observers, and the plugin goes on
    assert plugin.registry._core.observers == ()
    assert len(enrolled("source")) == before
    with Subscriber(plugin, "a/"):
        assert not plugin.registry.closed
