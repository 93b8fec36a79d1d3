"""Redis: commits, the delay of a change, and a snapshot, against redis-py on the same server."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from datasync.keyval.types import PutOp
from datasync.keyval.urls import connect
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.benchmarks.latency import COMMITS, PREFIX, Delays, start_writer, through_the_library
from tests.benchmarks.limits import reached
from tests.benchmarks.replay import PATIENCE
from tests.support.redis_servers import RedisServer, find_redis

#: Commits of one run, and keys of a snapshot.
PUTS, KEYS = 5000, 50_000
VALUE = b"x" * 200

#: The least that keeps the promises of one put: value, key list, revision and log entry change together.
LEAST = """
local state = redis.call('HMGET', KEYS[4], 'last', 'bytes', 'token')
local revision, bytes = string.format('%d', (state[1] or 1) + 1), string.format('%d', (state[2] or 0) + #ARGV[2])
redis.call('SET', KEYS[5], ARGV[2])
if redis.call('HSET', KEYS[3], KEYS[5], revision) == 1 then redis.call('ZADD', KEYS[2], 0, KEYS[5]) end
local time = redis.call('TIME')
redis.call('XADD', KEYS[1], revision .. '-0', 't', ARGV[1], 'p', state[3] or '', 'o', ARGV[2], 'm', time[1], 'b', bytes)
redis.call('HSET', KEYS[4], 'last', revision, 'bytes', bytes, 'token', ARGV[1])
return revision
"""


@contextmanager
def server() -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, RedisServer(find_redis(), Path(folder) / "data") as running:
        yield running


@contextmanager
def commits(scale: float) -> Iterator[Sides]:
    puts = max(50, int(PUTS * scale))
    with server() as running, connect(running.url) as store, Redis(port=running.port) as bare:

        def rate(put: object) -> Figures:
            started = time.perf_counter()
            for number in range(puts):
                put(f"{PREFIX}{number % 1000}", VALUE)  # type: ignore[operator]
            return {"redis-commit": puts / (time.perf_counter() - started)}

        digest = bare.script_load(LEAST)
        own = [f"least:{name}" for name in ("log", "index", "revisions", "state")]

        def least(key: str, value: bytes) -> None:
            bare.evalsha(digest, 5, *own, f"least{key}", os.urandom(8).hex(), value)

        sides = Sides(lambda: rate(lambda key, value: store.commit([PutOp(key, value)])), lambda: rate(bare.set))
        yield sides
        rates = [lambda side=side: rate(side)["redis-commit"] for side in (least, bare.set)]  # type: ignore[misc]
        sides.notes.append(reached("a script that writes value, revision and log entry in one step", *rates))


@contextmanager
def latency(scale: float) -> Iterator[Sides]:
    wanted = max(20, int(5 * COMMITS * scale))
    with server() as running, connect(running.url) as store, Redis(port=running.port) as bare:

        def baseline() -> Figures:
            delays = Delays()
            after: bytes | str = f"{store.scan('').revision}-0"
            deadline = time.monotonic() + PATIENCE
            with start_writer(running.url, wanted, 0.01):
                while not delays.over.is_set():
                    assert time.monotonic() < deadline, "the writer does not write"
                    for _, entries in bare.xread({"datasync:log": after}, block=1000) or ():  # type: ignore[union-attr]
                        for name, fields in entries:
                            after = name
                            payload = fields[b"o"]  # one put
                            delays.note(payload[9 + int.from_bytes(payload[1:5], "big") :])
            return delays.figures("redis-put")

        yield Sides(lambda: through_the_library(store, running.url, wanted, 0.01).figures("redis-put"), baseline)


def scan_all(port: int) -> dict[bytes, bytes | None]:
    """The pairs under the prefix, by redis-py."""
    found: dict[bytes, bytes | None] = {}
    with Redis(port=port) as bare:
        cursor = 0
        while True:
            cursor, names = bare.scan(cursor, match=f"{PREFIX}*", count=1000)  # type: ignore[misc]
            found.update(zip(names, bare.mget(names) if names else (), strict=True))  # type: ignore[arg-type]
            if not cursor:
                return found


@contextmanager
def snapshot(scale: float) -> Iterator[Sides]:
    keys = max(100, int(KEYS * scale))
    with server() as running, connect(running.url) as store:
        for start in range(0, keys, 1000):
            store.commit([PutOp(f"{PREFIX}{number:07}", VALUE) for number in range(start, min(keys, start + 1000))])

        def timed(listing: object) -> Figures:
            started = time.perf_counter()
            assert len(listing()) == keys  # type: ignore[operator]
            return {f"redis-snapshot-{KEYS}": time.perf_counter() - started}

        def ours() -> dict[str, bytes]:
            return {pair.key: pair.value for pair in store.scan(PREFIX)}

        yield Sides(lambda: timed(ours), lambda: timed(lambda: scan_all(running.port)))


BENCHES = [
    Bench(
        "redis-commits",
        "SET by redis-py on the same server",
        [Row("redis-commit", "commits/s", 0.5, higher_is_better=True)],
        commits,
    ),
    Bench(
        "redis-latency",
        "a blocking XREAD by redis-py on the same log",
        [Row("redis-put-p50", "ms", 0.0, extra=1.5), Row("redis-put-p99", "ms")],
        latency,
        repeats=3,
    ),
    Bench(
        "redis-snapshot",
        "SCAN and MGET by redis-py into a dict, in no order and at no one revision",
        [Row(f"redis-snapshot-{KEYS}", "s", 2.0)],
        snapshot,
        repeats=5,
    ),
]
