"""A million keys, listed from Redis and from Kafka by a process of its own: seconds, and how far its memory grows.

``python -m tests.benchmarks.million ours|baseline URL`` prints both; the URL is that of the store.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datasync.keyval.types import PutOp
from datasync.keyval.urls import connect
from tests.benchmarks import kafka, redis
from tests.benchmarks.etcd_memory import memory
from tests.benchmarks.harness import Bench, Figures, Row, Sides
from tests.support.kafka import KafkaServer, find_kafka
from tests.support.running import environment

KEYS = 1_000_000
#: Puts of one commit that fills the store.
BATCH = 2000


def filled_redis(keys: int) -> Iterator[str]:
    with redis.server() as running, connect(running.url) as store:
        for start in range(0, keys, BATCH):
            numbers = range(start, min(keys, start + BATCH))
            store.commit([PutOp(f"{redis.PREFIX}{number:07}", kafka.VALUE) for number in numbers])
        yield running.url


def filled_kafka(keys: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, KafkaServer(find_kafka(), Path(folder)) as server:
        topic = server.create_topic()
        kafka.fill(server.address, topic, keys)
        yield f"kafka://{server.address}/{topic}"


def bare(url: str) -> dict[str, tuple[int, bytes]] | dict[bytes, bytes | None]:
    """All pairs of the store at *url*, by its bare client."""
    scheme, _, rest = url.partition("://")
    if scheme == "kafka":
        return kafka.poll_all(*rest.split("/"))
    return redis.scan_all(int(rest.rpartition(":")[2]))


def main(side: str, url: str) -> None:
    with connect(url) as store:
        # Imports and connections are not measured.
        store.check()
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        started = time.perf_counter()
        kept = {pair.key: pair.value for pair in store.scan("")} if side == "ours" else bare(url)
        print(len(kept), time.perf_counter() - started, memory("VmHWM") - before)


def _bench(name: str, baseline: str, filled: Callable[[int], Iterator[str]]) -> Bench:
    rows = [Row(f"{name}-list-{KEYS}", "s", 2.0), Row(f"{name}-list-peak-{KEYS}", "MB", 2.0)]

    @contextmanager
    def sides(scale: float) -> Iterator[Sides]:
        keys = max(BATCH, int(KEYS * scale))
        with contextmanager(filled)(keys) as url:

            def side(which: str) -> Figures:
                command = [sys.executable, "-m", "tests.benchmarks.million", which, url]
                done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
                found, seconds, grown = done.stdout.split()
                assert int(found) == keys
                return {rows[0].name: float(seconds), rows[1].name: int(grown) / 1e6}

            yield Sides(lambda: side("ours"), lambda: side("baseline"))

    return Bench(f"{name}-million", baseline, rows, sides, repeats=3)


BENCHES = [
    _bench("redis", "SCAN and MGET by redis-py into a dict, in a process of its own", filled_redis),
    _bench("kafka", "a bare consumer into a dict, in a process of its own", filled_kafka),
]

if __name__ == "__main__":
    main(*sys.argv[1:])
