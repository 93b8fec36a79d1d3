"""Many cells, each in a process of its own, so that one that hangs is killed and told of; and the table of them all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from tests.faults.cells import Cell, Result

#: Seconds that a cell may take beyond its own before it shows where it hangs, and before it is killed.
HANGS, KILLED = 90.0, 100.0
#: The rows of the proof.
INVARIANTS = [f"I{number}" for number in range(1, 18)]


def run_apart(cell: Cell) -> Result:
    """Run *cell* in another process, which is killed, with all that it has started, when it does not end."""
    with tempfile.TemporaryDirectory(prefix="datasync-cell-") as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tests.faults", *cell.arguments, "--json", str(path)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=cell.seconds + KILLED)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if path.exists():
            return Result.from_json(json.loads(path.read_text())["cells"][0])
        return Result(cell, troubles=[f"no result, exit status {process.returncode}: {said[-4000:]}"])


def run_many(cells: Iterable[Cell], jobs: int, say: Callable[[Result], None]) -> list[Result]:
    """Run *cells*, *jobs* at a time, until they are over or ^C comes; *say* is told of each."""
    results: list[Result] = []
    waiting: set[Future[Result]] = set()
    coming: Iterator[Cell] = iter(cells)
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            while len(waiting) < jobs and (cell := next(coming, None)) is not None:
                waiting.add(pool.submit(run_apart, cell))
            if not waiting:
                return results
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                results.append(future.result())
                say(results[-1])
    except KeyboardInterrupt:  # those that run have no part in the table
        return results
    finally:
        pool.shutdown(wait=True)


def table(results: Sequence[Result]) -> str:
    """A row for each source and one for all; below it the misfortunes and the RESYNCs that came of them."""
    sources = sorted({result.cell.source for result in results})
    heads = ("source", "cells", "events", "changes", "violations", "not converged", "p50", "p99", "seconds")
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
    lines.append("checked: " + ", ".join(f"{name} {evidence[name]:,}" for name in INVARIANTS))
    return "\n".join(lines)


def _row(name: str, results: Sequence[Result]) -> tuple[str, ...]:
    times = sorted(result.converged for result in results if result.converged is not None)
    bad = sum(len(result.violations) + len(result.troubles) for result in results)
    return (
        name,
        str(len(results)),
        f"{sum(result.events for result in results):,}",
        f"{sum(result.changes for result in results):,}",
        str(bad),
        str(len(results) - len(times)),
        _percentile(times, 50),
        _percentile(times, 99),
        f"{sum(result.took for result in results):.0f}",
    )


def _percentile(times: Sequence[float], percent: int) -> str:
    return f"{times[min(len(times) - 1, len(times) * percent // 100)]:.3f} s" if times else "-"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
