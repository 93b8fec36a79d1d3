"""Run cells: random histories of a source with faults, recorded and checked.

One cell, which can be repeated: ``python -m tests.faults --source etcd --fault kill9 --workload steady --seed 7``. The
command prints a line for each cell, and a table at the end. Its exit status is 0 when nothing was violated.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cell import NONE, RANDOM, SECONDS, Cell, Result, fits, product
from tests.faults.matrix import HANGS, run_many
from tests.faults.report.table import table
from tests.faults.runner import run_cell
from tests.faults.sources.source import SOURCES, make_source
from tests.faults.workloads.workload import WORKLOADS


@dataclass(frozen=True)
class Known:
    """The faults and workloads of one source."""

    source: str
    faults: tuple[str, ...]
    workloads: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells that *arguments* ask for, and print the table."""
    options = _parser().parse_args(arguments)
    if options.log:
        logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(threadName)s %(message)s")
    if options.list:
        _list(options.source)
        return 0
    if options.matrix or options.forever:
        known = [one for name in options.source or sorted(SOURCES) if (one := know(name)) is not None]
        cells = _forever(known, options) if options.forever else iter(_matrix(known, options))
        with _interruptible():
            results = run_many(cells, options.jobs, _tell)
    else:
        results = _here(options)
    if len(results) != 1 or options.matrix:
        _say(table(results))
    if options.json:
        Path(options.json).write_text(json.dumps({"cells": [result.as_json() for result in results]}, indent=1))
    return 0 if all(result.good for result in results) else 1


def know(name: str) -> Known | None:
    """Ask the source for its faults and workloads; None when it is not available on this machine."""
    try:
        source = make_source(name, random.Random(0))
    except BaseException as error:  # a missing server raises an outcome of pytest
        if isinstance(error, KeyboardInterrupt):
            raise
        _say(f"{name}: not available: {error}")
        return None
    try:
        fit = (one.name for one in WORKLOADS.values() if fits(one, sourced=source.sourced, within=source.within))
        return Known(name, tuple(source.misfortunes()), tuple(fit))
    finally:
        source.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--source", choices=sorted(SOURCES), action="append", help="default: scripted; with --matrix: all")
    add(
        "--fault",
        default="",
        help=f"default: {RANDOM}, which is all of them in random order; {NONE} is no fault; see --list",
    )
    add("--workload", choices=list(WORKLOADS), default="mixed")
    add("--seed", type=int, default=1, help="seed of the first cell")
    add("--seconds", type=float, default=0.0, help=f"duration of a cell; default: {SECONDS:g}")
    add("--histories", type=int, default=1, help="number of cells to run one after another, each with the next seed")
    add("--matrix", action="store_true", help="source x fault x workload, where each fault meets some of the workloads")
    add("--full", action="store_true", help="the matrix with all workloads for each fault")
    add("--forever", action="store_true", help="random cells until Ctrl-C")
    add("--jobs", type=int, default=2, help="cells that run at the same time")
    add("--list", action="store_true", help="list sources, faults and workloads")
    add("--json", metavar="FILE", help="also write the results to this file")
    add("--log", action="store_true", help="print the log of the library")
    return parser


def _here(options: argparse.Namespace) -> list[Result]:
    results = []
    for seed in range(options.seed, options.seed + options.histories):
        for source in options.source or ["scripted"]:
            cell = Cell(source, options.fault or RANDOM, options.workload, seed, options.seconds)
            faulthandler.dump_traceback_later(options.seconds + HANGS, exit=True, file=2)
            results.append(run_cell(cell))
            faulthandler.cancel_dump_traceback_later()
            if options.histories == 1 or not results[-1].good:
                _tell(results[-1])
    return results


def _matrix(known: Sequence[Known], options: argparse.Namespace) -> list[Cell]:
    cells: list[Cell] = []
    for one in known:
        faults = [*one.faults, RANDOM]
        seconds = options.seconds or SECONDS
        all_of_it = product(one.source, faults, one.workloads, seed=options.seed, seconds=seconds, full=options.full)
        cells += [cell for cell in all_of_it if cell.fault == options.fault or not options.fault]
    _say(f"{len(cells)} cells of {len(known)} sources")
    return cells


def _forever(known: Sequence[Known], options: argparse.Namespace) -> Iterator[Cell]:
    seed = options.seed
    while known:
        chance = random.Random(seed)
        one = chance.choice(known)
        workload = chance.choice(one.workloads)
        seconds = 0.0 if WORKLOADS[workload].counted else options.seconds or SECONDS
        yield Cell(one.source, chance.choice([*one.faults, RANDOM]), workload, seed, seconds)
        seed += 1


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the run, also as a background job of a shell, where Ctrl-C is ignored by default."""
    before = [(number, signal.signal(number, signal.default_int_handler)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _list(sources: Sequence[str] | None) -> None:
    for name in sources or sorted(SOURCES):
        if (one := know(name)) is not None:
            _say(f"{name}: {' '.join([*one.faults, RANDOM, NONE])}")
    for workload in WORKLOADS.values():
        _say(f"{workload.name:>14}  {workload.about}")


def _tell(result: Result) -> None:
    _say(str(result) if result.good and result.counts else f"{result}\n{result.why}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
