"""The reader over a real etcd that is killed, compacted, cut off, emptied: C3, C13; D33, D57, D59, D61, D67."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from datasync.commits import Batch
from datasync.events import ResyncReason
from datasync.keyval.etcd import EtcdStore
from datasync.keyval.reader import StoreReader
from datasync.keyval.types import DeleteOp, PutOp
from tests.conftest import wait_until
from tests.keyval.etcd.conftest import OpenStore, while_stopped
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdServer

pytestmark = pytest.mark.etcd


@dataclass
class Mirror:
    """A sink that keeps what it is told."""

    state: dict[str, bytes] = field(default_factory=dict)
    reasons: list[ResyncReason] = field(default_factory=list)
    revisions: list[int] = field(default_factory=list)
    losses: list[Exception] = field(default_factory=list)

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        self.state = {key: value for key, (_, value) in entries.items()}
        self.reasons.append(reason)

    def feed_changes(self, batch: Batch) -> None:
        for commit in batch.commits:
            self.revisions.append(commit.revision)
            for key, value in commit.ops:
                if value is None:
                    del self.state[key]
                else:
                    self.state[key] = value

    def source_lost(self, error: Exception) -> None:
        self.losses.append(error)


@dataclass
class Setup:
    """A reader behind a proxy, and a writer that reaches the server directly."""

    server: EtcdServer
    proxy: TcpProxy
    writer: EtcdStore
    mirror: Mirror

    def put(self, key: str, value: str) -> int:
        return self.writer.commit([PutOp(key, value.encode())]).revision

    def converges(self, **expected: str) -> None:
        wanted = {key: value.encode() for key, value in expected.items()}
        wait_until(lambda: self.mirror.state == wanted, f"the mirror is {expected}")


@pytest.fixture
def setup(server34: EtcdServer, open_store: OpenStore) -> Iterator[Setup]:
    with TcpProxy(("127.0.0.1", server34.port)) as proxy:
        yield from _setup(server34, proxy, open_store)


def _setup(server34: EtcdServer, proxy: TcpProxy, open_store: OpenStore) -> Iterator[Setup]:
    mirror = Mirror()
    writer = open_store(server34.endpoint)
    reader = StoreReader(open_store(proxy.address, idle_limit=1.0, dial_timeout=0.3), "p/", mirror)
    made = Setup(server34, proxy, writer, mirror)
    made.put("p/a", "1")
    made.put("p/b", "1")
    reader.start()
    made.converges(a="1", b="1")
    yield made
    reader.close()


@pytest.mark.parametrize("fault", ["refuse", "reset", "black_hole"])
def test_d67_an_outage_is_made_up_for_without_listing_again(setup: Setup, fault: str) -> None:
    getattr(setup.proxy, fault)()
    written = [setup.put("p/a", "2"), setup.writer.commit([DeleteOp("p/b")]).revision, setup.put("p/c", "1")]
    if fault == "black_hole":
        wait_until(lambda: setup.mirror.losses, "the silence is noticed")
    setup.proxy.heal()
    setup.converges(a="2", c="1")
    assert setup.mirror.reasons == [ResyncReason.INITIAL]
    assert setup.mirror.revisions == written


def test_d57_after_a_compaction_while_cut_off_what_is_gone_is_gone(setup: Setup) -> None:
    # given changes, a delete among them, that are compacted before the reader is back
    setup.proxy.refuse()
    setup.put("p/a", "2")
    setup.writer.commit([DeleteOp("p/b")])
    setup.put("p/c", "1")
    setup.writer.compact()
    setup.proxy.heal()
    # then it lists again, once, and goes on from there
    setup.converges(a="2", c="1")
    setup.put("p/c", "2")
    setup.converges(a="2", c="2")
    assert setup.mirror.reasons == [ResyncReason.INITIAL, ResyncReason.COMPACTED]


@pytest.mark.parametrize("with_a_put", [True, False])
def test_c13_deletes_that_are_compacted_at_the_revision_of_the_resume_are_no_loss_of_data(
    setup: Setup, with_a_put: bool
) -> None:
    # given a last commit with a delete, which was seen, and that the history is compacted up to exactly while cut off
    ops = [DeleteOp("p/b"), PutOp("p/a", b"2")] if with_a_put else [DeleteOp("p/b")]
    last = setup.writer.commit(ops).revision
    wait_until(lambda: last in setup.mirror.revisions, "it is seen")
    setup.proxy.refuse()
    setup.writer.compact(last)
    setup.proxy.heal()
    # then it is listed again, as compacted: the store never went back
    wait_until(lambda: len(setup.mirror.reasons) == 2, "it is listed again")
    assert setup.mirror.reasons == [ResyncReason.INITIAL, ResyncReason.COMPACTED]
    setup.put("p/c", "1")
    setup.converges(a="2" if with_a_put else "1", c="1")


def test_d59_after_a_loss_of_data_the_reader_starts_over(setup: Setup) -> None:
    while_stopped(setup.server, setup.server.wipe, kill=True)
    setup.put("p/new", "1")
    setup.converges(new="1")
    setup.put("p/new", "2")
    setup.converges(new="2")
    assert setup.mirror.reasons == [ResyncReason.INITIAL, ResyncReason.REWOUND]


def test_d33_d61_kills_of_the_server_freeze_nobody(setup: Setup) -> None:
    written = []
    for number in range(3):
        setup.server.restart()
        written.append(setup.put("p/a", f"{number}"))
        setup.converges(a=f"{number}", b="1")
    assert setup.mirror.revisions == written
    assert setup.mirror.reasons == [ResyncReason.INITIAL]
