"""Cells over real etcds, what cannot be mixed with them (leases), and whether their writer can be believed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.events import Op, ResyncEvent
from datasync.keyval.etcd import EtcdConfig, EtcdStore
from datasync.keyval.types import PutOp
from datasync.kvdbsync.plugin import Plugin
from tests.conftest import PATIENT, absent, take, wait_until
from tests.faults.cell import Cell
from tests.faults.history import Truth, TruthCommit
from tests.faults.recorder import RawSerializer
from tests.faults.runner import run_cell
from tests.faults.sources.etcd import WATCHERS
from tests.faults.sources.etcd_writer import SureWriter, read_account
from tests.support.executables import etcd_servers
from tests.support.proxy import TcpProxy
from tests.support.servers import EtcdCluster, EtcdServer

pytestmark = pytest.mark.etcd

#: One server: a fault of each kind. The command has all of them, and every workload.
ONE = (
    "kill9", "reset-mid-page", "black-hole-down", "sigstop", "compacted-at-resume", "compacted-between-pages",
    "restored-grown-compacted", "wiped-and-grown", "value-at-limit", "transaction-beyond-limit",
)  # fmt: skip
THREE = ("leader-kill9", "connected-cut", "quorum-lost", "lagging-member", "rolling-restart")
#: With something in between that is not ours.
BETWEEN = (("etcd-proxy", "wiped-and-grown"), ("etcd-balanced", "lagging-member"), ("etcd-nginx", "leader-kill9"))
SECURE = ("token-expired-while-cut", "permission-revoked", "certificate-rotated")
#: Other clients with 10,000 client-lifetime keys, and elections.
LEASES = ("lease-lost-with-10000-keys", "owner-suspended-with-10000-keys", "candidates-removed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "fault"),
    [*(("etcd", fault) for fault in ONE), *(("etcd3", fault) for fault in THREE)]
    + [("etcd-secure", fault) for fault in SECURE]
    + list(BETWEEN)
    + [("etcd-leases", fault) for fault in LEASES],
)
def test_i1_to_i16_a_fault_of_etcd_under_a_steady_load(source: str, fault: str) -> None:
    result = run_cell(Cell(source, fault, "steady", 1, 5.0))
    assert result.good, result.why
    assert result.counts, result.why


@pytest.mark.parametrize("source", ["etcd3", "etcd-secure"])
def test_c2_to_c13_a_history_in_which_anything_may_happen_to_etcd(source: str) -> None:
    result = run_cell(Cell(source, "random", "mixed", 1))
    assert result.good, result.why


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    programs = list(etcd_servers().values())
    if not programs:
        absent("etcd")
    with EtcdServer(programs[0], tmp_path / "etcd") as server:
        yield server


def test_i3_i6_watchers_are_told_of_a_lease_that_was_revoked_and_of_the_value_that_comes_again(
    server: EtcdServer,
) -> None:
    # given a value that lives as long as its client, and a watcher of it
    owner, store = (EtcdStore(EtcdConfig(endpoints=(server.endpoint,), session_ttl=3)) for _ in range(2))
    owner.commit([PutOp("p/mine", b"1", client_lifetime=True)])
    queue: Queue[Any] = Queue()
    with owner, store, Plugin(store, "p/", serializer=RawSerializer()) as plugin:
        plugin.watch("w", queue, queue, "")
        first = take(queue)
        assert isinstance(first, ResyncEvent)
        first.done()
        # when somebody revokes its lease
        (lease,) = [line for line in server.ctl("lease", "list").splitlines() if "found" not in line]
        server.ctl("lease", "revoke", lease)
        # then it goes, and comes again, with the value before told truly both times
        seen: list[tuple[str, Op, bytes | None]] = []
        while len(seen) < 2:
            event = take(queue)
            for change in event.get_changes():
                before = BytesValue()
                existed = change.get_prev_value(before)
                seen.append((change.get_key(), change.get_change_type(), before.value if existed else None))
            event.done()
        assert seen == [("mine", Op.DELETE, b"1"), ("mine", Op.PUT, None)]
        # and when the owner leaves, it goes for good
        owner.close()
        event = take(queue)
        assert [(one.get_key(), one.get_change_type()) for one in event.get_changes()] == [("mine", Op.DELETE)]
        event.done()


def test_i0_the_account_of_etcd_is_the_record_of_its_writer_and_begins_after_a_compaction(server: EtcdServer) -> None:
    # given a writer's record
    truth = Truth()
    writer = SureWriter(EtcdStore(EtcdConfig(endpoints=(server.endpoint,))), "p/", truth)
    with writer.store, grpc.insecure_channel(server.endpoint) as channel:
        for number in range(5):
            writer.write([("a", b"%d" % number), ("b", b"x" * 2000), ("c", None)])
        writer.write([("a", None)])
        # then etcd says the same
        assert read_account(channel, "p/", writer.foreign()) == truth.epochs[-1].commits
        # and after a compaction what is left of it
        third: TruthCommit = truth.epochs[-1].commits[2]
        writer.compact(third.revision)
        assert read_account(channel, "p/", writer.foreign()) == truth.epochs[-1].commits[3:]
        # and nothing when there is nothing left
        writer.compact()
        assert read_account(channel, "p/", writer.foreign()) is None


def test_a_transaction_of_the_writer_that_got_no_answer_counts_only_if_it_was_applied(server: EtcdServer) -> None:
    with TcpProxy(("127.0.0.1", server.port)) as proxy:
        truth = Truth()
        store = EtcdStore(EtcdConfig(endpoints=(proxy.address,), operation_timeout=0.5, dial_timeout=0.3))
        writer = SureWriter(store, "p/", truth)
        with store:
            for number, (up, down) in enumerate([(False, True), (True, False), (True, True)]):
                writer.write([("a", b"before %d" % number)])
                # given a connection that swallows the request, or the answer
                proxy.black_hole(up=up, down=down)
                # when the writer asks what became of it, as soon as it can
                healed = _later(proxy.swallowed.wait, proxy.heal)
                writer.write([("a", b"lost or not %d" % number)])
                healed.join(PATIENT)
                proxy.swallowed.clear()
                # then the record is what the server holds
                writer.check()
                wait_until(lambda: not proxy.holes["up"], "the proxy is healed")


def _later(*steps: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        for step in steps:
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_c13_the_others_go_on_without_a_leader_that_was_cut_off_and_whoever_is_connected_to_it_follows_them(
    tmp_path: Path,
) -> None:
    programs = list(etcd_servers().values())
    if not programs:
        absent("etcd")
    timing = ("--heartbeat-interval", "50", "--election-timeout", "500")
    with EtcdCluster(programs[0], tmp_path / "etcd", *timing, network=True) as cluster:
        # given a watcher that is connected to the leader, and may go to the others
        leader = cluster.leader()
        others = [member for member in cluster.members if member is not leader]
        endpoints = (leader.endpoint, *(member.endpoint for member in others))
        store = EtcdStore(EtcdConfig(endpoints=endpoints, idle_limit=2.0))
        writer = EtcdStore(EtcdConfig(endpoints=endpoints[1:], dial_timeout=5.0, operation_timeout=10.0))
        queue: Queue[Any] = Queue()
        with store, writer, Plugin(store, "p/", serializer=RawSerializer()) as plugin:
            plugin.watch("w", queue, queue, "")
            take(queue).done()
            wait_until(lambda: leader.metric(WATCHERS) == 1, "it follows the leader")
            # when the leader is cut off from the others, who elect another one and take a change
            cluster.cut(leader)
            wait_until(lambda: any(member.is_leader for member in others), "there is another leader")
            writer.commit([PutOp("p/new", b"1")])
            # then the watcher gets it while the old leader is still cut off: that one has no quorum, and says so
            event = take(queue)
            assert [change.get_key() for change in event.get_changes()] == ["new"]
            event.done()
            assert plugin.status().reconnects >= 1
