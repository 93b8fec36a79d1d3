"""Cells over a real Kafka: faults of the broker, of the way to it, and of the topic."""

from __future__ import annotations

import pytest

from tests.faults.cell import Cell
from tests.faults.runner import run_cell
from tests.support.kafka import find_kafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

#: A fault of each kind. The command has all of them, and every workload.
FAULTS = (
    "kill9", "sigstop", "black-hole", "reset-mid-message", "recreated-and-grown-while-cut", "trimmed-while-cut",
    "expired-tombstones", "more-partitions", "transaction", "transaction-aborted",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_i1_to_i16_a_fault_of_kafka_under_a_steady_load(fault: str) -> None:
    find_kafka()
    result = run_cell(Cell("kafka", fault, "steady", 1, 5.0))
    assert result.good, result.why
    assert result.counts, result.why


@pytest.mark.parametrize("seed", [1, 2])
def test_c2_to_c13_a_history_in_which_anything_may_happen_to_a_topic(seed: int) -> None:
    find_kafka()
    result = run_cell(Cell("kafka", "random", "mixed", seed, 2.0))
    assert result.good, result.why
