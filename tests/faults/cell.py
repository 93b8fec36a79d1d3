"""Cells: one source, fault, workload and seed; the result of a cell; the choice of cells for a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.workloads.workload import WORKLOADS, Workload

#: Faults that every source has: all of its misfortunes in random order, and none of them.
RANDOM, NONE = "random", "none"
#: Default duration of a cell in seconds, unless its workload ends by itself.
SECONDS = 5.0
#: Workloads that each fault meets in the reduced matrix, and faults that each workload meets, at least. ``crowd`` meets
#: all faults, and all workloads meet ``random``.
LEAST = 3
#: Problems of a cell that are told; the others are counted.
SHOWN = 4


@dataclass(frozen=True)
class Cell:
    """One fault, repeated, under one workload. With *seconds* 0 the workload determines the duration."""

    source: str
    fault: str
    workload: str
    seed: int
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.source} {self.fault} {self.workload} seed {self.seed}"

    @property
    def arguments(self) -> list[str]:
        """Command line arguments that run this cell."""
        said = ["--source", self.source, "--fault", self.fault, "--workload", self.workload, "--seed", str(self.seed)]
        return [*said, "--seconds", f"{self.seconds:g}"] if self.seconds else said

    @property
    def command(self) -> str:
        return " ".join(["python -m tests.faults", *self.arguments])


@dataclass
class Result:
    """The result of one cell. Plain values only, because it is also written as JSON."""

    cell: Cell
    events: int = 0
    changes: int = 0
    resyncs: dict[str, int] = field(default_factory=dict)
    misfortunes: dict[str, int] = field(default_factory=dict)
    #: For each invariant, how often it could have been violated.
    evidence: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    #: Errors of the cell itself, and violations that no log shows.
    troubles: list[str] = field(default_factory=list)
    #: Seconds from healing until the last view was correct; None if that never happened.
    converged: float | None = None
    #: Seconds that the effect of each misfortune outlasted it, unless the next one began before that.
    felt: list[float] = field(default_factory=list)
    #: Reasons why the cell proves nothing.
    lacks: list[str] = field(default_factory=list)
    #: Total duration in seconds.
    took: float = 0.0

    @property
    def good(self) -> bool:
        """True when nothing is wrong, which may be because nothing could go wrong: see ``counts``."""
        return not self.violations and not self.troubles and not self.lost

    @property
    def lost(self) -> bool:
        """True when the cell had to converge and did not."""
        return self.converged is None and not WORKLOADS[self.cell.workload].leaves

    @property
    def counts(self) -> bool:
        """False for a cell that is good only because it could not fail."""
        return not (self.good and self.lacks)

    @property
    def healings(self) -> list[float]:
        """Seconds until every view was correct again, for each recovery."""
        return self.felt if self.converged is None else [*self.felt, self.converged]

    @property
    def why(self) -> str:
        """The first problems, or the reasons why the cell proves nothing, and the command that repeats it."""
        reasons = [*self.violations, *self.troubles] or [f"it proves nothing: {one}" for one in self.lacks]
        reasons = reasons or ["not converged"]
        more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
        return "\n".join([*reasons[:SHOWN], *more, f"again: {self.cell.command}"])

    def __str__(self) -> str:
        bad = len(self.violations) + len(self.troubles)
        when = f"in {self.converged:.3f} s" if self.converged is not None else "never" if self.lost else "not required"
        return f"{self.cell.name}: {self.events} events, {self.changes} changes, {bad} violations, converged {when}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good, "command": self.cell.command}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        fields = {name: value for name, value in data.items() if name not in ("good", "command", "cell")}
        return cls(Cell(**data["cell"]), **fields)


def fits(workload: Workload, *, sourced: bool, within: bool) -> bool:
    """Whether a source suits *workload*.

    Where callers feed the registry, a rejection is reported to the caller, and the view of a watcher is not guaranteed;
    where they are in this process, a RESYNC that is rejected is no error of theirs. Where this process keeps the
    history, its memory says nothing about the library.
    """
    return (sourced or workload.polite or (within and workload.obliging)) and not (within and workload.value)


def product(
    source: str, faults: Sequence[str], workloads: Sequence[str], *, seed: int, seconds: float, full: bool = False
) -> Iterator[Cell]:
    """The cells of one source: all of them, or enough that each fault meets a few workloads and vice versa."""
    others = [name for name in workloads if name != "crowd"]
    share = min(len(others), max(LEAST - 1, -(-LEAST * len(others) // max(1, len(faults)))))
    place = 0
    for fault in faults:
        if full or fault == RANDOM:
            chosen = list(workloads)
        else:
            chosen = ["crowd", *(others[(place + n) % len(others)] for n in range(share))]
            place += share
        for workload in chosen:
            known = WORKLOADS[workload]
            yield Cell(source, fault, workload, seed, 0.0 if known.counted else max(seconds, known.least))
