"""A mirror whose process, source and destination are struck: equal in the end, and nothing by halves on the way."""

from __future__ import annotations

import math
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasync.events import ResyncReason
from datasync.keyval.api import Store
from datasync.keyval.urls import connect
from datasync.options import with_prefix, with_ttl
from datasync.tools.mirror import MirrorState, PrefixMirror
from datasync.tools.mirror.record import record_key
from tests.conftest import PATIENT, wait_until
from tests.support.proxy import TcpProxy
from tests.support.running import Running
from tests.support.servers import EtcdServer, find_etcd
from tests.tools.conftest import copied, equal, record, synced

GROUPS, KEYS = 8, 5


class Writer:
    """Writes transactions to *store*, each of all keys of a group with one value, until it is ended."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ending = threading.Event()
        #: Transactions that were acknowledged.
        self.count = 0
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        broker = self._store.new_broker("a/")
        while not self._ending.wait(0.002):
            txn = broker.new_txn()
            for key in range(KEYS):
                txn.put(f"{self.count % GROUPS}/{key}", b"%d" % self.count)
            txn.commit()
            self.count += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


def assert_whole(values: dict[str, bytes]) -> None:
    """Each group has one value."""
    for group in range(GROUPS):
        found = [values.get(f"{group}/{key}") for key in range(KEYS)]
        assert len(set(found)) == 1, f"group {group} was copied by halves"


def record_revision(store: Store) -> int:
    """The revision of the source at which the destination is."""
    return record(store, "b/").revision if store.read(record_key("b/")) else 0


def mirror_command(*stores: str) -> list[str]:
    return ["-m", "datasync", "mirror", *stores, "--prefix", "a/", "--dest-prefix", "b/", "--delete", "--lock-ttl", "1"]


@contextmanager
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(find_etcd("3.5"), tmp_path / "etcd") as server:
        yield server


@pytest.mark.timeout(600)
def test_a_mirror_that_is_killed_again_and_again_loses_nothing_and_halves_nothing(tmp_path: Path) -> None:
    # given a source that is written all the time
    chance = random.Random(4)
    command = mirror_command(*(f"sqlite://{tmp_path}/{name}.db" for name in "ab"))
    with connect(f"sqlite://{tmp_path}/a.db") as source, connect(f"sqlite://{tmp_path}/b.db") as destination:
        with Writer(source) as writer:
            wait_until(lambda: writer.count > GROUPS, "there is something to copy")
            for _ in range(2):
                # when its mirror is killed at some moment
                with Running(*command) as process:
                    process.wait_for("revision", PATIENT * 5)  # of its first line
                    before = record_revision(destination)
                    wait_until(lambda before=before: record_revision(destination) > before, "it copies", PATIENT * 5)
                    goal = writer.count + chance.randrange(60)
                    wait_until(lambda goal=goal: writer.count > goal, "some are written")
                    process.send(signal.SIGKILL)
                    process.wait(30)
                # then the destination has whole transactions
                assert_whole(copied(destination, "b/"))
        # when it runs to its end / then both are equal
        source.new_broker("a/").delete("0/", with_prefix())
        with PrefixMirror(source, destination, "a/", "b/", delete=True, lock_ttl=1) as mirror:
            mirror.wait_copied(PATIENT * 5)
            assert copied(destination, "b/") == copied(source, "a/")


@pytest.mark.timeout(600)
@pytest.mark.etcd
def test_a_mirror_that_was_suspended_beyond_its_lock_overwrites_nothing(tmp_path: Path) -> None:
    # with a server for the destination: a process that stops within a transaction of a file blocks the file
    with connect(f"sqlite://{tmp_path}/a.db") as source, etcd(tmp_path) as server, connect(server.url) as destination:
        broker = source.new_broker("a/")
        broker.put("1", b"x")
        with Running(*mirror_command(source.name, server.url)) as process:
            process.wait_for("synced", PATIENT * 5)
            # given a mirror that stands still, and another one that has taken over and gone on
            process.send(signal.SIGSTOP)
            with PrefixMirror(source, destination, "a/", "b/", delete=True, lock_ttl=1) as other:
                other.wait_copied(60)
                writes = [broker.put("1", b"%d" % number) for number in range(20)]
                wait_until(lambda: other.status().revision == writes[-1].revision, "it goes on")
                # when the first one wakes up / then it waits for the lock
                process.send(signal.SIGCONT)
                process.wait_for("waiting")
                broker.put("1", b"last")
                equal(source, destination, "a/", "b/")
                synced(other)
                assert other.status().comparisons == 1  # nobody touched what it wrote
            process.wait_for("synced", PATIENT * 5, times=2)


@pytest.mark.timeout(600)
@pytest.mark.etcd
def test_a_destination_that_dies_and_comes_back_is_caught_up(tmp_path: Path) -> None:
    # given a mirror from a file to a server
    with connect(f"sqlite://{tmp_path}/a.db") as source, etcd(tmp_path) as server, connect(server.url) as destination:
        with Writer(source) as writer, PrefixMirror(source, destination, "a/", "b/", delete=True) as mirror:
            mirror.wait_copied(60)
            # when the server is killed, twice
            for _ in range(2):
                before = writer.count
                server.kill()
                wait_until(lambda: mirror.status().state is MirrorState.FAILING, "it is noticed")
                assert mirror.status().in_sync_since is None
                wait_until(lambda before=before: writer.count > before + 40, "the source goes on")
                server.restart()
                marked = source.new_broker().put("other", b"x").revision
                wait_until(lambda marked=marked: mirror.status().revision > marked, "it goes on", PATIENT * 5)
                assert_whole(copied(destination, "b/"))
        # then nothing is lost
        with PrefixMirror(source, destination, "a/", "b/", delete=True) as mirror:
            mirror.wait_copied(60)
            assert copied(destination, "b/") == copied(source, "a/")
            assert mirror.failure is None


@pytest.mark.etcd
def test_a_source_that_dies_and_compacts_its_history_is_compared_again(tmp_path: Path) -> None:
    # given a mirror from a server to a file
    with (
        etcd(tmp_path) as server,
        TcpProxy(("127.0.0.1", int(server.endpoint.rpartition(":")[2]))) as proxy,
        connect(f"etcd://{proxy.address}") as source,
        connect(server.url) as direct,
        connect(f"sqlite://{tmp_path}/b.db") as destination,
        PrefixMirror(source, destination, "a/", "b/", delete=True) as mirror,
    ):
        broker = direct.new_broker("a/")
        for number in range(300):  # more than one transaction of the server
            broker.put(f"{number}", b"x")
        mirror.wait_copied(60)
        # when it is cut off, and its source is changed and compacted meanwhile
        proxy.refuse()
        proxy.reset()
        wait_until(lambda: mirror.status().state is MirrorState.FAILING, "the source is lost")
        broker.put("1", b"y")
        broker.delete("2")
        direct.compact()
        proxy.heal()
        # then the mirror goes on, with the deletes
        equal(direct, destination, "a/", "b/")
        synced(mirror)
        assert mirror.status().source.resyncs[ResyncReason.COMPACTED] == 1
        # when the server is killed / then it goes on as well
        server.kill()
        wait_until(lambda: mirror.status().state is MirrorState.FAILING, "the source is lost")
        server.restart()
        broker.put("3", b"y")
        equal(direct, destination, "a/", "b/")


@pytest.mark.etcd
def test_a_server_takes_what_it_can_in_transactions_of_its_size(tmp_path: Path) -> None:
    # given more keys than a transaction of the server can have, and a value that it does not take
    with connect(f"sqlite://{tmp_path}/a.db") as source, etcd(tmp_path) as server, connect(server.url) as destination:
        broker = source.new_broker("a/")
        for number in range(400):
            broker.put(f"{number:03}", b"x")
        broker.put("big", bytes(2_000_000))
        with PrefixMirror(source, destination, "a/", "b/", delete=True) as mirror:
            mirror.wait_copied(60)
            # then everything else is there, and the key is named
            assert len(copied(destination, "b/")) == 400
            status = mirror.status()
            assert status.state is MirrorState.FAILING
            assert list(status.source.subscriptions["mirror"].owed) == ["big"]
            # when a transaction is too large / then it is divided, and counted
            txn = broker.new_txn()
            for number in range(300):
                txn.put(f"{number:03}", b"y")
            txn.commit()
            # and the key comes when it can
            broker.put("big", b"small")
            equal(source, destination, "a/", "b/")
            synced(mirror)
            assert mirror.status().divided > 0


@pytest.mark.etcd
def test_the_time_that_a_key_of_the_server_has_left_is_copied(tmp_path: Path) -> None:
    with etcd(tmp_path) as server, connect(server.url) as source, connect(f"sqlite://{tmp_path}/b.db") as destination:
        source.new_broker("a/").put("short", b"x", with_ttl(600))
        source.new_broker("a/").put("long", b"x")
        with PrefixMirror(source, destination, "a/", "b/", ttl="copy") as mirror:
            mirror.wait_copied(60)
            left = destination.time_left(["b/short", "b/long"])
            assert 500 < left["b/short"] <= 600
            assert left["b/long"] == math.inf
        assert source.time_left(["a/none"]) == {}
