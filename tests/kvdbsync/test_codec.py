"""A plugin with a codec: C19."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from datasync import codecs
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.keyval import Store, connect
from datasync.kvdbsync import Plugin
from datasync.options import with_prefix
from tests.conftest import take, wait_until


@dataclasses.dataclass
class VHost:
    name: str
    port: int = 80


@pytest.fixture
def store() -> Iterator[Store]:
    with connect("memory:") as store:
        yield store


def test_c19_a_plugin_writes_and_reads_by_its_codec(store: Store) -> None:
    with Plugin(store, "vhost/", codec=codecs.typed(VHost)) as plugin:
        queue: Queue[Any] = Queue()
        plugin.watch("agent", queue, queue, "")
        take(queue).done()
        # when an object is put
        plugin.put("a", VHost("a", 8080))
        # then the store has its JSON, the subscriber the object, and the mirror both
        assert store.new_broker("vhost/").get_value("a").value == b'{"name":"a","port":8080}'
        event = take(queue)
        assert [change.value for change in event.get_changes()] == [VHost("a", 8080)]
        event.done()
        pair = plugin.get("a")
        assert pair is not None
        assert (pair.key, pair.value, pair.raw) == ("a", VHost("a", 8080), b'{"name":"a","port":8080}')
        assert [pair.value.port for pair in plugin.items()] == [8080]
        assert plugin.get("b") is None
        assert plugin.items("b") == []
        # and a codec for one subscription does not change that of the plugin
        other: Queue[Any] = Queue()
        plugin.watch("json", other, other, "", codec=codecs.json)
        event = take(other)
        [pairs] = event.get_values().values()
        assert [one.value for one in pairs] == [{"name": "a", "port": 8080}]
        event.done()
        assert plugin.delete("a", with_prefix())


def test_c19_what_would_not_be_read_back_is_not_written(store: Store) -> None:
    with Plugin(store, codec=codecs.typed(VHost)) as plugin:
        for wrong in (VHost("a", "s3cret"), None, {"name": "a"}, StringValue()):  # type: ignore[arg-type]
            with pytest.raises(InvalidArgumentError, match="'a' cannot be put: the value") as caught:
                plugin.put("a", wrong)  # type: ignore[arg-type]
            assert "s3cret" not in str(caught.value)
        with pytest.raises(InvalidArgumentError, match="use delete to remove a key"):
            plugin.put("a", None)  # type: ignore[arg-type]
        assert list(store.new_broker().list_keys()) == []


def test_c19_a_wrong_value_in_the_store_raises_where_it_is_read(store: Store) -> None:
    with Plugin(store, codec=codecs.typed(VHost)) as plugin:
        store.new_broker().put("a", b'{"name":5}')
        wait_until(lambda: plugin.get("a") is not None, "the mirror has the key")
        with pytest.raises(DecodeError, match="'a' cannot be decoded.*field name"):
            _ = plugin.items()[0].value


def test_c19_without_a_codec_a_plugin_takes_messages(store: Store) -> None:
    with Plugin(store) as plugin:
        plugin.put("a", StringValue(value="x"))
        wait_until(lambda: plugin.get("a") is not None, "the mirror has the key")
        assert [pair.value for pair in plugin.items()] == [b'"x"']
        with pytest.raises(InvalidArgumentError, match="protobuf message"):
            plugin.put("a", VHost("a"))  # type: ignore[arg-type]
    for wrong in (VHost, object()):
        with pytest.raises(InvalidArgumentError, match="a codec is"):
            Plugin(store, codec=wrong)  # type: ignore[call-overload]


def test_c19_what_brokers_and_watchers_return_has_short_names(store: Store) -> None:
    from datasync.keyval import ProtoWrapper

    seen: Queue[Any] = Queue()
    with store.new_watcher().watch(seen.put):
        broker = ProtoWrapper(store).new_broker()
        broker.put("a", StringValue(value="x"))
        broker.put("a", StringValue(value="y"))
        [pair] = broker.list_values()
        assert (pair.key, pair.revision, pair.value, pair.raw) == ("a", 3, b'"y"', b'"y"')
        [stored] = store.new_broker().list_values()
        assert (stored.key, stored.revision, stored.value, stored.raw) == ("a", 3, b'"y"', b'"y"')
        found, missing = store.new_broker().get_value("a"), store.new_broker().get_value("b")
        assert (found.value, found.raw, found.revision) == (b'"y"', b'"y"', 3)
        assert (missing.value, missing.raw, missing.revision) == (None, None, 0)
        changes = [take(seen), take(seen)]
        assert [(one.value, one.raw, one.previous, one.previous_raw) for one in changes] == [
            (b'"x"', b'"x"', None, None),
            (b'"y"', b'"y"', b'"x"', b'"x"'),
        ]
