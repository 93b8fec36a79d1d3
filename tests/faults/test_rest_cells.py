"""Cells of REST behind nginx, and of a server whose descriptors strangers take (C3, C17, C22, C23)."""

from __future__ import annotations

import pytest

from tests.conftest import absent
from tests.faults.cell import Cell
from tests.faults.runner import run_cell
from tests.support.executables import system

CELLS = [
    Cell("rest", "strangers", "steady", 1, 1.0),
    Cell("rest-nginx", "by-path", "steady", 1, 1.0),
    Cell("rest-nginx", "nginx-kill9", "steady", 1, 1.0),
    Cell("rest-nginx", "kill9", "steady", 1, 1.0),
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_i1_to_i16_a_cell_of_rest(cell: Cell) -> None:
    if cell.source == "rest-nginx" and system("nginx") is None:
        absent("nginx")
    result = run_cell(cell)
    assert result.good, result.why
    assert result.misfortunes
