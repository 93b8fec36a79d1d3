"""The figures of the documentation are those of the run that they come from."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.faults.cell import Cell, Result
from tests.faults.report.page import INVARIANTS, fill, main
from tests.faults.test_soak import a_record

PAGE = """# A page

before
<!-- matrix: begin -->
old
<!-- matrix: end -->
between
<!-- soak: begin --><!-- soak: end -->
after
"""


def result(source: str, fault: str, events: int, converged: float | None, *violations: str) -> Result:
    cell = Cell(source, fault, "steady", 1)
    return Result(cell, events, 2 * events, evidence={"I1": events}, violations=[*violations], converged=converged)


def test_the_figures_stand_between_the_marks_and_nothing_else_is_touched(tmp_path: Path) -> None:
    # given a page with marks, the cells of a matrix and a soak
    page, matrix, soak = tmp_path / "page.md", tmp_path / "matrix.json", tmp_path / "soak.json"
    page.write_text(PAGE)
    cells = [
        result("etcd", "kill9", 1000, 0.25),
        result("etcd", "reset", 500, None, "I3"),
        result("rest", "cut", 7, 1.5),
        replace(result("rest", "drop", 0, 1.5), lacks=["no watcher was given any event"]),
    ]
    matrix.write_text(json.dumps({"cells": [one.as_json() for one in cells]}))
    soak.write_text(json.dumps(asdict(a_record())))
    # when they are put in, twice
    for _ in range(2):
        assert main(["--matrix", str(matrix), "--soak", str(soak), "--into", str(page)]) == 0
    # then each source, all of them and each fault have a row; what never converged counts as a violation
    text = page.read_text()
    assert "| etcd | 2 | 1,500 | 3,000 | 2 | 0.250 s | 0.250 s | 0.250 s |" in text
    assert "| **all** | 3 | 1,507 | 3,014 | 2 | 1.500 s | 1.500 s | 1.500 s |" in text
    assert "| etcd | `reset` | 1 | 500 | 1,000 | 2 |" in text
    assert f"| I1 | {INVARIANTS['I1']} | 1,507 |" in text
    assert "I2" not in text  # nothing was checked
    # and what proves nothing is named and not counted
    assert "prove nothing: rest drop steady seed 1." in text
    assert "violations  0 (limit 0)" in text
    assert "old" not in text
    for line in ("# A page", "before", "between", "after"):
        assert text.count(f"{line}\n") == 1


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="soak: begin"):
        fill("no marks", "soak", "")


def test_every_test_that_the_page_names_is_there() -> None:
    # given the names on the page / when they are looked for
    root = Path(__file__).resolve().parents[2]
    names = set(re.findall(r"`(test_\w+)`", (root / "docs" / "lab" / "reliability.md").read_text()))
    tests = "\n".join(path.read_text() for path in (root / "tests").rglob("test_*.py"))
    # then none is missing
    assert names
    assert [name for name in sorted(names) if f"def {name}(" not in tests] == []
