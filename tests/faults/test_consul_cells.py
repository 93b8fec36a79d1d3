"""Cells over a real Consul, alone and behind nginx."""

from __future__ import annotations

import pytest

from tests.faults.cell import Cell
from tests.faults.runner import run_cell

pytestmark = pytest.mark.consul

#: A fault of each kind. The command has all of them, and every workload.
FAULTS = (
    "kill9", "sigstop", "reset-mid-message", "black-hole-down", "wiped", "wiped-and-grown", "restored-and-grown",
    "rights-revoked", "rights-reduced", "token-deleted", "session-lost", "foreign-put-while-cut", "value-beyond-limit",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "fault"), [*(("consul", fault) for fault in FAULTS), ("consul-nginx", "nginx-kill9")]
)
def test_i1_to_i16_a_fault_of_consul_under_a_steady_load(source: str, fault: str) -> None:
    result = run_cell(Cell(source, fault, "steady", 1, 5.0))
    assert result.good, result.why
    assert result.counts, result.why


def test_i1_to_i16_a_consul_that_is_killed_under_a_steady_load() -> None:
    result = run_cell(Cell("consul", "kill9", "steady", 1, 2.0))
    assert result.good, result.why
