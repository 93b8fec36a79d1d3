"""Cells over real PostgreSQL servers: a store and a table, alone, as a pair, pooled, on a small disk, and upgraded."""

from __future__ import annotations

import pytest

from tests.faults.cell import Cell
from tests.faults.runner import run_cell

pytestmark = pytest.mark.postgres

BOTH = (
    "kill9", "stop-immediate", "backends-kill9", "backends-terminated", "sigstop", "black-hole", "black-hole-up",
    "black-hole-down", "stall", "reset", "reset-mid-message", "rights-taken", "long-transaction", "lock-held",
    "trimmed", "trimmed-while-cut", "restored", "restored-and-grown", "big-transaction", "big-value",
)  # fmt: skip
STORE = ("wiped", "wiped-while-cut", "second-writer", "foreign-writer")
TABLE = ("truncated", "truncated-while-cut", "column-added", "trigger-disabled", "rolled-back", "savepoints",
         "other-table", "table-locked")  # fmt: skip
PAIR = ("failover", "failover-with-loss", "standby-killed")
POOLED = ("kill9", "backends-terminated", "sigstop", "pooler-kill9", "pooler-restarted", "pooler-frozen", "lock-held")

#: Source and fault of every cell.
CELLS = [
    *(("postgres", fault) for fault in (*BOTH, *STORE)),
    *(("postgres-table", fault) for fault in (*BOTH, *TABLE)),
    *((source, fault) for source in ("postgres-pair", "postgres-table-pair") for fault in PAIR),
    *(("postgres-pooled", fault) for fault in POOLED),
    *((source, "disk-full") for source in ("postgres-disk", "postgres-table-disk")),
    *((source, "upgraded") for source in ("postgres-upgraded", "postgres-table-upgraded")),
]


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize(("source", "fault"), CELLS)
def test_i1_to_i16_a_fault_of_postgresql_under_a_steady_load(source: str, fault: str) -> None:
    result = run_cell(Cell(source, fault, "steady", 1, 4.0))
    if result.good and not result.counts:  # a busy machine did not come to it
        result = run_cell(Cell(source, fault, "steady", 1, 16.0))
    assert result.good, result.why
    assert result.counts, result.why


@pytest.mark.parametrize("source", ["postgres", "postgres-table"])
def test_c2_to_c13_a_history_in_which_anything_may_happen_to_a_server(source: str) -> None:
    result = run_cell(Cell(source, "random", "mixed", 1, 2.0))
    assert result.good, result.why
