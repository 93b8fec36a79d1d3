"""Many keys: listed, followed, listed again after a compaction with the server killed in the midst of paging (I2, I7).

``python -m pytest -m bench -s tests/faults/test_etcd_million.py`` takes a million, and prints seconds and memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

import pytest

from datasync.events import ChangeEvent, ResyncEvent, ResyncReason
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from datasync.keyval.types import DeleteOp, PutOp
from datasync.kvdbsync.plugin import Plugin
from datasync.syncbase.status import TransportState
from tests.benchmarks.bare_etcd import BareEtcd
from tests.conftest import wait_until
from tests.faults.recorder import RawSerializer
from tests.faults.sources.etcd import WATCHERS
from tests.support.executables import etcd_servers
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer

pytestmark = pytest.mark.etcd

#: Bytes of a value.
VALUE = 100
#: Keys that are written in one transaction, and deleted while nobody hears of it.
COMMIT, GONE = 100, 1_000
#: Seconds that each step of a million may take.
PATIENCE = 300.0

#: Bytes that nobody ever sends.
PLENTY = 1 << 40

T = TypeVar("T")


def rss() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def pairs(number: int) -> Iterator[tuple[bytes, bytes]]:
    return ((b"p/config/%07d" % n, b"%07d" % n * (VALUE // 7)) for n in range(number))


def timed(what: str, step: Callable[[], T]) -> T:
    began = time.monotonic()
    result = step()
    sys.stdout.write(f"{what:>60}: {time.monotonic() - began:7.2f} s, {rss():7.0f} MB\n")
    return result


def taken(queue: Queue[Any]) -> Any:
    return queue.get(timeout=PATIENCE)


def counted(event: ResyncEvent) -> int:
    """The keys of a full state, read to the end, each once."""
    return timed("and it is read", lambda: len({kv.get_key() for kvs in event.get_values().values() for kv in kvs}))


def is_ready(plugin: Plugin) -> bool:
    return plugin.status().state is TransportState.READY


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(20_000, id="20,000"),
        pytest.param(1_000_000, id="1,000,000", marks=[pytest.mark.bench, pytest.mark.timeout(1200)]),
    ],
)
def test_i2_i7_many_keys_are_listed_followed_and_listed_again_over_a_kill_between_pages(
    number: int, tmp_path: Path
) -> None:
    programs = etcd_servers()
    if not programs:
        pytest.skip("etcd is not there")
    program = programs.get("wheel") or programs["system"]
    with EtcdServer(program, tmp_path / "etcd") as server, TcpProxy(("127.0.0.1", server.port)) as proxy:
        # given a server with so many keys
        with BareEtcd(server.endpoint) as bare:
            timed(f"{number:,} keys of {VALUE} bytes written", lambda: bare.fill(pairs(number), COMMIT))
        store = EtcdStore(EtcdConfig(endpoints=(proxy.address,), page_size=min(number // 20, 30_000)))
        writer = EtcdStore(EtcdConfig(endpoints=(server.endpoint,), operation_timeout=30.0, dial_timeout=30.0))
        plugin = Plugin(store, "p/", serializer=RawSerializer(), allow_delayed_start=True)
        queue: Queue[Any] = Queue()
        with store, writer, plugin:
            plugin.watch("w", queue, queue, "")

            # then all of them come as one RESYNC, and a change comes after it
            def started() -> Any:
                plugin.after_init()
                return taken(queue)

            first = timed("the first RESYNC is on the queue", started)
            assert counted(first) == number
            first.done()
            del first
            writer.commit([PutOp("p/config/0000001", b"changed")])
            change = timed("a change", lambda: taken(queue))
            assert isinstance(change, ChangeEvent)
            change.done()
            # when keys are deleted and the history is compacted while it is cut off
            proxy.refuse()
            for start in range(0, GONE, COMMIT):
                writer.commit([DeleteOp(f"p/config/{n:07d}") for n in range(start, start + COMMIT)])
            writer.compact()
            # and the server dies while it lists
            proxy.heal()
            proxy.reset_after(PLENTY)
            wait_until(lambda: (proxy.budget or PLENTY) < PLENTY - number * VALUE // 3, "it lists", PATIENCE)
            server.kill()
            server.start()
            proxy.heal()
            # then the whole state comes, once, with what was deleted
            again = timed("the RESYNC after a compaction and a kill between pages", lambda: taken(queue))
            assert isinstance(again, ResyncEvent)
            assert again.reason is ResyncReason.COMPACTED
            assert counted(again) == number - GONE
            assert len(again.get_removed()) == GONE
            again.done()
            del again
            # and a break that follows needs no other one
            wait_until(lambda: server.metric(WATCHERS) == 1, "it follows", PATIENCE)
            proxy.reset()
            wait_until(lambda: not is_ready(plugin), "the break is noticed", PATIENCE)
            timed("connected again", lambda: wait_until(lambda: is_ready(plugin), "it is ready", PATIENCE))
            writer.commit([PutOp("p/config/0000001", b"changed again")])
            change = timed("a change", lambda: taken(queue))
            assert isinstance(change, ChangeEvent)
            change.done()
            timed("closed", plugin.close)
