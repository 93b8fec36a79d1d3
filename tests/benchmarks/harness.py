"""The measurement of a figure: a warm-up, then ours, baseline, peer, ours, baseline, peer, …; medians and spreads.

The ratio is the median of the ratios of pairs: a short disturbance of the machine slows both runs of a pair.
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
    """One line of the table.

    *target* limits the ratio ours / baseline; *extra*, in the row's unit, is added to it. Rates are better when higher.
    """

    name: str
    unit: str
    target: float | None = None
    higher_is_better: bool = False
    extra: float = 0.0

    def met(self, ours: float, baseline: float, ratio: float) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        if self.extra:
            return ours <= self.target * baseline + self.extra
        return ratio >= self.target if self.higher_is_better else ratio <= self.target

    @property
    def wanted(self) -> str:
        """The target as the table shows it."""
        if self.target is None:
            return ""
        sign = "≥" if self.higher_is_better else "≤"
        if not self.target:
            return f"{sign} {self.extra:g} {self.unit}"
        return f"{sign} {self.target:g}" + (f" + {self.extra:g} {self.unit}" if self.extra else "")


class PeerFailed(Exception):
    """Raised by the side of a peer that did not do the work; the text says why."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The sides of a comparison.

    The runs may append to *notes*, which are printed below the table. A *peer* that raises is listed as failing.
    """

    ours: Side
    baseline: Side
    notes: list[str] = field(default_factory=list)
    peer: Side | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """A comparison.

    Args:
      name: Name on the command line.
      baseline: Description of the baseline.
      rows: Figures that each side returns.
      prepare: Makes the sides for a scale (1.0: the sizes that the rows name); leaving the context cleans up.
      repeats: Measured runs.
      warm_up: Runs before those that count; 0 where a run takes minutes, and its first moments do not matter.
      peer: Description of the peer; empty without one.
    """

    name: str
    baseline: str
    rows: Sequence[Row]
    prepare: Callable[[float], AbstractContextManager[Sides]]
    repeats: int = 7
    warm_up: int = WARM_UP
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A measured row: medians, the spread of each side (half of the middle half, per cent of the median).

    *ratio* is ours / baseline, *peer_ratio* ours / peer; *peer* is None without a peer and when it fails.
    """

    bench: str
    row: Row
    baseline_is: str
    ours: float
    baseline: float
    ratio: float
    ours_spread: float
    baseline_spread: float
    runs: int
    notes: tuple[str, ...] = ()
    peer_is: str = ""
    peer: float | None = None
    peer_ratio: float | None = None
    peer_spread: float = 0.0
    peer_fails: str = ""


def measure(bench: Bench, *, scale: float = 1.0, repeats: int | None = None) -> list[Result]:
    """Run *bench* and return its rows."""
    taken = Taken()
    with bench.prepare(scale) as sides:
        for number in range(bench.warm_up + (repeats or bench.repeats)):
            taken.run(sides, counts=number >= bench.warm_up)
    return [_summed_up(bench, row, taken, sides.notes) for row in bench.rows]


class Taken:
    """The runs of a bench so far."""

    def __init__(self) -> None:
        self.ours: list[Figures] = []
        self.baseline: list[Figures] = []
        self.peer: list[Figures] = []
        #: The reason why the peer has no figures.
        self.peer_fails = ""

    def run(self, sides: Sides, *, counts: bool) -> None:
        """One run of each side."""
        for side, figures in ((sides.ours, self.ours), (sides.baseline, self.baseline)):
            self._run(side, figures, counts)
        if sides.peer is None or self.peer_fails:
            return
        try:
            self._run(sides.peer, self.peer, counts)
        except Exception as error:  # an error of the peer does not end the bench
            self.peer.clear()
            self.peer_fails = str(error) if isinstance(error, PeerFailed) else f"{type(error).__name__}: {error}"

    @staticmethod
    def _run(side: Side, figures: list[Figures], counts: bool) -> None:
        gc.collect()
        figure = side()
        if counts:
            figures.append(figure)


def _summed_up(bench: Bench, row: Row, taken: Taken, notes: Sequence[str]) -> Result:
    ours, baseline, peer = ([run[row.name] for run in runs] for runs in (taken.ours, taken.baseline, taken.peer))
    return Result(
        bench=bench.name,
        row=row,
        baseline_is=bench.baseline,
        ours=statistics.median(ours),
        baseline=statistics.median(baseline),
        ratio=_ratio(ours, baseline),
        ours_spread=spread(ours),
        baseline_spread=spread(baseline),
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
    """Half of the interquartile range of *figures*, in per cent of their median."""
    if len(figures) < 2:
        return 0.0
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return 50.0 * (high - low) / statistics.median(figures)
