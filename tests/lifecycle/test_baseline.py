"""Thousands of subscriptions and of reconnects, and all is as before: threads, descriptors, objects, watchers.

C15, I16.
"""

from __future__ import annotations

import concurrent.futures
import gc
import os
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from datasync import grpcsync, restsync
from datasync.keyval import connect
from datasync.keyval.api import Store
from datasync.keyval.positions import MAX_POSITIONS
from datasync.keyval.types import PutOp
from datasync.kvdbsync import Plugin
from datasync.runtime.timeouts import Timeouts
from datasync.syncbase.change import Change
from datasync.syncbase.registry import Registry
from tests.conftest import PATIENT, take, wait_until
from tests.faults.checkers.course import check_footprint
from tests.faults.history import Course, Footprint, Truth
from tests.faults.sources.scripted_store import Faults, FaultyStore
from tests.lifecycle.everything import Consumer, text
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer

SUBSCRIPTIONS = 10_000
#: Subscriptions before the first look: caches fill, lazy things are made.
WARM_UP = 300
#: Objects of one type that may be there beyond what was: one that is being put, one that a thread has in its hands.
SLACK = 5
#: What a store remembers up to a limit, whatever happens.
KEPT = {"datasync.keyval.positions.Position": MAX_POSITIONS + SLACK}

WATCHERS = "etcd_debugging_mvcc_watcher_total"


def footprint(etcd: EtcdServer | None = None) -> Footprint:
    names = tuple(sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("datasync-")))
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return Footprint(len(names), descriptors, None if etcd is None else int(etcd.metric(WATCHERS)), names)


def objects() -> Counter[str]:
    """How many there are of each type that the library defines, or leaves with its users."""
    gc.collect()
    kinds = Counter(type(one) for one in gc.get_objects())
    ours = (queue.Queue, concurrent.futures.Future, threading.Event, threading.Condition)
    return Counter(
        {
            f"{kind.__module__}.{kind.__qualname__}": count
            for kind, count in kinds.items()
            if str(kind.__module__).startswith("datasync") or kind in ours
        }
    )


def check_back(before: tuple[Footprint, Counter[str]], etcd: EtcdServer | None = None) -> None:
    """Everything is as it was *before*; threads and connections may take a moment to end."""
    wait_until(
        lambda: check_footprint(Truth(), (), Course(before=before[0], after=footprint(etcd))) is None,
        f"threads, descriptors and watchers are those of before, {before[0]}",
    )
    grown = {name: count for name, count in (objects() - before[1]).items() if count > KEPT.get(name, SLACK)}
    assert grown == {}, "objects were left behind"


@contextmanager
def registry(folder: Path, etcd: EtcdServer | None) -> Iterator[Any]:
    with Registry("baseline") as it:
        it.submit_changes({"a/b": Change("a/b", text("v"))})
        yield it


@contextmanager
def _plugin(url: str) -> Iterator[Any]:
    with connect(url) as store, Plugin(store, "/baseline/") as plugin:
        plugin.put("a/b", text("v"))
        plugin.wait_ready(PATIENT)
        yield plugin


def memory(folder: Path, etcd: EtcdServer | None) -> AbstractContextManager[Any]:
    return _plugin("memory://")


def sqlite(folder: Path, etcd: EtcdServer | None) -> AbstractContextManager[Any]:
    return _plugin(f"sqlite://{folder}/baseline.db")


@contextmanager
def etcd_store(folder: Path, etcd: EtcdServer | None) -> Iterator[Any]:
    if etcd is None:
        pytest.skip("etcd is not there")
    known = footprint(etcd).server_watchers or 0
    with _plugin(etcd.url) as plugin:
        wait_until(lambda: (footprint(etcd).server_watchers or 0) > known, "the watch stands")
        yield plugin


@contextmanager
def rest_client(folder: Path, etcd: EtcdServer | None) -> Iterator[Any]:
    with restsync.Adapter() as adapter, restsync.serve("127.0.0.1:0", adapter) as server:
        adapter.registry.submit_changes({"a/b": Change("a/b", text("v"))})
        with restsync.Client(server.url) as client:
            yield client


@contextmanager
def grpc_adapter(folder: Path, etcd: EtcdServer | None) -> Iterator[Any]:
    with grpcsync.serve("127.0.0.1:0") as server, grpcsync.Client(server.address) as client:
        server.adapter.registry.submit_changes({"a/b": Change("a/b", text("v"))})
        client.wait_ready(PATIENT)
        yield server.adapter


