"""Cells over real Redis and Valkey servers: alone, behind sentinels, in a cluster, and with other writers."""

from __future__ import annotations

from typing import Any

import pytest

from datasync.keyval.redis import RedisConfig, RedisStore
from tests.faults.cell import Cell
from tests.faults.history import Truth
from tests.faults.runner import run_cell
from tests.faults.sources.redis_writer import RedisWriter
from tests.support.proxy import TcpProxy
from tests.support.redis_servers import RedisServer, redis7  # noqa: F401 - a fixture

pytestmark = pytest.mark.redis

ONE = (
    "kill9", "sigstop", "black-hole-down", "reset-mid-message", "trimmed-while-cut", "flushdb-and-grown",
    "restored-and-grown", "log-removed-while-cut", "output-buffer-limit", "rights-revoked", "value-beyond-limit",
)  # fmt: skip
SENTINEL = ("failover", "failover-with-loss", "master-frozen")
CLUSTER = ("failover", "slot-moved")
FOREIGN = ("expires", "renamed", "written-while-cut", "mixed-writers", "kill9")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "fault"),
    [("redis", fault) for fault in ONE]
    + [("valkey", fault) for fault in ("kill9", "flushdb-and-grown")]
    + [("redis-sentinel", fault) for fault in SENTINEL]
    + [("redis-cluster", fault) for fault in CLUSTER]
    + [("redis-foreign", fault) for fault in FOREIGN],
)
def test_i1_to_i16_a_fault_of_redis_under_a_steady_load(source: str, fault: str) -> None:
    result = run_cell(Cell(source, fault, "steady", 1, 5.0))
    assert result.good, result.why
    assert result.counts, result.why


@pytest.mark.parametrize("source", ["redis", "valkey"])
def test_c2_to_c13_a_history_in_which_anything_may_happen_to_a_server(source: str) -> None:
    result = run_cell(Cell(source, "random", "mixed", 1))
    assert result.good, result.why


def test_c13_c17_a_failover_that_loses_commits_and_a_slot_that_moves() -> None:
    for source, fault in (("redis-sentinel", "failover-with-loss"), ("redis-cluster", "slot-moved")):
        result = run_cell(Cell(source, fault, "steady", 1, 1.0))
        assert result.good, result.why


def test_a_transaction_of_the_writer_that_got_no_answer_counts_only_if_it_was_applied(
    redis7: RedisServer,  # noqa: F811
) -> None:
    redis7.ask("FLUSHDB")
    with TcpProxy(("127.0.0.1", redis7.port)) as proxy:
        truth = Truth()
        host, port = proxy.address.split(":")
        settings: dict[str, Any] = {"timeout": 0.3, "connect_timeout": 0.3}
        store = RedisStore(RedisConfig(addresses=((host, int(port)),), **settings))
        writer = RedisWriter(store, "p/", truth, redis7.ask)
        with store:
            for number, (up, down) in enumerate([(False, True), (True, False)]):
                writer.write([("a", b"before %d" % number)])
                # given a connection that swallows the request, or the answer
                proxy.black_hole(up=up, down=down)
                settle = writer._settle

                def healed(token: str, settle: Any = settle) -> int:
                    proxy.heal()
                    return int(settle(token))

                writer._settle = healed  # type: ignore[method-assign]
                writer.write([("a", b"lost or not %d" % number)])
                writer._settle = settle  # type: ignore[method-assign]
                # then the record is what the server holds
                writer.check()
        assert [commit.ops for commit in writer.account() or ()] == [commit.ops for commit in truth.epochs[-1].commits]
