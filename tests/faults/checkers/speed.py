"""``python -m tests.faults.checkers.speed``: the seconds and the memory that the checkers need for a long log."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Sequence

from datasync.events import ResyncReason
from tests.faults.checkers.honest_client import Honest
from tests.faults.checkers.judge import CHECKERS, judge
from tests.faults.checkers.reading import Reading
from tests.faults.history import Course, Log, Op1, Truth

#: Keys of a state.
KEYS = 200
#: Changes between two RESYNCs.
BETWEEN = 1000


def long_truth(commits: int, most: int, seed: int = 1) -> Truth:
    """A truth of *count* transactions, each of 1 to *most* keys."""
    chance = random.Random(seed)
    keys = [f"{folder}/{number}" for number in range(KEYS // 4) for folder in "abcd"]
    there: set[str] = set()
    truth = Truth()
    for revision in range(2, commits + 2):
        ops = []
        for key in chance.sample(keys, chance.randint(1, most)):
            delete = key in there and chance.random() < 0.3
            (there.discard if delete else there.add)(key)
            ops.append(Op1(key, None if delete else b"%d" % revision))
        truth.record(revision, ops, moment=float(revision))
    return truth


def long_log(truth: Truth, prefixes: tuple[str, ...]) -> Log:
    """A log with one event for each commit, and a RESYNC after every thousandth."""
    client = Honest(truth, prefixes)
    client.resync(ResyncReason.INITIAL, 1)
    for number, commit in enumerate(truth.epochs[0].commits, 1):
        client.change(commit.revision)
        if number % BETWEEN == 0:
            client.resync(ResyncReason.OVERFLOW, commit.revision)
    return client.log


def measure(name: str, truth: Truth, logs: Sequence[Log]) -> str:
    """A line with the time and memory of judging *logs*."""
    events = sum(len(log.puts()) for log in logs)
    changes = sum(len(getattr(put, "changes", ())) for log in logs for put in log.puts())
    over = max(log.end for log in logs)
    before = _most()
    began = time.process_time()
    judgement = judge(truth, logs, Course(healed=over, converged=over), calm=True)
    seconds = time.process_time() - began
    assert judgement.good, [str(found)[:500] for found in judgement.violations] + judgement.lacks
    rates = f"{events / seconds:>9,.0f} events/s {changes / seconds:>9,.0f} changes/s"
    return (
        f"{name:<34} {events:>9,} events {changes:>9,} changes {seconds:>6.2f} s {rates}  {_most() - before:+.0f} MiB"
    )


def _most() -> float:
    """Peak memory of this process in MiB, which includes the logs."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shares(truth: Truth, log: Log) -> str:
    """The time of each checker."""
    lines = []
    began = time.process_time()
    reading = Reading(log)
    lines.append(("reading", time.process_time() - began))
    for name, checker in CHECKERS.items():
        began = time.process_time()
        checker(truth, reading)
        lines.append((name, time.process_time() - began))
    return ", ".join(f"{name} {seconds * 1e6 / len(log.puts()):.1f}" for name, seconds in lines)


def main() -> int:
    """Print the table."""
    out = sys.stdout.write
    truth = long_truth(50_000, 1)
    log = long_log(truth, ("",))
    out(measure("50,000 single-key events", truth, [log]) + "\n")
    out(f"microseconds of an event: {shares(truth, log)}\n")
    truth = long_truth(10_000, 100)
    out(measure("10,000 transactions of 1-100 keys", truth, [long_log(truth, ("",))]) + "\n")
    truth = long_truth(2_000, 10)
    crowd = [long_log(truth, (f"{'abcd'[number % 4]}/", "a/1")) for number in range(50)]
    out(measure("50 watchers, 2,000 transactions", truth, crowd) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
