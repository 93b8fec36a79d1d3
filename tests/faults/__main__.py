"""``python -m tests.faults --source scripted --histories 300 --seed 1``: random histories, and a table of what came."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.faults.runner import Result, run
from tests.faults.sources import SOURCES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run histories and print a summary; the exit status is 0 only when all were good."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--source", choices=sorted(SOURCES), default="scripted")
    parser.add_argument("--histories", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the first history; the next ones follow")
    parser.add_argument("--transactions", type=int, default=0, help="in one history; the source's number unless told")
    parser.add_argument("--log", action="store_true", help="what the library logs, for a single history")
    options = parser.parse_args(arguments)
    if options.log:
        logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(threadName)s %(message)s")
    began = time.monotonic()
    results = []
    for seed in range(options.seed, options.seed + options.histories):
        result = run(seed, SOURCES[options.source], transactions=options.transactions)
        results.append(result)
        if not result.good:
            _say(f"seed {seed}: {why(result)}")
    _say(summary(options.source, results, time.monotonic() - began))
    return 0 if all(result.good for result in results) else 1


def summary(source: str, results: Sequence[Result], seconds: float) -> str:
    """The table."""
    times = sorted(result.converged for result in results if result.converged is not None)
    resyncs: Counter[str] = Counter()
    misfortunes: Counter[str] = Counter()
    for result in results:
        resyncs.update(result.resyncs)
        misfortunes.update(result.misfortunes)
    rows = [
        ("source", source),
        ("histories", f"{len(results)} in {seconds:.1f} s"),
        ("events checked", sum(result.events for result in results)),
        ("changes checked", sum(result.changes for result in results)),
        ("violations", sum(len(result.violations) for result in results)),
        ("other troubles", sum(len(result.troubles) for result in results)),
        ("converged", f"{len(times)} of {len(results)}"),
        ("convergence p50 / p99", f"{_percentile(times, 50):.3f} s / {_percentile(times, 99):.3f} s"),
        ("resyncs", _listed(resyncs)),
        ("misfortunes", _listed(misfortunes)),
        ("threads left", sum(len(result.threads_left) for result in results)),
    ]
    return "\n".join(f"{name:>22}  {value}" for name, value in rows)


def why(result: Result) -> str:
    """What is wrong with *result*, and how to run it again."""
    reasons = [*map(str, result.violations), *result.troubles, *(f"left behind: {n}" for n in result.threads_left)]
    return "\n".join(reasons) or "not converged"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _percentile(times: Sequence[float], percent: int) -> float:
    return times[min(len(times) - 1, len(times) * percent // 100)] if times else float("nan")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
