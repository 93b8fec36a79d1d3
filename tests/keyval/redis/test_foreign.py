"""Programs without the library that write the same keys: with ``foreign_writers`` nothing of it is missed (C23)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.events import ResyncEvent
from datasync.keyval import PutOp
from datasync.keyval.redis import RedisStore
from datasync.kvdbsync.plugin import Plugin
from tests.conftest import take, wait_until
from tests.faults.recorder import RawSerializer
from tests.keyval.redis.conftest import OpenStore
from tests.support.redis_servers import RedisServer
from tests.support.stores import Following, fold, state

pytestmark = pytest.mark.redis


class Watching:
    """Follows a store, and folds what it says."""

    def __init__(self, store: RedisStore) -> None:
        listing = store.scan("")
        self.view = {pair.key: pair.value for pair in listing}
        self._follower = Following(store.stream("", listing.revision))

    def until(self, expected: dict[str, bytes]) -> None:
        def seen() -> bool:
            while not self._follower.queue.empty():
                item = take(self._follower.queue)
                assert not isinstance(item, Exception), f"the stream ended: {item!r}"
                self.view = fold([item], self.view)
            return self.view == expected

        wait_until(seen, f"the stream says {expected!r}")

    def close(self) -> None:
        self._follower.close()


@pytest.fixture
def store(server: RedisServer, open_store: OpenStore) -> RedisStore:
    return open_store(server, foreign_writers=True)


@pytest.fixture
def watching(server: RedisServer, store: RedisStore) -> Iterator[Watching]:
    server.ask("SET", "before", "1")
    watching = Watching(store)
    yield watching
    watching.close()


Command = tuple[Any, ...]


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([("SET", "a", "1")], {"a": b"1"}),
        ([("MSET", "a", "1", "b", "2"), ("DEL", "a")], {"b": b"2"}),
        ([("SET", "a", "1"), ("APPEND", "a", "2"), ("SETRANGE", "a", 0, "x")], {"a": b"x2"}),
        ([("SET", "a", "1"), ("RENAME", "a", "b"), ("COPY", "b", "c")], {"b": b"1", "c": b"1"}),
        ([("SET", "a", "1", "PX", 100), ("SET", "b", "1")], {"b": b"1"}),
        ([("SET", "a", "1"), ("PEXPIRE", "a", 100), ("INCR", "b")], {"b": b"1"}),
        ([("SET", "a", "1"), ("DEL", "a"), ("RPUSH", "a", "x"), ("SET", "b", "1")], {"b": b"1"}),
        ([("SET", "a", "1"), ("GETDEL", "a"), ("UNLINK", "before"), ("SET", "b", "1")], {"b": b"1"}),
        ([("EVAL", "redis.call('SET','a','1') redis.call('SET','a','2')", 0)], {"a": b"2"}),
    ],
)
def test_c23_whatever_another_program_does_to_a_key_is_delivered(
    server: RedisServer, watching: Watching, commands: list[Command], expected: dict[str, bytes]
) -> None:
    assert watching.view == {"before": b"1"}
    for command in commands:
        server.ask(*command)
    before = {} if any("before" in command for command in commands) else {"before": b"1"}
    watching.until({**before, **expected})


def test_c23_the_library_and_another_program_write_the_same_key(
    server: RedisServer, store: RedisStore, open_store: OpenStore, watching: Watching
) -> None:
    # given a client of the library that does not know of other programs
    plain = open_store(server)
    for number in range(30):
        (server.ask if number % 2 else lambda _, key, value: plain.commit([PutOp(key, value)]))(
            "SET", "shared", b"%d" % number
        )
    watching.until({"before": b"1", "shared": b"29"})
    # then a value that is there already is no change
    revision = store.scan("").revision
    server.ask("SET", "shared", "29")
    assert store.scan("").revision == revision
    assert store.new_broker().compare_and_swap("shared", b"29", b"30")
    watching.until({"before": b"1", "shared": b"30"})


@pytest.mark.parametrize(
    "misfortune",
    [
        lambda server: server.ask("CLIENT", "KILL", "TYPE", "normal"),
        lambda server: (server.kill(), server.start()),
    ],
    ids=["connections killed", "server killed"],
)
def test_c23_what_happened_while_nobody_listened_is_found(
    server: RedisServer, store: RedisStore, misfortune: Callable[[RedisServer], object]
) -> None:
    # given a plugin that follows both
    queue: Queue[Any] = Queue()
    with Plugin(store, serializer=RawSerializer()) as plugin:
        plugin.watch("w", queue, queue, "")
        take(queue).done()
        server.ask("SET", "gone", "1")
        seen: dict[str, bytes] = {}

        def follow(expected: dict[str, bytes]) -> None:
            while seen != expected:
                event = take(queue)
                if isinstance(event, ResyncEvent):
                    seen.clear()
                    pairs = [kv for values in event.get_values().values() for kv in values]
                    seen.update((kv.get_key(), kv.get_value(BytesValue()).value) for kv in pairs)
                else:
                    for change in event.get_changes():
                        seen.pop(change.get_key(), None)
                        if change.get_change_type().value == "Put":
                            seen[change.get_key()] = change.get_value(BytesValue()).value
                event.done()

        follow({"gone": b"1"})
        # when the connections break, and another program goes on
        misfortune(server)
        server.ask("DEL", "gone")
        server.ask("SET", "new", "2")
        # then it is all delivered
        follow({"new": b"2"})
        server.ask("FLUSHDB")
        server.ask("SET", "after", "3")
        follow({"after": b"3"})


def test_c23_a_listing_has_what_other_programs_wrote_before_anybody_followed(
    redis_server: RedisServer, open_store: OpenStore
) -> None:
    for key in ("p/a", "p/*", "q/a"):
        redis_server.ask("SET", key, key)
    store = open_store(redis_server, foreign_writers=True, foreign_prefix="p/")
    assert state(store) == {"p/a": b"p/a", "p/*": b"p/*"}
    redis_server.ask("DEL", "p/*")
    assert state(store, "p/*") == {}
    assert state(store, "q") == {}


def test_c23_without_the_option_other_programs_are_not_followed(
    redis_server: RedisServer, open_store: OpenStore
) -> None:
    store = open_store(redis_server)
    store.commit([PutOp("a", b"1")])
    redis_server.ask("SET", "b", "2")
    assert state(store) == {"a": b"1"}
    assert store.new_broker().get_value("b").data == b"2"
    # a delete of it is told truly, and is nothing that the history has
    revision = store.scan("").revision
    assert store.new_broker().delete("b").changed
    assert store.scan("").revision == revision
    assert redis_server.ask("EXISTS", "b") == 0
