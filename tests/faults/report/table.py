"""The table of many cells, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.faults.cell import Result

#: Invariants, in the order of the summary.
INVARIANTS = [f"I{number}" for number in range(1, 18)]


def table(results: Sequence[Result]) -> str:
    """A row for each source and one for all sources; below it the misfortunes and the RESYNCs that they caused."""
    sources = sorted({result.cell.source for result in results})
    heads = (
        "source",
        "cells",
        "misfortunes",
        "events",
        "changes",
        "violations",
        "not converged",
        "p50",
        "p99",
        "seconds",
    )
    rows = [heads, *(_row(source, [one for one in results if one.cell.source == source]) for source in sources)]
    if len(sources) != 1:
        rows.append(_row("all", results))
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    misfortunes: Counter[str] = Counter()
    resyncs: Counter[str] = Counter()
    evidence: Counter[str] = Counter()
    for result in results:
        evidence.update(result.evidence)
        misfortunes.update(result.misfortunes)
        resyncs.update(result.resyncs)
    lines += [f"misfortunes: {_listed(misfortunes)}", f"resyncs: {_listed(resyncs)}"]
    healed = sum(len(result.healings) for result in results)
    lines.append(f"p50 and p99 are of {healed:,} recoveries: after each misfortune, and at the end of each cell")
    if empty := [result.cell.name for result in results if not result.counts]:
        lines.append(f"{len(empty)} cells prove nothing and are not counted, first {empty[0]}")
    lines.append("checked: " + ", ".join(f"{name} {evidence[name]:,}" for name in INVARIANTS))
    return "\n".join(lines)


def _row(name: str, results: Sequence[Result]) -> tuple[str, ...]:
    times = sorted(seconds for result in results for seconds in result.healings)
    bad = sum(len(result.violations) + len(result.troubles) for result in results)
    return (
        name,
        str(sum(result.counts for result in results)),
        f"{sum(sum(result.misfortunes.values()) for result in results):,}",
        f"{sum(result.events for result in results):,}",
        f"{sum(result.changes for result in results):,}",
        str(bad),
        str(sum(result.lost for result in results)),
        _percentile(times, 50),
        _percentile(times, 99),
        f"{sum(result.took for result in results):.0f}",
    )


def _percentile(times: Sequence[float], percent: int) -> str:
    return f"{times[min(len(times) - 1, len(times) * percent // 100)]:.3f} s" if times else "-"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
