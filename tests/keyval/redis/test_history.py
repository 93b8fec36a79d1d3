"""The log that is written with the data: what it says, and what streams and listings make of it (C3, C13, C17)."""

from __future__ import annotations

import random
import struct
import threading
import time
from typing import Any

import pytest
from redis.connection import Connection
from redis.exceptions import DataError

from datasync.commits import Commit
from datasync.errors import CompactedError, InvalidArgumentError, StoreError, UnknownOutcome
from datasync.keyval.effects import net_effect
from datasync.keyval.redis import scan
from datasync.keyval.redis.link import LARGE, packed
from datasync.keyval.types import DeleteOp, PutOp, RewoundError, WriteOp
from tests.conftest import wait_until
from tests.keyval.redis.conftest import OpenStore
from tests.support.proxy import TcpProxy
from tests.support.redis_servers import RedisServer, SentinelGroup
from tests.support.stores import all_after, fold, following, state
from tests.support.timing import at_most

pytestmark = pytest.mark.redis

KEYS = ["a", "a/1", "a/2", "a\xff", "b", "b/1", "\U0001f600", "c\0d"]


def entry(server: RedisServer, revision: int) -> dict[bytes, Any]:
    ((_, flat),) = server.ask("XRANGE", "datasync:log", f"{revision}-0", f"{revision}-0")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def decoded(payload: bytes) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = []
    while payload:
        kind, key, value = struct.unpack(">cII", payload[:9])
        text, data = payload[9 : 9 + key].decode(), payload[9 + key : 9 + key + value]
        found.append((text, data if kind == b"P" else None))
        payload = payload[9 + key + value :]
    return found


def test_c4_the_script_and_the_library_agree_on_the_effect_of_any_transaction(
    server: RedisServer, open_store: OpenStore
) -> None:
    # given random transactions, of puts, deletes and prefixes that meet
    store, chance = open_store(server), random.Random(7)
    held: dict[str, bytes] = {}
    revision = store.scan("").revision
    for number in range(400):
        ops: list[WriteOp] = []
        for key in chance.sample(KEYS, chance.randint(1, 5)):
            one = chance.random()
            ops.append(
                PutOp(key, b"%d" % number) if one < 0.5 else DeleteOp(key) if one < 0.85 else DeleteOp(key, prefix=True)
            )
        effect = net_effect(ops, held.__contains__, lambda prefix: sorted(k for k in held if k.startswith(prefix)))
        # when one is committed / then revision, count, log entry and data are those of the library's own rule
        done = store.commit(ops)
        revision += bool(effect)
        assert done == (True, revision, sum(op is None for op in effect.values()))
        if effect:
            expected = [(key, None if op is None else op.value) for key, op in effect.items()]
            assert decoded(entry(server, revision)[b"o"]) == expected
        for key, op in effect.items():
            held.pop(key, None)
            if op is not None:
                held[key] = op.value
    assert state(store) == held
    assert {key.decode() for key in server.ask("KEYS", "*") if not key.startswith(b"datasync:")} == set(held)
    assert all(server.ask("GET", key) == value for key, value in held.items())


def test_the_data_are_plain_strings_that_other_programs_read(redis_server: RedisServer, open_store: OpenStore) -> None:
    open_store(redis_server).new_broker("/vnf-agent/").put("key", b"value")
    assert redis_server.cli("GET", "/vnf-agent/key") == "value"


