"""Pairs and changes by their short names, decoded by the codec in force: C19."""

from __future__ import annotations

import dataclasses
from queue import Queue
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue

from datasync import codecs
from datasync.codecs import Codec
from datasync.commits import Batch, Commit
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.events import Op, ResyncReason
from datasync.serializer import SerializerProto
from datasync.syncbase import Change, ChangeBytes, Registry
from datasync.syncbase.change import KeyVal, KeyValBytes
from tests.conftest import take

SECRET = "s3cret"


@dataclasses.dataclass
class Flag:
    rate: int


def sourced(codec: Codec[Any] | None = None) -> Registry:
    registry = Registry("store", codec=codec, sourced=True)
    entries = {"a": (1, b'{"rate":1}'), "b": (2, b"s3cret")}
    registry.feed_snapshot(2, entries, ResyncReason.INITIAL)
    return registry


def feed(registry: Registry, revision: int, *ops: tuple[str, bytes | None]) -> None:
    registry.feed_changes(Batch(revision, [Commit(revision, list(ops))]))


def all_pairs(event: Any) -> dict[str, Any]:
    return {pair.key: pair for pairs in event.get_values().values() for pair in pairs}


def test_c19_pairs_and_changes_have_short_names_and_are_decoded_by_the_codec_of_the_registry() -> None:
    with sourced(codecs.typed(Flag)) as registry:
        # given a subscription
        queue: Queue[Any] = Queue()
        registry.watch("agent", queue, queue, "")
        # when the first state arrives / then each pair has key, revision, raw and value
        resync = take(queue)
        pair = all_pairs(resync)["a"]
        assert (pair.key, pair.revision, pair.raw, pair.value) == ("a", 1, b'{"rate":1}', Flag(1))
        resync.done()
        # when a key changes / then the change has the previous value too
        feed(registry, 3, ("a", b'{"rate":2}'))
        change = take(queue)
        [put] = change.get_changes()
        assert (put.key, put.op, put.revision, put.raw, put.value) == ("a", Op.PUT, 3, b'{"rate":2}', Flag(2))
        assert (put.previous, put.previous_raw) == (Flag(1), b'{"rate":1}')
        change.done()
        # when it is deleted, and another one created / then what is not there is None
        feed(registry, 4, ("a", None), ("c", b'{"rate":3}'))
        change = take(queue)
        deleted, created = change.get_changes()
        assert (deleted.value, deleted.raw, deleted.previous) == (None, None, Flag(2))
        assert (created.value, created.previous, created.previous_raw) == (Flag(3), None, None)
        change.done()
        assert registry.get("c").value == Flag(3)  # type: ignore[union-attr]
        assert [pair.value for pair in registry.items("c")] == [Flag(3)]
        # the next full state lists what is gone
        registry.request_resync("agent")
        take(queue).done()


def test_c19_a_wrong_value_is_delivered_and_only_its_value_raises() -> None:
    with sourced(codecs.typed(Flag)) as registry:
        queue: Queue[Any] = Queue()
        registry.watch("agent", queue, queue, "")
        resync = take(queue)
        pair = all_pairs(resync)["b"]
        assert pair.raw == b"s3cret"
        with pytest.raises(DecodeError, match="the value of 'b' cannot be decoded") as caught:
            _ = pair.value
        assert (caught.value.form, caught.value.kind, caught.value.line) == ("JSON", "invalid", 1)
        assert SECRET not in str(caught.value)
        resync.done()
        feed(registry, 3, ("b", b'{"rate":2}'))
        change = take(queue)
        [put] = change.get_changes()
        assert put.value == Flag(2)
        with pytest.raises(DecodeError, match="'b'"):
            _ = put.previous
        change.done()


def test_c19_without_a_codec_values_are_the_bytes_or_the_message() -> None:
    with Registry() as registry:
        queue: Queue[Any] = Queue()
        registry.watch("agent", queue, queue, "")
        registry.submit_changes({"m": Change("m", StringValue(value="x")), "d": ChangeBytes("d", b"raw")})
        change = take(queue)
        message, data = change.get_changes()
        assert (message.value, message.raw) == (StringValue(value="x"), b'"x"')
        assert (data.value, data.raw) == (b"raw", b"raw")
        change.done()
    with sourced() as registry:
        assert [pair.value for pair in registry.items()] == [b'{"rate":1}', b"s3cret"]


def test_c19_a_message_is_marshalled_by_the_serializer_of_the_registry() -> None:
    with Registry(serializer=SerializerProto()) as registry:
        registry.submit_changes({"m": Change("m", StringValue(value="x"))})
        pair = registry.get("m")
        assert pair is not None
        assert pair.raw == StringValue(value="x").SerializeToString()


