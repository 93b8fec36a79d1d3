"""``python -m tests.benchmarks [NAMES] [--json FILE] [--repeats N] [--scale X]``: prints a table of ratios.

Without names all run. A bench whose server is not on this machine is listed as skipped. The exit code says whether
every bench could be run, not whether the targets were met: figures are for reading.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from tests.benchmarks import etcd, grpc, idle, latency, local, memory, rest, sqlite, start
from tests.benchmarks.harness import Bench, Result, measure

MODULES = (local, memory, start, sqlite, grpc, rest, etcd, latency, idle)
BENCHES: dict[str, Bench] = {bench.name: bench for module in MODULES for bench in module.BENCHES}

COLUMNS = ("bench", "ours", "floor", "unit", "ratio", "target", "")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        for bench in BENCHES.values():
            print(f"{bench.name:14} beside {bench.floor}")
        return 0
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        print(f"there is no bench {', '.join(unknown)}; known: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    results: list[Result] = []
    failed = False
    for name in options.names or BENCHES:
        print(f"running {name} …", file=sys.stderr, flush=True)
        try:
            results += measure(BENCHES[name], scale=options.scale, repeats=options.repeats)
        except pytest.skip.Exception as error:
            print(f"  skipped: {error}", file=sys.stderr)
        except Exception as error:
            failed = True
            print(f"  failed: {error!r}", file=sys.stderr)
    print(table(results))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": _machine(), "results": [asdict(result) for result in results]}, file, indent=1)
    return int(failed)


def table(results: Sequence[Result]) -> str:
    """The results as text; ± is half of the range of the middle half of the runs."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for result in results:
        row = result.row
        met = row.met(result.ours, result.floor, result.ratio)
        lines.append(
            (
                row.name,
                f"{_number(result.ours)} ±{result.ours_spread:.0f} %",
                f"{_number(result.floor)} ±{result.floor_spread:.0f} %",
                row.unit,
                f"{result.ratio:.2f}",
                row.wanted,
                "" if met is None else "met" if met else "missed",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{result.bench}: {note}" for result in results for note in result.notes]
    floors = dict.fromkeys(f"{result.bench}: the floor is {result.floor_is}" for result in results)
    return "\n".join([_machine(), "", *text, "", *floors, *dict.fromkeys(notes)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _machine() -> str:
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--repeats", type=int, metavar="N", help="runs that count, instead of each bench's own number")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; figures of other scales say little")
    parser.add_argument("--list", action="store_true", help="name the benches and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
