"""Cells whose watchers are the library's own consumers, and the proof that such a cell finds what is wrong in them."""

from __future__ import annotations

import random

import pytest

from datasync.consumer.reconciler.applied import Applied
from datasync.consumer.reconciler.work import Work
from datasync.consumer.view import notices, table
from datasync.events import ResyncReason
from tests.faults import runner
from tests.faults.cell import Cell, Result
from tests.faults.history import PutResync
from tests.faults.runner import run_cell
from tests.faults.workloads.consumers import Consumer, Manners

SECONDS = 1.5


def cell(source: str, workload: str, fault: str = "random") -> Result:
    return run_cell(Cell(source, fault, workload, seed=3, seconds=SECONDS))


@pytest.mark.parametrize(
    ("source", "workload"),
    [
        *(("memory", "failing-loops"), ("scripted", "failing-loops"), ("sqlite", "failing-loops"), ("local", "loops")),
        *(("aggregate", "loops"), ("aggregate", "failing-loops")),
    ],
)
def test_c20_reconcilers_and_views_converge_under_faults(source: str, workload: str) -> None:
    result = cell(source, workload)
    assert result.good, result.why
    assert result.events > 20


def test_c12_a_consumer_of_an_aggregate_keeps_the_keys_of_one_member_when_the_other_starts_over() -> None:
    # given a consumer that knows a key of each of two members
    about = {"abandon": 1.0, "room": 0, "shared": True}
    consumer = Consumer("one", Manners(), random.Random(0), sources=("memory", "file"), **about)  # type: ignore[arg-type]
    for source, key in (("memory", "a"), ("file", "b")):
        consumer._apply(PutResync(0.0, 0, ResyncReason.INITIAL, 1, {"": {key: b"1"}}, [], source), ())
    assert consumer.view == {"a": b"1", "b": b"1"}
    # when one of them starts over, empty / then only its key is gone
    consumer._apply(PutResync(1.0, 1, ResyncReason.REWOUND, 1, {"": {}}, [], "file"), ())
    assert consumer.view == {"a": b"1"}


def found(result: Result) -> str:
    assert not result.good
    return "\n".join([*result.violations, *result.troubles])


def test_a_call_without_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Applied, "matches", lambda self, key, data: False)
    assert "a call without a difference" in found(cell("memory", "loops", "compacted-while-cut"))


def test_a_change_that_is_not_called_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 1.0)
    offer = Work.offer

    def forgetful(self: Work, key: str, data: bytes | None, **options: object) -> None:
        if not key.startswith("b"):
            offer(self, key, data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Work, "offer", forgetful)
    assert "never converged" in found(cell("memory", "loops"))


def test_a_difference_that_a_view_does_not_report_truly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (table, notices):
        monkeypatch.setattr(module, "same", lambda old, new: False)
    assert "a change without a difference" in found(cell("memory", "loops", "compacted-while-cut"))
