"""How a figure is taken: warm-up, then ours, floor, ours, floor, …; medians, and how far the runs were apart.

The ratio is the median of the pairs' ratios: what slows the machine down for a moment slows both of a pair.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

#: Runs before those that count.
WARM_UP = 1

#: One run: figure by row.
Figures = Mapping[str, float]
Side = Callable[[], Figures]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. *target* is of the ratio ours / floor, plus *extra* of the row's unit; rates are better
    when higher."""

    name: str
    unit: str
    target: float | None = None
    higher_is_better: bool = False
    extra: float = 0.0

    def met(self, ours: float, floor: float, ratio: float) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        if self.extra:
            return ours <= self.target * floor + self.extra
        return ratio >= self.target if self.higher_is_better else ratio <= self.target

    @property
    def wanted(self) -> str:
        """The target as the table shows it."""
        if self.target is None:
            return ""
        sign = "≥" if self.higher_is_better else "≤"
        return f"{sign} {self.target:g}" + (f" + {self.extra:g} {self.unit}" if self.extra else "")


@dataclass(frozen=True, slots=True)
class Sides:
    """What is compared. *notes* is filled while the runs go on, and printed under the row."""

    ours: Side
    floor: Side
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bench:
    """A comparison.

    Args:
      name: For the command line.
      floor: What the floor does, in words.
      rows: The figures that both sides return.
      prepare: Makes both sides for a scale (1.0: as the rows say); leaving the context cleans up.
      repeats: Runs that count.
    """

    name: str
    floor: str
    rows: Sequence[Row]
    prepare: Callable[[float], AbstractContextManager[Sides]]
    repeats: int = 7


@dataclass(frozen=True, slots=True)
class Result:
    """A measured row: medians, the spread of each side (half of the middle half, per cent of the median)."""

    bench: str
    row: Row
    floor_is: str
    ours: float
    floor: float
    ratio: float
    ours_spread: float
    floor_spread: float
    runs: int
    notes: tuple[str, ...] = ()


def measure(bench: Bench, *, scale: float = 1.0, repeats: int | None = None) -> list[Result]:
    """Run *bench* and sum it up."""
    count = repeats or bench.repeats
    ours: list[Figures] = []
    floor: list[Figures] = []
    with bench.prepare(scale) as sides:
        for number in range(WARM_UP + count):
            for side, figures in ((sides.ours, ours), (sides.floor, floor)):
                gc.collect()
                figure = side()
                if number >= WARM_UP:
                    figures.append(figure)
    return [_summed_up(bench, row, sides, ours, floor) for row in bench.rows]


def _summed_up(bench: Bench, row: Row, sides: Sides, ours: list[Figures], floor: list[Figures]) -> Result:
    mine = [figures[row.name] for figures in ours]
    theirs = [figures[row.name] for figures in floor]
    return Result(
        bench=bench.name,
        row=row,
        floor_is=bench.floor,
        ours=statistics.median(mine),
        floor=statistics.median(theirs),
        ratio=statistics.median(one / other for one, other in zip(mine, theirs, strict=True)),
        ours_spread=spread(mine),
        floor_spread=spread(theirs),
        runs=len(mine),
        notes=tuple(dict.fromkeys(sides.notes)),
    )


def spread(figures: Sequence[float]) -> float:
    """Half of the range that the middle half of *figures* lies in, in per cent of their median."""
    if len(figures) < 2:
        return 0.0
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return 50.0 * (high - low) / statistics.median(figures)
