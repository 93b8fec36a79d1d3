"""What a user writes, for type checkers only: ``test_values.py`` runs them over this file. It is never imported.

Each ``type: ignore`` stands where a checker must complain: an unused one is an error too.
"""

from __future__ import annotations

import dataclasses
from queue import Queue
from typing import Any, TypedDict

import msgspec
import pydantic
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from typing_extensions import assert_type

import datasync
from datasync import ChangedPair, Pair, Plugin, View, codecs, connect
from datasync.codecs import Codec
from datasync.keyval import Store
from datasync.testing import override


@dataclasses.dataclass
class VHost:
    name: str
    port: int = 80


class Flag(TypedDict):
    rate: int


class Route(msgspec.Struct):
    target: str


class User(pydantic.BaseModel):
    name: str


def codecs_have_the_type_of_their_values() -> None:
    assert_type(codecs.typed(VHost).decode(b""), VHost)
    assert_type(codecs.typed(Flag).decode(b""), Flag)
    assert_type(codecs.typed(Route, form=codecs.yaml).decode(b""), Route)
    assert_type(codecs.typed(User).decode(b""), User)
    assert_type(codecs.typed(list[VHost]).decode(b""), list[VHost])
    assert_type(codecs.message(Struct).decode(b""), Struct)
    assert_type(codecs.text.decode(b""), str)
    assert_type(codecs.raw.decode(b""), bytes)
    codecs.typed(VHost).encode(User(name="a"))  # type: ignore[arg-type]
    codecs.text.encode(b"bytes")  # type: ignore[arg-type]
    codecs.message(Struct).encode("text")  # type: ignore[arg-type]
    codecs.message(VHost)  # type: ignore[type-var]


def a_plugin_has_the_type_of_its_codec(store: Store) -> None:
    with Plugin(store, "vhost/", codec=codecs.typed(VHost)) as plugin:
        assert_type(plugin, Plugin[VHost])
        plugin.put("a", VHost("a"))
        plugin.put("a", "text")  # type: ignore[arg-type]
        plugin.put("a", Struct())  # type: ignore[arg-type]
        pair = plugin.get("a")
        if pair is not None:
            assert_type(pair, Pair[VHost])
            assert_type(pair.value, VHost)
            assert_type(pair.raw, bytes)
            assert_type(pair.key, str)
            pair.value = VHost("b")  # type: ignore[misc]
        for one in plugin.items("a"):
            assert_type(one.value.port, int)
    anything = Plugin(store, codec=codecs.json)
    anything.put("a", {"rate": 1})


def a_plugin_without_a_codec_takes_messages(store: Store) -> None:
    plugin = Plugin(store)
    assert_type(plugin, Plugin[Message])
    plugin.put("a", Struct())
    plugin.put("a", {"rate": 1})  # type: ignore[arg-type]


def a_name_without_a_parameter_still_means_messages(plugin: Plugin) -> datasync.KeyProtoValDeleter:
    plugin.put("a", Struct())
    return plugin


class Upper:
    """A codec of a user."""

    def encode(self, value: str) -> bytes:
        return value.upper().encode()

    def decode(self, data: bytes) -> str:
        return data.decode()


class Backwards:
    def encode(self, value: bytes) -> str:
        return value.decode()

    def decode(self, data: str) -> bytes:
        return data.encode()


def any_object_with_both_methods_is_a_codec(store: Store) -> None:
    own: Codec[str] = Upper()
    assert_type(Plugin(store, codec=own), Plugin[str])
    Plugin(store, codec=Backwards())  # type: ignore[call-overload]


def a_view_and_settings_know_their_values(plugin: Plugin[Any]) -> None:
    assert_type(View(plugin, "flags"), View[Any])
    hosts = View(plugin, "hosts", "vhost/", codec=codecs.typed(VHost), max_stale=5.0)
    assert_type(hosts, View[VHost])
    assert_type(hosts["a"], VHost)
    with override(hosts, a=VHost("a")):
        assert_type(hosts.get("a"), VHost | None)


def events_may_be_read_by_a_declared_type(store: Store) -> None:
    queue: Queue[Any] = Queue()
    with connect("memory:") as store, Plugin(store, codec=codecs.typed(VHost)) as plugin:
        plugin.watch("agent", queue, queue, "", codec=codecs.json)
        change: ChangedPair[VHost] = queue.get().get_changes()[0]
        assert_type(change.value, VHost | None)
        assert_type(change.previous, VHost | None)
        assert_type(change.raw, bytes | None)
