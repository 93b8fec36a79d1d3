"""Random histories: whatever happens, every watcher is told the truth, whole, in order, and ends with it.

A selection by seed; ``python -m tests.faults`` runs as many as you like, and any of these again by its seed.
"""

from __future__ import annotations

import re

import pytest

from tests.faults.__main__ import main
from tests.faults.cell import RANDOM, Cell
from tests.faults.runner import run_cell

#: Some take half a minute beside three others.
pytestmark = pytest.mark.timeout(180)


def check(source: str, seed: int) -> None:
    result = run_cell(Cell(source, RANDOM, "mixed", seed))
    assert result.good, result.why


@pytest.mark.parametrize("seed", range(1, 61))
def test_c2_to_c13_a_history_over_the_scripted_source(seed: int) -> None:
    check("scripted", seed)


@pytest.mark.parametrize("seed", range(1, 11))
def test_c2_to_c13_a_history_over_memory(seed: int) -> None:
    check("memory", seed)


@pytest.mark.parametrize("seed", range(1, 4))
def test_c2_to_c13_a_history_over_sqlite(seed: int) -> None:
    check("sqlite", seed)


@pytest.mark.parametrize("seed", range(1, 4))
def test_c2_to_c13_a_history_over_files_that_are_broken_swapped_and_moved(seed: int) -> None:
    check("file", seed)


@pytest.mark.parametrize("seed", range(1, 11))
def test_c4_c8_c9_a_history_of_callers_each_of_whom_gets_an_answer(seed: int) -> None:
    check("local", seed)


@pytest.mark.parametrize("seed", range(1, 4))
def test_c2_to_c13_a_history_over_rest_that_is_cut_off_restarted_and_replaced(seed: int) -> None:
    check("rest", seed)


@pytest.mark.etcd
@pytest.mark.parametrize("seed", range(1, 3))
def test_c2_to_c13_a_history_over_etcd_that_is_killed_restored_and_cut_off(seed: int) -> None:
    check("etcd", seed)


def test_the_command_prints_what_it_checked(capsys: pytest.CaptureFixture[str]) -> None:
    # when two histories are asked for / then the table says so, and the exit status that all were good
    assert main(["--source", "memory", "--histories", "2", "--seed", "7"]) == 0
    # a short cell on a busy machine may prove too little to be counted: the table says how many did
    table = capsys.readouterr().out
    counted = re.search(r"^memory +(\d+) ", table, re.MULTILINE)
    empty = re.search(r"^(\d+) cells prove nothing", table, re.MULTILINE)
    assert counted is not None, table
    assert int(counted[1]) + (int(empty[1]) if empty else 0) == 2, table
