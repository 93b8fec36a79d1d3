"""The cost of typed values: what a codec adds to the library that does the work."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasync import codecs
from datasync.events import ResyncReason
from datasync.syncbase.registry import Registry
from tests.benchmarks.harness import Bench, Figures, Row, Sides

KEYS = 100_000


@dataclasses.dataclass
class VHost:
    name: str
    port: int = 80
    aliases: list[str] = dataclasses.field(default_factory=list)
    weight: float = 1.0
    tls: bool = False


@contextmanager
def typed_keys(scale: float) -> Iterator[Sides]:
    import msgspec

    count = max(100, int(KEYS * scale))
    codec = codecs.typed(VHost)
    values = [codec.encode(VHost(f"host{number}", number, ["a", "b"], 0.5, True)) for number in range(count)]
    spaced = [json.dumps(json.loads(data)).encode() for data in values]
    foreign = [json.dumps(json.loads(data), sort_keys=True).encode() for data in values]
    plain = msgspec.json.Decoder(VHost).decode
    registry = Registry("bench", codec=codec, sourced=True)
    entries: dict[str, tuple[int, bytes]] = {f"vhost/{number}": (1, data) for number, data in enumerate(values)}
    registry.feed_snapshot(1, entries, ResyncReason.INITIAL)

    def each(read: Callable[[Any], Any], data: Sequence[Any]) -> float:
        begun = time.perf_counter()
        for one in data:
            read(one)
        return (time.perf_counter() - begun) / count * 1e6

    def ours() -> Figures:
        return {
            "typed-decode": each(codec.decode, values),
            "typed-decode-spaced": each(codec.decode, spaced),
            "typed-decode-foreign": each(codec.decode, foreign),
            "typed-pair": each(lambda pair: pair.value, registry.items()),
        }

    def baseline() -> Figures:
        own = each(plain, values)
        return {
            "typed-decode": own,
            "typed-decode-spaced": each(plain, spaced),
            "typed-decode-foreign": each(plain, foreign),
            "typed-pair": own,
        }

    with registry:
        yield Sides(ours, baseline)


BENCHES = [
    Bench(
        "typed-values",
        "msgspec's decoder alone; spaced: with spaces, foreign: with fields in another order too",
        [
            Row("typed-decode", "µs per key", 4.0),
            Row("typed-decode-spaced", "µs per key", 5.0),
            Row("typed-decode-foreign", "µs per key"),
            Row("typed-pair", "µs per key", 5.0),
        ],
        typed_keys,
        repeats=5,
    ),
]
