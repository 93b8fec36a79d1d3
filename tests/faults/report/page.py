"""The tables of the documentation: ``python -m tests.faults.report --matrix FILE --soak FILE --into PAGE``.

Reads the files that ``python -m tests.faults --json`` and ``python -m tests.faults.soak --json`` wrote, and puts their
tables between the markers of the page; without ``--into`` the tables are printed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.faults.cell import Result
from tests.faults.soak.verdict import percentile
from tests.faults.soak.verdict import table as soak_table
from tests.faults.soak.world import Record

#: Each invariant in a few words.
INVARIANTS = {
    "I1": "only keys under the registered prefixes",
    "I2": "a RESYNC is the state at its revision",
    "I3": "CHANGEs are exactly the operations of the source",
    "I4": "revisions only increase",
    "I5": "transactions are delivered whole",
    "I6": "previous values are correct",
    "I7": "missed deletes are listed",
    "I8": "every view is in sync again",
    "I9": "every event settles exactly once",
    "I10": "what is not accepted comes again within limits, and does not affect others",
    "I11": "never more events in flight than allowed",
    "I12": "memory is bounded behind a stuck subscriber",
    "I13": "no storm of reconnects",
    "I14": "half-open connections are detected in time",
    "I15": "close() returns in time",
    "I16": "nothing is left behind",
    "I17": "a fork is safe at any moment",
}

#: The text above the table of invariants.
CHECKED = """How often each invariant could have been violated in these cells. Violations are in the table above.
Invariants without a figure are checked [elsewhere](#how-it-is-checked)."""


def matrix_section(results: Sequence[Result]) -> str:
    """The tables of a matrix: by source, by invariant, by fault."""
    sources = sorted({result.cell.source for result in results})
    by_source = [_row(f"{name}", [one for one in results if one.cell.source == name]) for name in sources]
    by_source.append(_row("**all**", results))
    counted = {name: sum(result.evidence.get(name, 0) for result in results) for name in INVARIANTS}
    heads = ("source", "cells", "events checked", "changes", "violations", "in sync, p50", "p99", "slowest")
    by_fault = []
    for name in sources:
        for fault in dict.fromkeys(one.cell.fault for one in results if one.cell.source == name):
            these = [one for one in results if (one.cell.source, one.cell.fault) == (name, fault)]
            by_fault.append((name, f"`{fault}`", *_row("", these)[1:]))
    empty = [result.cell.name for result in results if not result.counts]
    return "\n\n".join(
        [
            _markdown(heads, by_source),
            *([f"Not counted, because they prove nothing: {', '.join(empty)}."] if empty else []),
            CHECKED,
            _markdown(
                ("", "states", "checked"),
                [(name, INVARIANTS[name], f"{count:,}") for name, count in counted.items() if count],
            ),
            "By fault, over all workloads:",
            _markdown(("source", "fault", *heads[1:]), by_fault),
        ]
    )


def soak_section(record: Record) -> str:
    """The table that a soak printed."""
    return f"```text\n{soak_table(record)}\n```"


def fill(page: str, name: str, section: str) -> str:
    """*page* with *section* between the markers called *name*.

    Raises:
      ValueError: The page does not have these markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    filled, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}\n\n{section}\n\n{end}",
        page,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"the page must have {begin} and {end} once")
    return filled


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the files, and write or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.report", description=__doc__)
    parser.add_argument("--matrix", metavar="FILE", nargs="+", help="JSON files of cells, which are merged")
    parser.add_argument("--soak", metavar="FILE", help="JSON file of a soak")
    parser.add_argument("--into", metavar="PAGE", help="page with markers; without it the tables are printed")
    options = parser.parse_args(arguments)
    sections: dict[str, Callable[[], str]] = {}
    if options.matrix:
        sections["matrix"] = lambda: matrix_section(list(_results(options.matrix)))
    if options.soak:
        sections["soak"] = lambda: soak_section(Record.from_json(json.loads(Path(options.soak).read_text())))
    for name, section in sections.items():
        if options.into:
            page = Path(options.into)
            page.write_text(fill(page.read_text(), name, section()))
        else:
            sys.stdout.write(section() + "\n")
    return 0


def _results(files: Iterable[str]) -> Iterable[Result]:
    for file in files:
        yield from (Result.from_json(cell) for cell in json.loads(Path(file).read_text())["cells"])


def _row(name: str, results: Sequence[Result]) -> tuple[str, ...]:
    times = sorted(seconds for result in results for seconds in result.healings)
    bad = sum(len(result.violations) + len(result.troubles) for result in results)
    bad += sum(result.lost for result in results)
    return (
        name,
        f"{sum(result.counts for result in results):,}",
        f"{sum(result.events for result in results):,}",
        f"{sum(result.changes for result in results):,}",
        str(bad),
        *(f"{percentile(times, percent):.3f} s" for percent in (50, 99, 100)),
    )


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    words = ("", "source", "fault", "states")
    aligned = ["---" if head in words else "--:" for head in heads]
    lines = [heads, aligned, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
