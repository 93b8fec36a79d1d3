"""``python -m tests.benchmarks [NAMES] [--json FILE] [--repeats N] [--scale X]``: print a table of ratios.

Without names all benches run. A bench whose server is not installed is skipped. The exit code is 0 when every bench
ran, whether or not its targets were met and whether or not its peer failed.

``--plot FOLDER`` draws growth curves instead: the cost of one change, delivery or key against the number of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.benchmarks import (
    bad_key,
    consul,
    consumer,
    etcd,
    file,
    growth,
    grpc,
    idle,
    kafka,
    latency,
    local,
    memory,
    metrics,
    million,
    mirror,
    mirror_follow,
    postgres,
    protojson,
    redis,
    rest,
    sqlite,
    start,
    threads,
    values,
    view,
)
from tests.benchmarks.harness import Bench, Result, measure

STORES = (sqlite, file, etcd, redis, postgres, consul, kafka, million)
MODULES = (
    local,
    threads,
    bad_key,
    consumer,
    memory,
    metrics,
    protojson,
    values,
    start,
    view,
    grpc,
    rest,
    mirror,
    mirror_follow,
    *STORES,
    latency,
    idle,
)
BENCHES: dict[str, Bench] = {bench.name: bench for module in MODULES for bench in module.BENCHES}

CURVES: dict[str, growth.Curve] = {curve.name: curve for curve in growth.CURVES}

COLUMNS = ("bench", "ours", "baseline", "peer", "unit", "ratio", "target", "")

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        for bench in BENCHES.values():
            print(f"{bench.name:14} baseline: {bench.baseline}")
        return 0
    known: dict[str, Any] = CURVES if options.plot else BENCHES
    unknown = [name for name in options.names if name not in known]
    if unknown:
        what = "curve" if options.plot else "bench"
        print(f"unknown {what} {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    return (_plot if options.plot else _measure)(options, options.names or list(known))


def _measure(options: argparse.Namespace, names: Sequence[str]) -> int:
    results, failed = _each(names, lambda name: measure(BENCHES[name], scale=options.scale, repeats=options.repeats))
    flat = [result for of_bench in results for result in of_bench]
    print(table(flat))
    _write(options.json, "results", flat)
    return int(failed)


def _plot(options: argparse.Namespace, names: Sequence[str]) -> int:
    from tests.benchmarks.plot import draw  # inside: it needs matplotlib

    folder = Path(options.plot)
    folder.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> growth.Grown:
        grown = growth.grow(CURVES[name], scale=options.scale, repeats=options.repeats)
        print(f"{growth.table(grown)}\n", flush=True)
        draw(grown, folder / f"growth-{name}.png")
        return grown

    print(f"{_machine()}\n")
    grown, failed = _each(names, run)
    _write(options.json, "growth", grown)
    return int(failed)


def _each(names: Iterable[str], run: Callable[[str], T]) -> tuple[list[T], bool]:
    """Return the results of those that could be run, and whether any failed."""
    results, failed = [], False
    for name in names:
        print(f"running {name} …", file=sys.stderr, flush=True)
        try:
            results.append(run(name))
        except pytest.skip.Exception as error:
            print(f"  skipped: {error}", file=sys.stderr)
        except Exception as error:
            failed = True
            print(f"  failed: {error!r}", file=sys.stderr)
    return results, failed


def _write(file: str | None, what: str, results: Iterable[Any]) -> None:
    if file:
        text = json.dumps({"machine": _machine(), what: [asdict(result) for result in results]}, indent=1)
        Path(file).write_text(text)


def table(results: Sequence[Result]) -> str:
    """The results as text; ± is half of the interquartile range, in per cent of the median."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for result in results:
        row = result.row
        met = row.met(result.ours, result.baseline, result.ratio)
        lines.append(
            (
                row.name,
                f"{_number(result.ours)} ±{result.ours_spread:.0f} %",
                f"{_number(result.baseline)} ±{result.baseline_spread:.0f} %",
                _peer(result),
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
    baselines = dict.fromkeys(f"{result.bench}: the baseline is {result.baseline_is}" for result in results)
    peers = dict.fromkeys(_about_the_peer(result) for result in results if result.peer_is)
    return "\n".join([_machine(), "", *text, "", *baselines, *peers, *dict.fromkeys(notes)])


def _peer(result: Result) -> str:
    if result.peer_fails:
        return "fails"
    return "" if result.peer is None else f"{_number(result.peer)} ±{result.peer_spread:.0f} %"


def _about_the_peer(result: Result) -> str:
    return f"{result.bench}: the peer is {result.peer_is}" + (
        f"; it fails: {result.peer_fails}" if result.peer_fails else ""
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _machine() -> str:
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benches: {', '.join(BENCHES)}; curves: {', '.join(CURVES)}"
    )
    parser.add_argument("--plot", metavar="FOLDER", help="draw growth curves (PNG) into this folder; needs matplotlib")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--repeats", type=int, metavar="N", help="measured runs of each bench")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="factor of all sizes; of a curve, of its largest size. Figures of different scales cannot be compared",
    )
    parser.add_argument("--list", action="store_true", help="list the benches and their baselines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
