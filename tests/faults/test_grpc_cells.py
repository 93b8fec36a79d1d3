"""Cells over gRPC: every fault of its source once, and the check of the sender's log, which can fail too."""

from __future__ import annotations

import random

import pytest

from tests.faults.cell import Cell
from tests.faults.checkers.sender_log import Applied, Ended, SenderLog, Sent, Told, check_sender
from tests.faults.history import Op1
from tests.faults.runner import run_cell
from tests.faults.sources.grpc import GrpcSource

FAULTS = (
    "sender-kill9", "sender-sigstop", "sender-closed", "server-restart", "drop", "reset", "reset-mid-message",
    "cut-pipelined", "away", "black-hole", "black-hole-up", "black-hole-down", "delay", "rate", "freeze", "goaway",
    "size-cap", "resync", "other-sender", "strangers",
)  # fmt: skip


def test_the_list_above_is_that_of_the_source() -> None:
    source = GrpcSource(random.Random(0))
    try:
        assert tuple(source.misfortunes()) == FAULTS
    finally:
        source.close()


@pytest.mark.parametrize("seed", range(1, 6))
def test_c2_to_c13_a_history_of_a_sender_that_dies_hangs_and_is_cut_off(seed: int) -> None:
    result = run_cell(Cell("grpc", "random", "mixed", seed))
    assert result.good, result.why


@pytest.mark.parametrize("fault", ["random", "nginx-killed"])
def test_c2_to_c23_a_history_of_a_sender_that_reaches_its_agent_through_nginx(fault: str) -> None:
    result = run_cell(Cell("grpc-nginx", fault, "steady", 1, 3.0))
    assert result.good, result.why


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_i1_to_i16_every_fault_between_a_sender_and_its_agent(fault: str) -> None:
    result = run_cell(Cell("grpc", fault, "steady", 1, 4.0))
    assert result.good, result.why
    assert result.counts, result.why


def _log() -> SenderLog:
    """Two puts and a delete, answered, in one session that began with nothing."""
    return SenderLog(
        sent=[Sent(1, "a", b"1"), Sent(2, "b", b"2"), Sent(3, "a", None)],
        ended=[Ended(1, "ok", 2), Ended(2, "ok", 3), Ended(3, "ok", 4)],
        told=[Told(0, 1)],
    )


def _applied() -> list[Applied]:
    return [
        Applied(1, (), {}),
        Applied(2, (Op1("a", b"1"),), None),
        Applied(3, (Op1("b", b"2"),), None),
        Applied(4, (Op1("a", None),), None),
    ]


def test_an_honest_agent_is_found_to_be_one() -> None:
    assert check_sender(_log(), _applied()) == []


def test_what_was_acknowledged_and_is_missing_is_found() -> None:
    applied = _applied()
    del applied[2]
    assert "never applied" in check_sender(_log(), applied)[0]


def test_what_nobody_sent_is_found() -> None:
    assert "nobody sent" in check_sender(_log(), [*_applied(), Applied(5, (Op1("a", b"x"),), None)])[0]


def test_what_comes_twice_or_late_is_found() -> None:
    applied = _applied()
    assert "operation 2 after 3" in check_sender(_log(), [*applied, applied[2]._replace(revision=5)])[0]


def test_what_comes_after_the_full_state_that_settled_it_is_found() -> None:
    # given an operation of unknown outcome, and a new session that told the state with it
    log = _log()
    log.ended[2] = Ended(3, "lost", 4)
    log.sent.append(Sent(4, "a", b"4"))
    log.ended.append(Ended(4, "UnknownOutcome", 5))
    log.told.append(Told(4, 6))
    applied = [*_applied()[:3], Applied(4, (), {"a": b"4", "b": b"2"})]
    assert check_sender(log, applied) == []
    # when it is applied after that all the same
    late = [*applied, Applied(5, (Op1("a", b"4"),), None)]
    # then it is found
    assert "came after the full state" in check_sender(log, late)[0]


def test_i9_what_never_ended_or_ended_twice_is_found() -> None:
    log = _log()
    log.ended.pop()
    assert "I9: operation 3 never ended" in check_sender(log, _applied())
    log.ended += [Ended(3, "ok", 5), Ended(3, "UnknownOutcome", 6)]
    assert "I9: operation 3 ended twice" in check_sender(log, _applied())[0]


def test_what_was_said_not_to_be_sent_and_was_applied_is_found() -> None:
    log = _log()
    log.ended[1] = Ended(2, "StoreConnectionError", 3)
    assert "its caller was told" in check_sender(log, _applied())[0]


def test_a_full_state_that_nobody_told_is_found() -> None:
    applied = [*_applied(), Applied(5, (), {"a": b"1"})]
    assert "a full state that the sender did not tell" in check_sender(_log(), applied)[0]