def come_and_go(watcher: Any, count: int) -> None:
    """Subscriptions that are answered, that are not, that change their prefixes, and that nobody reads."""
    for number in range(count):
        events: queue.Queue[Any] = queue.Queue()
        registration = watcher.watch(f"agent-{number % 3}", events, events, "a/", f"x{number}/")
        manner = number % 4
        if manner < 2:
            event = take(events)
            if manner == 0:
                event.done()
        elif manner == 2:
            registration.register(f"agent-{number % 3}", "b/")
            registration.unregister("a/")
        registration.close()
        registration.close()


@pytest.mark.parametrize("kind", [registry, memory, sqlite, etcd_store, rest_client, grpc_adapter])
def test_c15_i16_ten_thousand_subscriptions_leave_nothing_behind(
    kind: Callable[..., AbstractContextManager[Any]], tmp_path: Path, etcd: EtcdServer | None
) -> None:
    with Consumer("stays") as stays, kind(tmp_path, etcd) as watcher:
        # given a transport whose caches are warm, and one subscription that stays
        watcher.watch("stays", stays.queue, stays.queue, "a/")
        come_and_go(watcher, WARM_UP)
        before = (footprint(etcd), objects())
        # when ten thousand come and go
        come_and_go(watcher, SUBSCRIPTIONS)
        # then nothing of them is left
        check_back(before, etcd)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A reader tries again at once. Nothing is logged: pytest keeps every record, and with it what the error knew."""
    monkeypatch.setattr("datasync.runtime.timeouts.DEFAULT_TIMEOUTS", Timeouts(retry_backoff=(0.0005, 0.001)))
    caplog.set_level("CRITICAL", "datasync")


def reconnect(plugin: Plugin, store: Store, consumer: Consumer, count: int, cut: Callable[[], object]) -> None:
    """Cut it off, write something, and wait until that has arrived: so often."""
    for number in range(count):
        known = plugin.status().reconnects
        cut()
        store.commit([PutOp("/baseline/k", b'"%d"' % number)])
        wait_until(lambda: consumer.values[-1:] == [str(number)], "what was written meanwhile arrives")  # noqa: B023
        wait_until(lambda: plugin.status().reconnects > known, "it was connected anew")  # noqa: B023


def check_reconnects(
    store: Store, writer: Store, cut: Callable[[], object], count: int, etcd: EtcdServer | None
) -> None:
    with Consumer("baseline") as consumer, Plugin(store, "/baseline/") as plugin:
        plugin.watch("agent", consumer.queue, consumer.queue, "")
        plugin.wait_ready(PATIENT)
        # given a reader that streams, and has had its first breaks
        writer.commit([PutOp("/baseline/k", b'"first"')])
        assert consumer.wait_for(lambda: consumer.values == ["first"])
        reconnect(plugin, writer, consumer, 5, cut)
        before = (footprint(etcd), objects())
        told = len(consumer.values)
        # when it loses its connection that often, with something written each time
        reconnect(plugin, writer, consumer, count, cut)
        # then all that was written was told, by resuming, and nothing is left of the connections
        assert consumer.values[told:] == [str(number) for number in range(count)]
        assert consumer.resyncs == ["initial"]
        check_back(before, etcd)


def check_sqlite(folder: Path, count: int) -> None:
    faults = Faults(random.Random(7), 0.0)

    def cut() -> None:
        faults.cut()
        faults.mend()

    with connect(f"sqlite://{folder}/baseline.db", synchronous="off") as store:
        check_reconnects(FaultyStore(store, faults), store, cut, count, None)


def check_etcd(etcd: EtcdServer | None, count: int) -> None:
    if etcd is None:
        pytest.skip("etcd is not there")
    with (
        TcpProxy(("127.0.0.1", etcd.port)) as proxy,
        connect(f"etcd://{proxy.address}") as store,
        connect(etcd.url) as writer,
    ):
        check_reconnects(store, writer, proxy.reset, count, etcd)


def test_c15_i16_fifty_reconnects_of_sqlite_leave_nothing_behind(tmp_path: Path, impatient: None) -> None:
    check_sqlite(tmp_path, 50)


def test_c15_i16_twenty_reconnects_of_etcd_leave_nothing_behind(etcd: EtcdServer | None, impatient: None) -> None:
    check_etcd(etcd, 20)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_c15_i16_a_thousand_reconnects_of_sqlite_leave_nothing_behind(tmp_path: Path, impatient: None) -> None:
    check_sqlite(tmp_path, 1000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_c15_i16_a_thousand_reconnects_of_etcd_leave_nothing_behind(etcd: EtcdServer | None, impatient: None) -> None:
    check_etcd(etcd, 1000)
