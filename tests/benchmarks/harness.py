"""How a figure is taken: warm-up, then ours, floor, peer, ours, floor, peer, …; medians, and how far runs were apart.

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


class PeerFailed(Exception):
    """Raised by a peer's side that did not do the work; the text says why."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What is compared. *notes* is filled while the runs go on, and printed under the row. A *peer* that raises is
    listed as failing."""

    ours: Side
    floor: Side
    notes: list[str] = field(default_factory=list)
    peer: Side | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """A comparison.

    Args:
      name: For the command line.
      floor: What the floor does, in words.
      rows: The figures that both sides return.
      prepare: Makes both sides for a scale (1.0: as the rows say); leaving the context cleans up.
      repeats: Runs that count.
      peer: What the peer is, in words; empty where there is none.
    """

    name: str
    floor: str
    rows: Sequence[Row]
    prepare: Callable[[float], AbstractContextManager[Sides]]
    repeats: int = 7
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A measured row: medians, the spread of each side (half of the middle half, per cent of the median).

    *ratio* is ours / floor, *peer_ratio* ours / peer; *peer* is None where there is none or where it fails.
    """

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
    peer_is: str = ""
    peer: float | None = None
    peer_ratio: float | None = None
    peer_spread: float = 0.0
    peer_fails: str = ""


def measure(bench: Bench, *, scale: float = 1.0, repeats: int | None = None) -> list[Result]:
    """Run *bench* and sum it up."""
    taken = Taken()
    with bench.prepare(scale) as sides:
        for number in range(WARM_UP + (repeats or bench.repeats)):
            taken.run(sides, counts=number >= WARM_UP)
    return [_summed_up(bench, row, taken, sides.notes) for row in bench.rows]


class Taken:
    """The runs of a bench so far."""

    def __init__(self) -> None:
        self.ours: list[Figures] = []
        self.floor: list[Figures] = []
        self.peer: list[Figures] = []
        #: Why there are no figures of the peer.
        self.peer_fails = ""

    def run(self, sides: Sides, *, counts: bool) -> None:
        """One run of each side."""
        for side, figures in ((sides.ours, self.ours), (sides.floor, self.floor)):
            self._run(side, figures, counts)
        if sides.peer is None or self.peer_fails:
            return
        try:
            self._run(sides.peer, self.peer, counts)
        except Exception as error:  # whatever it is, it is the peer's: ours and the floor go on
            self.peer.clear()
            self.peer_fails = str(error) if isinstance(error, PeerFailed) else f"{type(error).__name__}: {error}"

    @staticmethod
    def _run(side: Side, figures: list[Figures], counts: bool) -> None:
        gc.collect()
        figure = side()
        if counts:
            figures.append(figure)


def _summed_up(bench: Bench, row: Row, taken: Taken, notes: Sequence[str]) -> Result:
    ours, floor, peer = ([run[row.name] for run in runs] for runs in (taken.ours, taken.floor, taken.peer))
    return Result(
        bench=bench.name,
        row=row,
        floor_is=bench.floor,
        ours=statistics.median(ours),
        floor=statistics.median(floor),
        ratio=_ratio(ours, floor),
        ours_spread=spread(ours),
        floor_spread=spread(floor),
        runs=len(ours),
        notes=tuple(dict.fromkeys(notes)),
        peer_is=bench.peer,
        peer=statistics.median(peer) if peer else None,
        peer_ratio=_ratio(ours, peer) if peer else None,
        peer_spread=spread(peer),
        peer_fails=taken.peer_fails,
    )


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))


def spread(figures: Sequence[float]) -> float:
    """Half of the range that the middle half of *figures* lies in, in per cent of their median."""
    if len(figures) < 2:
        return 0.0
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return 50.0 * (high - low) / statistics.median(figures)
