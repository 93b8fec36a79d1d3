"""The verdict of a run: its figures, the rules, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.faults.soak.world import Record

MIB = 1024 * 1024
#: Bytes that resident memory may grow in ``SPAN`` seconds, fitted over the time after the warm-up.
GROWTH, SPAN = 1 * MIB, 600.0
#: The share of the run that is warm-up.
WARM_UP = 1 / 3
#: Difference of descriptors that client libraries may cause: connections that are being closed, pools.
DESCRIPTORS = 3
#: Seconds after healing within which 99 of 100 recoveries must be complete (I8).
CONVERGENCE = 2.0
#: Maximum seconds for one close().
CLOSE = 5.0


class Rule(NamedTuple):
    """One line of the verdict."""

    what: str
    value: str
    limit: str
    good: bool


def judge(record: Record) -> list[Rule]:
    """All rules, with their results."""
    growth, span = grown([(sample["time"], sample["rss"]) for sample in record.samples])
    allowed = GROWTH * max(1.0, span / SPAN)
    times = sorted(fault.slowest for fault in record.faults)
    more = {name: record.final[name] - record.baseline[name] for name in ("threads", "descriptors", "watches")}
    slowest = max(record.closed["seconds"].values(), default=0.0)
    return [
        Rule("violations", str(max(record.totals["violations"], len(record.violations))), "0", not record.violations),
        Rule(
            "in sync again, p99",
            f"{percentile(times, 99):.2f} s",
            f"{CONVERGENCE:g} s",
            percentile(times, 99) <= CONVERGENCE,
        ),
        Rule(
            "memory, growth after warm-up",
            f"{growth / MIB:+.2f} MiB in {span / 60:.1f} min",
            f"{allowed / MIB:.2f} MiB",
            growth <= allowed,
        ),
        Rule("threads, end minus beginning", f"{more['threads']:+d}", "0", more["threads"] <= 0),
        Rule(
            "descriptors, likewise",
            f"{more['descriptors']:+d}",
            f"{DESCRIPTORS}",
            more["descriptors"] <= DESCRIPTORS,
        ),
        Rule("watches at servers, likewise", f"{more['watches']:+d}", "0", more["watches"] <= 0),
        Rule("slowest close()", f"{slowest:.2f} s", f"{CLOSE:g} s", slowest <= CLOSE),
        Rule("threads left by close()", str(len(record.closed["left"])), "0", not record.closed["left"]),
        Rule("watches left by close()", str(record.closed["watches"]), "0", not record.closed["watches"]),
    ]


def grown(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The rise of the regression line through *points* after the warm-up, and its seconds."""
    if not points:
        return 0.0, 0.0
    first, last = points[0][0], points[-1][0]
    fitted = [(x, y) for x, y in points if x >= first + (last - first) * WARM_UP]
    span = fitted[-1][0] - fitted[0][0]
    return slope(fitted) * span, span


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the regression line."""
    count = len(points)
    middle_x = sum(x for x, _ in points) / count
    middle_y = sum(y for _, y in points) / count
    width = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / width if width else 0.0


def percentile(times: Sequence[float], percent: int) -> float:
    """The percentile of sorted *times*."""
    return times[min(len(times) - 1, len(times) * percent // 100)] if times else 0.0


def table(record: Record) -> str:
    """The figures and the verdict as text."""
    times = sorted(fault.slowest for fault in record.faults)
    totals = record.totals
    resyncs = ", ".join(f"{name} {count}" for name, count in sorted(totals["resyncs"].items()))
    late = sorted(
        sample["late"] for sample in record.samples if "late" in sample and not _stopped(record, sample["time"])
    )
    rows = [
        ("sources", ", ".join(record.sources)),
        ("seed", record.seed),
        ("time", f"{record.seconds / 60:.1f} min, a fault every {record.every:g} s"),
        ("faults", f"{len(record.faults)} of {len({(one.source, one.fault) for one in record.faults})} kinds"),
        ("transactions written", f"{record.transactions:,}"),
        ("events checked", f"{totals['events']:,} with {totals['changes']:,} changes"),
        ("RESYNCs", resyncs),
        ("rejections that the sender got", totals["refused"]),
        ("subscriptions made and closed", f"{totals['visits']:,}"),
        ("views compared with the source", f"{record.comparisons:,}"),
        ("snapshots compared", f"{totals.get('snapshots', 0):,}"),
        ("in sync again, p50 / p99 / max", " / ".join(f"{percentile(times, p):.2f} s" for p in (50, 99, 100))),
        (
            "a thread waited for a core",
            " / ".join(f"{percentile(late, p):.2f} s" for p in (50, 99, 100)),
        ),
        ("Python objects, begin / end", f"{record.baseline['objects']:,} / {record.final['objects']:,}"),
    ]
    lines = [f"{name:>32}  {value}" for name, value in rows]
    lines.append("")
    for rule in judge(record):
        lines.append(f"{rule.what:>32}  {rule.value} (limit {rule.limit}){'' if rule.good else '   BROKEN'}")
    return "\n".join(lines)


def _stopped(record: Record, time: float) -> bool:
    """True when a fault had frozen the agent then or just before."""
    return any(one.source == "agent" and one.began <= time <= one.healed + 2 for one in record.faults)
