"""``python -m tests.faults.soak --minutes 30 --every 20 --seed 1``: a long run; the exit status is its verdict.

One process has subscribers on etcd, SQLite, gRPC and REST. All of them get ordinary traffic, and at regular times a
fault strikes one of them. The run measures the time until every subscriber is in sync again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults.soak.places import PLACES
from tests.faults.soak.verdict import judge, table
from tests.faults.soak.world import Record, Soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, and return 0 when no rule is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sources", default=",".join(PLACES), help="comma-separated: " + ", ".join(PLACES))
    parser.add_argument("--faults", default="", help="comma-separated; default: all")
    parser.add_argument("--rate", type=float, default=100.0, help="transactions per second, all sources together")
    parser.add_argument("--natural", action="store_true", help="keep the library's own backoff after failures")
    parser.add_argument("--log", default="", metavar="FILE", help="write the log of the agent to this file")
    parser.add_argument("--json", metavar="FILE", help="write all measurements to this file")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture (PNG); needs matplotlib")
    parser.add_argument("--broken", default="", help="add a bug that must be found: deaf, leak, thread, descriptor")
    parser.add_argument("--replot", metavar="FILE", help="do not run: draw the figures of an earlier run from its JSON")
    options = parser.parse_args(arguments)
    if options.replot:
        return _replot(options.replot, options.plot)
    sources = options.sources.split(",")
    if strangers := set(sources) - PLACES.keys():
        parser.error(f"unknown source: {', '.join(sorted(strangers))}")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended from outside")
    )  # otherwise the servers would be left running
    with tempfile.TemporaryDirectory(prefix="datasync-soak-") as folder:
        soak = Soak(
            Path(folder),
            seed=options.seed,
            sources=sources,
            every=options.every,
            rate=options.rate,
            natural=options.natural,
            broken=options.broken,
            log=options.log,
            faults=[name for name in options.faults.split(",") if name],
            say=_say,
        )
        try:
            record = soak.run(options.minutes * 60)
        finally:
            soak.close()
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(record)))
    if options.plot:
        _plot(record, options.plot)
    _say(table(record))
    return 0 if all(rule.good for rule in judge(record)) else 1


def _replot(figures: str, picture: str) -> int:
    record = Record.from_json(json.loads(Path(figures).read_text()))
    if picture:
        _plot(record, picture)
    _say(table(record))
    return 0


def _plot(record: Record, file: str) -> None:
    from tests.faults.soak.plot import draw  # here: it needs matplotlib

    draw(record, file)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
