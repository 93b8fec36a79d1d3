"""Growth curves: the cost of one change, delivery or key against the number of them, by powers of ten.

A point is a bench of one size: ours and baseline alternate; medians of the runs after a warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.benchmarks import crowd, etcd, local, memory, rest
from tests.benchmarks.harness import Bench, Row, Sides, measure


@dataclass(frozen=True, slots=True)
class Curve:
    """The quantity that grows, and the figure that is measured.

    Args:
      name: For the command line and the file.
      of: What there is more and more of.
      unit: Of the figures; the hope is that they stay as they are.
      baseline: What the baseline does, in words.
      sizes: From few to many.
      at: Both sides at a size.
      row: The figure that they return; ``{size}`` stands for the size.
      repeats: Runs that count.
      scaled: The figure in *unit*, from the one that the sides return and the size.
    """

    name: str
    of: str
    unit: str
    baseline: str
    sizes: Sequence[int]
    at: Callable[[int], AbstractContextManager[Sides]]
    row: str
    repeats: int
    scaled: Callable[[float, int], float] = lambda figure, size: figure


@dataclass(frozen=True, slots=True)
class Point:
    """Medians at a size, and the spread of each side as in ``harness.Result``."""

    size: int
    ours: float
    baseline: float
    ratio: float
    ours_spread: float
    baseline_spread: float


@dataclass(frozen=True, slots=True)
class Grown:
    """A measured curve."""

    name: str
    of: str
    unit: str
    baseline: str
    points: Sequence[Point]


def grow(curve: Curve, *, scale: float = 1.0, repeats: int | None = None) -> Grown:
    """Measure *curve* up to *scale* of its largest size; the smallest size is always measured."""
    sizes = [size for size in curve.sizes if size <= scale * curve.sizes[-1]] or curve.sizes[:1]
    points = [_point(curve, size, repeats or curve.repeats) for size in sizes]
    return Grown(curve.name, curve.of, curve.unit, curve.baseline, points)


def _point(curve: Curve, size: int, repeats: int) -> Point:
    row = Row(curve.row.format(size=size), curve.unit)
    bench = Bench(curve.name, curve.baseline, [row], lambda scale: curve.at(size), repeats)
    (result,) = measure(bench)
    ours, baseline = curve.scaled(result.ours, size), curve.scaled(result.baseline, size)
    return Point(size, ours, baseline, result.ratio, result.ours_spread, result.baseline_spread)


def table(grown: Grown) -> str:
    """The points as text."""
    width = max(14, len(grown.of))
    lines = [
        f"{grown.name}: {grown.unit}; the baseline is {grown.baseline}",
        f"{grown.of:>{width}}  {'ours':>14}  {'baseline':>14}  ratio",
    ]
    for point in grown.points:
        ours, baseline = (
            f"{point.ours:.3g} ±{point.ours_spread:.0f} %",
            f"{point.baseline:.3g} ±{point.baseline_spread:.0f} %",
        )
        lines.append(f"{point.size:{width},}  {ours:>14}  {baseline:>14}  {point.ratio:5.2f}")
    return "\n".join(lines)


KEYS = (1_000, 10_000, 100_000, 1_000_000)
MANY = (10, 100, 1_000)

CURVES = [
    Curve(
        "prefixes",
        "registered prefixes",
        "µs per change",
        "the same with 10 prefixes",
        (10, 100, 1_000, 10_000, 100_000),
        lambda size: local.prefixes(1.0, size),
        "prefixes-100000",
        repeats=11,
    ),
    Curve(
        "subscriptions",
        "subscriptions of one key",
        "µs per delivery",
        "queue.Queue.put",
        (1, 10, 100, 1_000, 10_000),
        lambda size: local.fan_out(1.0, size),
        "fan-out-1000",
        repeats=7,
    ),
    Curve(
        "keys",
        "keys in etcd",
        "µs per key of the snapshot",
        "bare paged Range into a dict",
        KEYS,
        lambda size: etcd.snapshot(1.0, size),
        "etcd-snapshot-{size}",
        repeats=3,
        scaled=lambda seconds, size: 1e6 * seconds / size,
    ),
    Curve(
        "rest-pages",
        "keys, listed over REST in pages of 100",
        "µs per key",
        "sorting once, and JSON of 100 items after the other",
        (400, 4_000, 40_000),
        lambda size: rest.pages(1.0, size),
        "rest-pages",
        repeats=3,
        scaled=lambda seconds, size: 1e6 * seconds / size,
    ),
    Curve(
        "memory",
        "keys in the registry",
        "bytes per key, without key and value",
        "a dict of key to (revision, bytes)",
        KEYS,
        lambda size: memory.bytes_per_key(1.0, size),
        "registry-bytes-per-key",
        repeats=3,
    ),
    Curve(
        "replaced",
        "subscriptions, a folder each",
        "µs per resync of 20,000 other keys",
        "a dict of the keys",
        MANY,
        crowd.replaced,
        "crowd-replaced",
        repeats=3,
    ),
    Curve(
        "replaced-shared",
        "subscriptions to all keys",
        "µs per resync of 20,000 other keys",
        "a dict of the keys",
        (1, 10, 100),
        lambda size: crowd.replaced(size, shared=True),
        "crowd-replaced",
        repeats=3,
    ),
    Curve(
        "joined",
        "keys in the registry, none for the subscription",
        "µs per key of a watch",
        "a dict of the keys",
        (1_000, 10_000, 100_000, 300_000),
        crowd.joined,
        "crowd-joined",
        repeats=5,
    ),
    Curve(
        "left",
        "subscriptions of one prefix",
        "µs per watch and close",
        "a dict of the subscriptions",
        (100, 1_000, 10_000),
        crowd.left,
        "crowd-left",
        repeats=3,
    ),
    Curve(
        "grouped",
        "subscriptions, a folder each",
        "µs per get_values of 20,000 keys",
        "a dict of the subscriptions",
        MANY,
        crowd.grouped,
        "crowd-grouped",
        repeats=3,
    ),
    Curve(
        "looked-up",
        "subscriptions, a folder each",
        "µs per key that nobody watches",
        "a dict of the subscriptions",
        (10, 100, 1_000, 10_000),
        crowd.looked_up,
        "crowd-looked-up",
        repeats=3,
    ),
]
