"""The picture of a run: memory, threads and descriptors over time, with the faults marked."""

from __future__ import annotations

from typing import Any

import matplotlib

from tests.faults.soak.verdict import MIB, WARM_UP, slope
from tests.faults.soak.world import Record
from tests.support.plots import GROUND, INK, RED, dress

matplotlib.use("Agg")

from matplotlib import pyplot

COLOURS = {"etcd": "#2f6db5", "sqlite": "#2e8b57", "grpc": "#c2571a", "rest": "#8a4fa3", "agent": "#555555"}


def draw(record: Record, file: str) -> None:
    """Write the picture into *file*."""
    times = [sample["time"] / 60 for sample in record.samples]
    figure, axes = pyplot.subplots(5, 1, sharex=True, figsize=(9, 8.6), height_ratios=(3, 1.2, 1.2, 1.2, 1.6))
    figure.patch.set_facecolor(GROUND)
    memory, threads, descriptors, waiting, ways = axes
    resident = [sample["rss"] / MIB for sample in record.samples]
    memory.plot(times, resident, color=INK, linewidth=1.1)
    _fit(memory, times, resident)
    memory.set_ylim(0, max(resident, default=1) * 1.2)
    memory.set_ylabel("resident MiB")
    for axis, name in ((threads, "threads"), (descriptors, "descriptors")):
        values = [sample[name] for sample in record.samples]
        axis.plot(times, values, color=INK, linewidth=1.1, drawstyle="steps-post")
        axis.set_ylim(0, max(values, default=1) * 1.3)
        axis.set_ylabel(name)
    waiting.plot(times, [sum(sample["pending"].values()) for sample in record.samples], color=INK, linewidth=0.8)
    waiting.set_ylabel("changes waiting")
    for fault in record.faults:
        ways.plot(fault.healed / 60, max(fault.slowest, 0.001), "o", markersize=4, color=COLOURS[fault.source])
    ways.set_yscale("log")
    ways.set_ylabel("in sync after s")
    ways.set_xlabel("minutes")
    for axis in axes:
        dress(axis)
        for fault in record.faults:
            begin, end = fault.began / 60, max(fault.healed, fault.began + 1) / 60
            axis.axvspan(begin, end, color=COLOURS[fault.source], alpha=0.16, linewidth=0)
    handles = [
        pyplot.Line2D([], [], color=COLOURS[name], marker="s", linestyle="", label=name) for name in _seen(record)
    ]
    memory.legend(
        handles=handles, loc="lower right", ncols=5, fontsize=8, frameon=False, title="a fault at", title_fontsize=8
    )
    figure.suptitle(
        f"{record.seconds / 60:.0f} minutes, {len(record.faults)} faults, {record.totals['events']:,} events checked",
        color=INK,
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110, facecolor=GROUND)
    pyplot.close(figure)


def _fit(axis: Any, times: list[float], values: list[float]) -> None:
    """The line that the verdict is about."""
    begin = int(len(times) * WARM_UP)
    points = list(zip(times[begin:], values[begin:], strict=True))
    if len(points) < 2:
        return
    rise = slope(points)
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    ends = (points[0][0], points[-1][0])
    axis.plot(ends, [middle_y + rise * (x - middle_x) for x in ends], color=RED, linewidth=1.4, linestyle="--")
    axis.annotate(
        f"{rise * 10:+.2f} MiB in 10 minutes",
        (ends[0], middle_y),
        (0, 9),
        textcoords="offset points",
        color=RED,
        fontsize=8,
    )


def _seen(record: Record) -> list[str]:
    there = {fault.source for fault in record.faults}
    return [name for name in COLOURS if name in there]
