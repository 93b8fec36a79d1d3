"""Cells: one source, one fault, one workload, one seed; what a cell came to; and which of all cells to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.workloads.workload import WORKLOADS, Workload

#: Faults that every source has: all of its misfortunes by turns, and none of them.
RANDOM, NONE = "random", "none"
#: Seconds that a cell goes on, unless told otherwise or its workload ends by itself.
SECONDS = 5.0
#: Workloads that each fault meets in the reduced matrix, and faults that each workload meets, at least. ``crowd`` meets
#: all faults, and all workloads meet ``random``.
LEAST = 3


@dataclass(frozen=True)
class Cell:
    """That one misfortune, again and again, under that workload; *seconds* 0 is for as long as the workload says."""

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
        """What to say on the command line to run it, again."""
        said = ["--source", self.source, "--fault", self.fault, "--workload", self.workload, "--seed", str(self.seed)]
        return [*said, "--seconds", f"{self.seconds:g}"] if self.seconds else said

    @property
    def command(self) -> str:
        return " ".join(["python -m tests.faults", *self.arguments])


@dataclass
class Result:
    """What one cell came to. Plain values only: it is also written as JSON."""

    cell: Cell
    events: int = 0
    changes: int = 0
    resyncs: dict[str, int] = field(default_factory=dict)
    misfortunes: dict[str, int] = field(default_factory=dict)
    #: By invariant how often it could have been violated.
    evidence: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    #: What else went wrong: the cell itself, or a promise that no log shows.
    troubles: list[str] = field(default_factory=list)
    #: Seconds from healing to the last right view; None when it never came.
    converged: float | None = None
    #: Seconds that each misfortune was felt after its own end, where that was over before the next one.
    felt: list[float] = field(default_factory=list)
    #: Why the cell proves nothing, whatever else it came to.
    lacks: list[str] = field(default_factory=list)
    #: Seconds that all of it took.
    took: float = 0.0

    @property
    def good(self) -> bool:
        """Nothing is wrong. That may be because nothing could be: see ``counts``."""
        return not self.violations and not self.troubles and not self.lost

    @property
    def lost(self) -> bool:
        """It was to converge, and never did."""
        return self.converged is None and not WORKLOADS[self.cell.workload].leaves

    @property
    def counts(self) -> bool:
        """False for a cell that is only good because it could not have been anything else."""
        return not (self.good and self.lacks)

    @property
    def healings(self) -> list[float]:
        """Seconds until all was right again, for each time that something had healed."""
        return self.felt if self.converged is None else [*self.felt, self.converged]

    @property
    def why(self) -> str:
        """The first thing that is wrong, or why nothing could be, and how to run it again."""
        reasons = [*self.violations, *self.troubles] or [f"it proves nothing: {one}" for one in self.lacks]
        reasons = reasons or ["not converged"]
        more = [f"and {len(reasons) - 1} more"] if len(reasons) > 1 else []
        return "\n".join([reasons[0], *more, f"again: {self.cell.command}"])

    def __str__(self) -> str:
        bad = len(self.violations) + len(self.troubles)
        when = f"in {self.converged:.3f} s" if self.converged is not None else "never" if self.lost else "not asked for"
        return f"{self.cell.name}: {self.events} events, {self.changes} changes, {bad} violations, converged {when}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good, "command": self.cell.command}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        fields = {name: value for name, value in data.items() if name not in ("good", "command", "cell")}
        return cls(Cell(**data["cell"]), **fields)


def fits(workload: Workload, *, sourced: bool, within: bool) -> bool:
    """Whether a source is fit for *workload*.

    A caller is told of a refusal and decides himself: then a watcher's view is nobody's promise. And where the history
    is kept in this process, its memory says nothing of the library.
    """
    return (sourced or workload.polite) and not (within and workload.value)


def product(
    source: str, faults: Sequence[str], workloads: Sequence[str], *, seed: int, seconds: float, full: bool = False
) -> Iterator[Cell]:
    """The cells of one source: all of them, or so many that each fault meets a few workloads, and the other way."""
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
