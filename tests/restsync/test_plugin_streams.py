"""Event streams of an application over the plugin of a store (C2, C8)."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from datasync.commits import Batch, Commit
from datasync.errors import InvalidArgumentError
from datasync.events import ResyncReason
from datasync.examples.netconf_pb2 import Interface
from datasync.keyval import Store, connect
from datasync.kvdbsync import Plugin
from datasync.restsync import Client, serve, wsgi_app
from datasync.restsync.app.store_adapter import PluginAdapter
from tests.conftest import PATIENT, take, wait_until
from tests.restsync.support import Subscriber
from tests.restsync.test_events import Stream


@pytest.fixture
def store() -> Iterator[Store]:
    with connect(f"memory://{uuid4().hex}") as store:
        yield store


@pytest.fixture
def plugin(store: Store) -> Iterator[Plugin]:
    with Plugin(kv=store, prefix="app/") as plugin:
        plugin.wait_ready(PATIENT)
        yield plugin


def test_c2_a_stream_of_a_plugin_that_has_run_for_long_has_one_snapshot(store: Store, plugin: Plugin) -> None:
    # given a plugin with keys, in a store where other keys change as well
    broker = store.new_broker()
    broker.put("app/a", b"1")
    revision = broker.put("other/b", b"2").revision
    wait_until(lambda: plugin.registry.revision >= revision, "the mirror has followed")
    # when an application is made, and a stream is opened
    adapter = PluginAdapter(plugin)
    with Stream(adapter) as stream:
        assert take(stream.queue)[0] == "resync"
        assert [item["key"] for item in take(stream.queue)[1]] == ["a"]
        synced = take(stream.queue)
        assert (synced[0], synced[1]["keys"]) == ("synced", 1)
        # then what follows is changes, whatever other keys do
        broker.put("other/b", b"3")
        broker.put("app/c", b"\xff")
        name, document, identity = take(stream.queue)
        assert (name, [(one["key"], one["data"]) for one in document["changes"]]) == ("change", [("c", "/w==")])
    # and the stream resumes after its last event
    broker.put("app/d", b"4")
    with Stream(adapter, last_id=identity) as stream:
        document = stream.until("change")[1]
        assert [one["key"] for one in document["changes"]] == ["d"]
    adapter.close()


def test_c2_a_stream_starts_over_when_the_store_went_back_in_time_however_far_it_is_since(plugin: Plugin) -> None:
    # given a stream at revision 7
    registry = plugin.registry
    adapter = PluginAdapter(plugin)
    registry.feed_snapshot(7, {"a": (7, b"1")}, ResyncReason.RECONNECTED)
    with Stream(adapter) as stream:
        identity = stream.until("synced")[2]
        # when the store is restored from a copy, and has more revisions than before at once
        registry.feed_snapshot(5, {"a": (5, b"0"), "b": (2, b"2")}, ResyncReason.REWOUND)
        registry.feed_changes(Batch(9, [Commit(number, [("c", b"%d" % number)]) for number in (6, 7, 8, 9)]))
        # then the stream gets the whole state
        assert take(stream.queue)[:2] == ("resync", {"revision": 9, "reason": "rewound"})
        assert {item["key"]: item["value"] for item in take(stream.queue)[1]} == {"a": 0, "b": 2, "c": 9}
    # and so does one that comes back with an event of before
    with Stream(adapter, last_id=identity) as stream:
        assert take(stream.queue)[1]["reason"] == "rewound"
    adapter.close()


def test_c10_an_application_over_a_plugin_marks_what_its_subscribers_rejected(plugin: Plugin) -> None:
    # given a plugin with a subscriber that rejects a key
    with Subscriber(plugin, ""), serve("127.0.0.1:0", plugin) as server, Client(server.url) as client:
        # when that is put over HTTP / then the store has it, and a read tells
        client.put("refuse", Interface(name="eth0"))
        wait_until(lambda: plugin.registry.not_accepted("refuse"), "it was rejected")
        found = client.get("refuse")
        assert found is not None
        assert found.not_accepted == ("agent",)
        assert plugin.store.new_broker("app/").get_value("refuse").found
        # and the plugin stays open when the server closes
    assert not plugin.registry.closed
    # but its closing ends what the application serves
    application = wsgi_app(plugin)
    plugin.close()
    assert application.ended()


def test_an_application_stands_on_nothing_but_an_adapter_or_the_plugin_of_a_store() -> None:
    with pytest.raises(InvalidArgumentError, match="the plugin of a store, not a dict"):
        wsgi_app({})  # type: ignore[arg-type]
