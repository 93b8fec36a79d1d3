"""The picture of a growth curve: ours and the baseline over sizes that grow tenfold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from tests.benchmarks.growth import Grown
from tests.support.plots import GROUND, INK, dress

matplotlib.use("Agg")

from matplotlib import pyplot

OURS, BASELINE = "#2f6db5", "#8a8f94"


def draw(grown: Grown, file: Path) -> None:
    """Write the picture to *file*."""
    sizes = [point.size for point in grown.points]
    figure, axis = pyplot.subplots(figsize=(7, 3.4))
    figure.patch.set_facecolor(GROUND)
    sides: list[tuple[str, str, Sequence[float], Sequence[float]]] = [
        ("ours", OURS, [point.ours for point in grown.points], [point.ours_spread for point in grown.points]),
        (
            grown.baseline,
            BASELINE,
            [point.baseline for point in grown.points],
            [point.baseline_spread for point in grown.points],
        ),
    ]
    for label, colour, values, spreads in sides:
        bars = [value * spread / 100 for value, spread in zip(values, spreads, strict=True)]
        axis.errorbar(sizes, values, yerr=bars, color=colour, marker="o", markersize=4, capsize=2, label=label)
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_ylim(0, 1.3 * max(value for _, _, values, _ in sides for value in values))
    axis.set_xlabel(grown.of, fontsize=9)
    axis.set_ylabel(grown.unit)
    dress(axis)
    axis.legend(loc="best", fontsize=8, frameon=False, labelcolor=INK)
    figure.tight_layout()
    figure.savefig(file, dpi=110, facecolor=GROUND)
    pyplot.close(figure)