def test_c19_the_codec_of_a_subscription_replaces_that_of_the_registry_for_it_alone() -> None:
    with sourced(codecs.typed(Flag)) as registry:
        # given two subscriptions, one with a codec of its own
        queues: list[Queue[Any]] = [Queue(), Queue()]
        registry.watch("typed", queues[0], queues[0], "")
        registry.watch("json", queues[1], queues[1], "", codec=codecs.json)
        events = [take(queue) for queue in queues]
        assert [all_pairs(event)["a"].value for event in events] == [Flag(1), {"rate": 1}]
        for event in events:
            event.done()
        # when changes come, several transactions in one event too / then each reads them by its own codec
        feed(registry, 3, ("a", b'{"rate":2}'))
        events = [take(queue) for queue in queues]
        feed(registry, 4, ("a", b'{"rate":3}'))
        feed(registry, 5, ("c", b'{"rate":4}'))
        for event, values in zip(events, [(Flag(2), Flag(1)), ({"rate": 2}, {"rate": 1})], strict=True):
            [change] = event.get_changes()
            assert (change.value, change.previous) == values
            event.done()
        events = [take(queue) for queue in queues]
        assert [[change.value for change in event.get_changes()] for event in events] == [
            [Flag(3), Flag(4)],
            [{"rate": 3}, {"rate": 4}],
        ]
        for event in events:
            event.done()
        # and so it is with the keys that a RESYNC lists as gone
        registry.feed_snapshot(9, {"a": (8, b'{"rate":5}')}, ResyncReason.COMPACTED)
        events = [take(queue) for queue in queues]
        gone = [{pair.key: pair for pair in event.get_removed()}["c"].value for event in events]
        assert gone == [Flag(4), {"rate": 4}]
        for event in events:
            event.done()
        assert registry.get("a").value == Flag(5)  # type: ignore[union-attr]


def test_c19_a_message_codec_reads_messages_and_the_form_that_a_peer_sent() -> None:
    with Registry(codec=codecs.message(StringValue)) as registry:
        peer = ChangeBytes("p", StringValue(value="peer").SerializeToString(), serializer=SerializerProto())
        registry.submit_changes({"m": Change("m", StringValue(value="own")), "p": peer, "s": Change("s", Struct())})
        assert [registry.get(key).value.value for key in "mp"] == ["own", "peer"]  # type: ignore[union-attr]
        with pytest.raises(DecodeError, match="'s' is a google.protobuf.Struct"):
            _ = registry.get("s").value  # type: ignore[union-attr]


class Foreign:
    """A value of another library: it has only ``get_value``."""

    def get_key(self) -> str:
        return "f"

    def get_revision(self) -> int:
        return 0

    def get_value(self, message: Any) -> Any:
        return message


def test_c19_an_object_without_bytes_says_so() -> None:
    with Registry(codec=codecs.json) as registry:
        registry.submit_changes({"f": Foreign()})  # type: ignore[dict-item]
        pair = registry.get("f")
        assert pair is not None
        for read in (lambda: pair.raw, lambda: pair.value):
            with pytest.raises(DecodeError, match="'f' is a Foreign, which has no bytes"):
                read()


def test_c19_an_event_of_another_source_is_forwarded_with_its_value() -> None:
    with Registry("first", codec=codecs.json) as first, Registry("second") as second:
        first.submit_changes({"a": ChangeBytes("a", b"[1]")})
        pair = first.get("a")
        assert pair is not None
        second.submit_changes({"a": pair})  # type: ignore[dict-item]
        forwarded = second.get("a")
        assert forwarded is not None
        assert (forwarded.value, forwarded.raw) == ([1], b"[1]")


def test_c19_values_of_callers_have_short_names_too() -> None:
    made = KeyVal("k", StringValue(value="x"), 3)
    assert (made.key, made.revision, made.value, made.raw) == ("k", 3, StringValue(value="x"), b'"x"')
    bare = KeyValBytes("k", b"x", 3)
    assert (bare.key, bare.revision, bare.value, bare.raw) == ("k", 3, b"x", b"x")
    assert (Change("k", op=Op.DELETE).value, Change("k", op=Op.DELETE).raw) == (None, None)


class Broken:
    def encode(self, value: Any) -> bytes:
        raise RuntimeError(SECRET)

    def decode(self, data: bytes) -> Any:
        raise RuntimeError(SECRET)


def test_c19_whatever_a_codec_of_the_user_raises_is_a_decode_error_without_its_text() -> None:
    with sourced(Broken()) as registry:
        with pytest.raises(DecodeError, match="'a' cannot be decoded: the codec raised RuntimeError") as caught:
            _ = registry.get("a").value  # type: ignore[union-attr]
        assert SECRET not in str(caught.value)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_c19_what_is_not_a_codec_is_refused_at_once() -> None:
    import json

    for wrong, words in (
        (json, "the module json"),
        (codecs, "the module"),
        (Broken, "type"),
        (codecs.typed, "function"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"a codec is .* not {words}"):
            Registry(codec=wrong)  # type: ignore[arg-type]
        with Registry() as registry, pytest.raises(InvalidArgumentError, match=words):
            registry.watch("agent", Queue(), None, "", codec=wrong)  # type: ignore[arg-type]
