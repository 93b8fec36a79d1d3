"""Cells, the command that runs them, and a selection of them: the whole matrix is ``python -m tests.faults --matrix``.

Which workload meets which fault here goes round: over the faults of a source each workload has its turn.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import __main__ as command
from tests.faults import matrix
from tests.faults.cell import NONE, RANDOM, Cell, Result, fits, product
from tests.faults.history import Op1
from tests.faults.matrix import Apart, run_many
from tests.faults.report.table import table
from tests.faults.runner import run_cell
from tests.faults.sources.memory import MemorySource, ScriptedSource
from tests.faults.sources.source import Ops
from tests.faults.workloads.workload import WORKLOADS, Workload

#: Seconds of a cell of the selection.
SECONDS = 1.0

SCRIPTED = list(ScriptedSource(random.Random(0)).misfortunes())
MEMORY = list(MemorySource(random.Random(0)).misfortunes())
OTHERS = [name for name in WORKLOADS if name != "mixed" and fits(WORKLOADS[name], sourced=True, within=True)]


def dealt(source: str, faults: list[str], first: int = 0) -> Iterator[Cell]:
    """Each of *faults* with a workload, from the *first* one on."""
    for place, fault in enumerate(faults):
        yield Cell(source, fault, OTHERS[(first + place) % len(OTHERS)], place + 1, SECONDS)


def check(cell: Cell) -> Result:
    result = run_cell(cell)
    assert result.good, result.why
    assert result.counts, result.why
    return result


@pytest.mark.parametrize(
    "cell", [*dealt("scripted", SCRIPTED), *dealt("memory", MEMORY, 3)], ids=lambda cell: cell.name
)
def test_i1_to_i16_a_cell_of_a_scripted_source_or_of_memory(cell: Cell) -> None:
    check(cell)


@pytest.mark.parametrize("workload", OTHERS)
def test_i1_to_i16_each_workload_with_all_misfortunes_by_turns(workload: str) -> None:
    # given / when / then: and what a workload is about really happened
    result = check(Cell("scripted", RANDOM, workload, 1, SECONDS))
    assert result.misfortunes
    assert result.events


@pytest.mark.timeout(180)
def test_i12_memory_is_bounded_while_consumers_hang_and_large_values_are_written() -> None:
    # given a process whose allocator serves nothing else / when consumers hang in it / then it does not grow
    result = Apart().run(Cell("sqlite", "cut", "flood", 1, WORKLOADS["flood"].least))
    assert result.good, result.why
    assert result.evidence["I12"]


def test_i1_to_i16_without_any_misfortune_nothing_starts_over() -> None:
    # given a cell in which nothing goes wrong / when fifty watchers whose prefixes stay are there
    result = check(Cell("scripted", NONE, "steady", 1, SECONDS))
    # then each gets one RESYNC, the first
    assert result.misfortunes == {}
    assert result.resyncs == {"initial": 3}


def test_the_same_seed_writes_the_same_and_suffers_the_same() -> None:
    # given a history that ends by itself / when it is run twice / then chance has decided the same both times
    cell = Cell("scripted", RANDOM, "mixed", 5)
    sources: list[ScriptedSource] = []

    def make(chance: random.Random) -> ScriptedSource:
        sources.append(ScriptedSource(chance))
        return sources[-1]

    for _ in range(2):
        assert run_cell(cell, make).good
    one, other = ([commit.ops for commit in source.truth.epochs[0].commits[:3]] for source in sources)
    assert [[key for key, _ in ops] for ops in one] == [[key for key, _ in ops] for ops in other]


# A cell that is not good says so, and how to run it again.


class Forgetful(MemorySource):
    """Its record knows of a commit that was never made."""

    def write(self, ops: Ops) -> None:
        super().write(ops)
        with self.lock:
            if len(self.truth.epochs[-1].commits) == 10:
                self.truth.record(self.truth.epochs[-1].commits[-1].revision + 1, [Op1("a/0", b"never")])


class Broken(MemorySource):
    """One of its misfortunes is a mistake of the harness."""

    def foreign(self) -> None:
        raise RuntimeError("this misfortune is broken")


def test_a_cell_in_which_something_is_missed_is_not_good_and_tells_how_to_run_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.faults.sources.memory.MemorySource", Forgetful)
    monkeypatch.setattr("tests.faults.runner.PATIENCE", 0.5)
    asked = ["--source", "memory", "--fault", "cut", "--workload", "steady", "--seed", "3", "--seconds", "0.5"]
    # when it is run / then the exit status, the first violation with its context, and the command say so
    assert command.main(asked) == 1
    said = capsys.readouterr().out
    assert "memory cut steady seed 3:" in said
    assert " violated at " in said
    assert f"again: python -m tests.faults {' '.join(asked)}" in said


def test_a_mistake_of_the_harness_is_a_trouble_and_leaves_nothing_behind() -> None:
    # given a misfortune that raises / when its cell is run / then that is told, as are its place and its kind
    result = run_cell(Cell("memory", "foreign-write", "steady", 1, 0.5), Broken)
    assert not result.good
    assert "this misfortune is broken" in result.why


def test_a_cell_whose_fault_is_unknown_is_refused() -> None:
    result = run_cell(Cell("memory", "earthquake", "steady", 1, 0.5))
    assert "memory has no fault 'earthquake'" in result.why


def test_a_cell_in_which_nothing_was_proven_does_not_count_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a workload that nobody watches / when it is run / then nothing is wrong with it, and nothing is counted
    monkeypatch.setitem(WORKLOADS, "steady", Workload("steady", "nobody watches", watchers=()))
    monkeypatch.setattr("tests.faults.workloads.audience.Audience._join", lambda *arguments: None)
    result = run_cell(Cell("memory", "cut", "steady", 1, 0.5))
    assert result.good
    assert not result.counts
    assert "it proves nothing: no watcher received an event" in result.why


# The command.


def test_the_command_of_a_cell_is_that_cell(capsys: pytest.CaptureFixture[str]) -> None:
    # given a cell / when what it says is given to the command / then the same one is run
    cell = Cell("memory", "wiped", "idle", 7, 0.3)
    assert cell.command == "python -m tests.faults --source memory --fault wiped --workload idle --seed 7 --seconds 0.3"
    assert command.main(cell.command.split()[3:]) == 0
    assert capsys.readouterr().out.startswith("memory wiped idle seed 7: ")


def test_the_list_names_sources_faults_and_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--source", "memory"]) == 0
    said = capsys.readouterr().out
    assert f"memory: {' '.join([*MEMORY, RANDOM, NONE])}" in said
    assert all(f"{name}  " in said for name in WORKLOADS)


def test_results_are_written_as_json_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert command.main([*Cell("memory", "cut", "idle", 1, 0.3).arguments, "--json", str(path)]) == 0
    (said,) = json.loads(path.read_text())["cells"]
    assert said["good"] is True
    assert Result.from_json(said).as_json() == said


@pytest.mark.parametrize("workloads", [list(WORKLOADS), ["crowd", "idle", "steady"]])
def test_in_the_matrix_each_fault_meets_some_workloads_and_the_other_way_round(workloads: list[str]) -> None:
    # given faults enough / when the cells are chosen / then nobody is left out, and none is there twice
    cells = list(product("x", [*SCRIPTED, RANDOM], workloads, seed=1, seconds=1.0))
    assert len(set(cells)) == len(cells)
    faults = Counter(cell.fault for cell in cells)
    met = Counter(cell.workload for cell in cells)
    assert all(faults[name] >= min(3, len(workloads)) for name in [*SCRIPTED, RANDOM])
    assert all(met[name] >= 3 for name in workloads)


def test_a_workload_meets_only_sources_that_are_fit_for_it() -> None:
    # given callers, who decide themselves what becomes of a refusal / then nobody refuses what they send
    callers = [name for name, one in WORKLOADS.items() if fits(one, sourced=False, within=True)]
    assert "steady" in callers
    assert [name for name in callers if WORKLOADS[name].fails] == ["obliging"]
    assert not any(one.fails for one in WORKLOADS.values() if fits(one, sourced=False, within=False))
    # and where the source keeps its history in the process under test, that is not watched for what it keeps
    assert "flood" not in callers
    assert "flood" in [name for name, one in WORKLOADS.items() if fits(one, sourced=True, within=False)]


def test_the_matrix_runs_each_cell_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a small one / when it is run / then each cell has its line, and the table comes last
    cells = [Cell("memory", "cut", workload, 1, 0.3) for workload in ("idle", "steady", "refusing")]
    monkeypatch.setattr(command, "product", lambda *arguments, **options: cells)
    assert command.main(["--matrix", "--source", "memory", "--jobs", "3"]) == 0
    said = capsys.readouterr().out
    assert "3 cells of 1 sources" in said
    assert said.count("memory cut ") == 3
    assert "misfortunes: cut 3" in said


def test_a_row_of_the_matrix_can_be_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Cell] = []

    def run(cells: Iterator[Cell], *_: object) -> list[Result]:
        ran.extend(cells)
        return []

    monkeypatch.setattr(command, "run_many", run)
    command.main(["--matrix", "--source", "memory", "--fault", "wiped", "--seed", "9"])
    assert {(cell.fault, cell.seed) for cell in ran} == {("wiped", 9)}
    assert len(ran) >= 3


def test_a_cell_that_hangs_is_killed_and_told_of() -> None:
    # given no time at all / when a cell is run apart / then it is killed
    result = Apart(seconds=-9.5).run(Cell("memory", "cut", "steady", 1, 10.0))
    assert not result.good
    assert "the cell hangs" in result.why


def test_a_cell_without_a_result_is_told_of() -> None:
    # given a cell that ends at once, because there is no such workload
    result = Apart().run(Cell("memory", "cut", "siesta", 1, 0.3))
    assert "exit status 2" in result.why
    assert "siesta" in result.why


def test_after_close_no_cell_is_started() -> None:
    apart = Apart()
    apart.close()
    with pytest.raises(KeyboardInterrupt):
        apart.run(Cell("memory", "cut", "steady", 1, 0.3))


def test_the_table_has_a_row_for_each_source_and_one_for_all() -> None:
    # given three results of two sources / when they are put together / then each number is where it belongs
    results = [
        Result(Cell("one", "cut", "steady", 1), 10, 20, converged=0.5, misfortunes={"cut": 1}, evidence={"I1": 10}),
        Result(Cell("one", "cut", "idle", 1), 5, 0, converged=1.5, violations=["I3 violated"]),
        Result(Cell("two", "cut", "idle", 1), 1000, 2000, troubles=["hangs"]),
    ]
    rows = [line.split() for line in table(results).splitlines()]
    assert rows[1] == ["one", "2", "1", "15", "20", "1", "0", "1.500", "s", "1.500", "s", "0"]
    assert rows[2] == ["two", "1", "0", "1,000", "2,000", "1", "1", "-", "-", "0"]
    assert rows[3][:7] == ["all", "3", "1", "1,015", "2,020", "2", "1"]
    assert "I1 10," in table(results)


def test_a_matrix_that_is_interrupted_has_the_results_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    # given ^C after the first cell
    monkeypatch.setattr(matrix.Apart, "run", lambda apart, cell: Result(cell, events=1, converged=0.0))
    told: list[Result] = []

    def interrupted(result: Result) -> None:
        told.append(result)
        raise KeyboardInterrupt

    # when it comes / then what is over is returned
    results = run_many([Cell("memory", "cut", "idle", seed) for seed in range(3)], 1, interrupted)
    assert results == told
    assert len(results) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_forever_ends_with_the_table_when_it_is_interrupted(number: signal.Signals) -> None:
    # given random cells / when ^C comes after the second one
    arguments = [sys.executable, "-m", "tests.faults", "--forever", "--source", "memory", "--seconds", "0.5"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        os.kill(process.pid, number)
        rest = process.stdout.read()
    # then it ends with the table, and as well as its cells did
    assert all(line.startswith("memory ") for line in said)
    assert "p99" in rest
    assert "KeyboardInterrupt" not in rest
    cells = [line for line in [*said, *rest.splitlines()] if " events, " in line]
    assert process.returncode == int(not all(", 0 violations, " in line for line in cells))