def test_c3_each_entry_names_the_one_before(server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(server)
    for number in range(5):
        store.commit([PutOp("a", b"%d" % number)])
    for revision in range(2, 7):
        assert entry(server, revision)[b"p"] == entry(server, revision - 1)[b"t"]


@pytest.mark.parametrize(
    "settings",
    [{"history_commits": 50}, {"history_bytes": 20_000}, {"history_age": 0.001}],
    ids=lambda one: next(iter(one)),
)
def test_c13_the_history_is_trimmed_by_count_bytes_and_age(
    redis_server: RedisServer, open_store: OpenStore, settings: dict[str, Any]
) -> None:
    store = open_store(redis_server, **settings)
    for _ in range(300):
        store.commit([PutOp("a", bytes(200))])
    assert redis_server.ask("XLEN", "datasync:log") < 180
    with following(store, "", 2) as follower:
        assert isinstance(follower.ending(), CompactedError)
    # and a stream that begins at the last entry, or at the first that is left, misses nothing
    first = int(redis_server.ask("XRANGE", "datasync:log", "-", "+", "COUNT", 1)[0][0].split(b"-")[0])
    assert len(all_after(store, "", first, 301)[0].commits) > 0


def test_c13_a_flushed_database_is_a_rewind_within_two_seconds(server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(server)
    last = store.commit([PutOp("a", b"1")]).revision
    with following(store, "", last) as follower:
        follower.until(last)
        begun = time.monotonic()
        server.ask("FLUSHDB")
        assert isinstance(follower.ending(), RewoundError)
        assert time.monotonic() - begun < at_most(2.0)
    assert state(store) == {}


def test_c13_an_older_copy_that_has_grown_past_the_position_is_found_by_the_token(
    redis_server: RedisServer, open_store: OpenStore
) -> None:
    # given a position that a stream reached, and a copy from before
    store = open_store(redis_server)
    start = store.commit([PutOp("a", b"1")]).revision
    redis_server.stop()
    redis_server.save("copy")
    redis_server.start()
    last = [store.commit([PutOp("a", b"lost %d" % number)]) for number in range(3)][-1].revision
    with following(store, "", start) as follower:
        follower.until(last)
    # when the copy is put back and grows past that
    redis_server.kill()
    redis_server.restore("copy")
    redis_server.start()
    for number in range(10):
        open_store(redis_server).commit([PutOp("a", b"other %d" % number)])
    # then the stream does not go on, although epoch and revisions would fit
    with following(store, "", last) as follower:
        assert isinstance(follower.ending(), RewoundError)


def test_c13_a_log_that_was_removed_is_a_gap(server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(server)
    last = store.commit([PutOp("a", b"1")]).revision
    with following(store, "", last) as follower:
        follower.until(last)
        server.ask("DEL", "datasync:log")
        assert isinstance(follower.ending(), CompactedError)
    last = store.commit([PutOp("b", b"2")]).revision
    assert state(store) == {"a": b"1", "b": b"2"}
    assert all_after(store, "", last, last)[0].revision == last


def test_c13_an_entry_of_another_program_is_an_error(redis_server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(redis_server)
    last = store.commit([PutOp("a", b"1")]).revision
    for fields in (("x", "y"), ("t", "x", "p", "x", "o", "P\0\0\0\x09")):
        with following(store, "", last) as follower:
            follower.until(last)
            redis_server.ask("XADD", "datasync:log", f"{last + 1}-0", *fields)
            assert "not of this library" in str(follower.ending())
        redis_server.ask("XDEL", "datasync:log", f"{last + 1}-0")
        redis_server.ask("XSETID", "datasync:log", f"{last}-0")


def test_a_listing_under_writers_is_exactly_its_revision(
    redis_server: RedisServer, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given pages of a few keys, and a writer that puts and deletes all the time
    monkeypatch.setattr(scan, "PAGE_KEYS", 20)
    store, writer = open_store(redis_server), open_store(redis_server)
    start = store.scan("").revision
    over = threading.Event()
    chance = random.Random(3)

    def write() -> None:
        while not over.is_set():
            key = f"k{chance.randrange(200):03}"
            writer.commit([DeleteOp(key)] if chance.random() < 0.3 else [PutOp(key, b"%d" % chance.randrange(99))])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: writer._revision > 300, "there is something to list")
        # when it is listed again and again
        listings = []
        for _ in range(15):
            listing = store.scan("k")
            pairs = list(listing)
            assert [pair.key for pair in pairs] == sorted(pair.key for pair in pairs)
            listings.append((listing.revision, {pair.key: (pair.value, pair.revision) for pair in pairs}))
    finally:
        over.set()
        thread.join()
    # then each is the fold of the log at its revision
    commits: list[Commit] = [c for b in all_after(store, "", start, store.scan("").revision) for c in b.commits]
    for revision, found in listings:
        expected: dict[str, tuple[bytes, int]] = {}
        for commit in commits:
            if commit.revision <= revision:
                for key, value in commit.ops:
                    expected.pop(key, None)
                    if value is not None:
                        expected[key] = value, commit.revision
        assert found == expected


@pytest.mark.parametrize("applied", [True, False])
def test_c17_a_commit_without_a_response_is_settled_by_its_token(
    server: RedisServer, open_store: OpenStore, applied: bool
) -> None:
    # given a way that swallows the response, or the request
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        store, other = open_store(proxy, timeout=1.5), open_store(server)
        store.commit([PutOp("a", b"0")])
        proxy.black_hole(up=not applied, down=applied)
        with pytest.raises(UnknownOutcome, match="may have been applied") as caught:
            store.commit([PutOp("a", b"1")])
        proxy.heal()
        # when anybody asks / then the answer is true
        assert other.committed(caught.value.token) is applied
        assert store.committed(caught.value.token) is applied
        assert state(other) == {"a": b"1" if applied else b"0"}


def test_c17_what_was_settled_as_not_applied_is_never_applied(redis_server: RedisServer, open_store: OpenStore) -> None:
    # given a server that stands still with the request in its socket
    store, other = open_store(redis_server, timeout=1.5), open_store(redis_server, timeout=20.0)
    store.commit([PutOp("a", b"0")])
    answers: list[bool] = []
    redis_server.freeze()
    with pytest.raises(UnknownOutcome) as caught:
        store.commit([PutOp("a", b"1")])
    # when somebody asks what became of it, and the server wakes up
    thread = threading.Thread(target=lambda: answers.append(other.committed(caught.value.token)))
    thread.start()
    redis_server.thaw()
    thread.join()
    # then the answer stays true, whichever of the two was first
    assert state(other) == {"a": b"1" if answers == [True] else b"0"}


def test_c17_a_token_that_was_settled_is_refused(redis_server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(redis_server)
    assert store.committed("1-0123456789abcdef") is False
    from datasync.keyval.redis import store as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "new_token", lambda _: "1-0123456789abcdef")
        with pytest.raises(StoreError, match="so it was not applied"):
            store.commit([PutOp("a", b"1")])
    assert state(store) == {}
    with pytest.raises(InvalidArgumentError):
        store.committed("nonsense")
    for _ in range(3):
        store.commit([PutOp("a", b"1")])
    store.compact()
    with pytest.raises(CompactedError):
        store.committed("1-0000000000000000")


def test_c17_with_wait_replicas_a_commit_is_on_a_replica_or_its_outcome_is_unknown(
    sentinels: SentinelGroup, redis_server: RedisServer, open_store: OpenStore
) -> None:
    master = sentinels.master()
    store = open_store(master, wait_replicas=1)
    revision = store.commit([PutOp("waited", b"1")]).revision
    assert revision > 1
    assert sentinels.replica().ask("GET", "waited") == b"1"
    lonely = open_store(redis_server, wait_replicas=1, wait_timeout=0.1)
    with pytest.raises(UnknownOutcome, match="0 of 1 replicas have it.*min-replicas-to-write") as caught:
        lonely.commit([PutOp("a", b"1")])
    assert lonely.committed(caught.value.token) is True


def test_c15_a_store_reconnects_after_a_restart_without_an_error_of_the_next_call(
    server: RedisServer, open_store: OpenStore
) -> None:
    store = open_store(server)
    store.commit([PutOp("a", b"1")])
    server.kill()
    server.start()
    assert store.commit([PutOp("b", b"2")]).succeeded
    assert fold(all_after(store, "", 1, 3)) == {"a": b"1", "b": b"2"}


def test_what_the_driver_uses_of_the_client_library_is_there() -> None:
    # Parts that its documentation does not promise: a release without them must be noticed here.
    from redis.connection import Connection

    connection: Any = Connection(protocol=3)
    assert connection._sock is None
    assert callable(connection._parser.set_invalidation_push_handler)


def test_every_argument_is_sent_as_the_client_library_sends_it() -> None:
    command = (
        b"SET",
        "é",
        b"",
        7,
        -1,
        1.5,
        b"\xff" * LARGE,
        b"x" * (LARGE + 1),
        memoryview(b"12"),
        "z" * (LARGE + 1),
        0,
    )
    expected = b"".join(Connection()._command_packer.pack(*command))
    assert b"".join(packed(command)) == expected
    for argument in (None, object(), ["a"]):
        with pytest.raises(DataError):
            packed((b"SET", argument))


def test_a_value_that_is_like_bytes_is_written_as_its_bytes(redis_server: RedisServer, open_store: OpenStore) -> None:
    store = open_store(redis_server)
    for value in (bytearray(b"\x001"), memoryview(b"\x001")):
        store.commit([PutOp("a", value)])  # type: ignore[arg-type]  # as some callers do
        assert state(store) == {"a": b"\x001"}
