"""A mirror from etcd to etcd, against a bare loop that lists one server and writes to the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from datasync.keyval.urls import connect
from datasync.tools.mirror import PrefixMirror
from tests.benchmarks.bare_etcd import BareEtcd
from tests.benchmarks.etcd import PREFIX, filled, server
from tests.benchmarks.harness import Bench, Figures, Row, Sides

KEYS = 100_000
#: Puts of one transaction of the baseline, about what etcd takes by default.
PER_COMMIT = 125


@contextmanager
def copy(scale: float) -> Iterator[Sides]:
    """The first copy of *KEYS* keys to an empty prefix, of another one in each run."""
    keys = int(KEYS * scale)
    runs = count()
    notes: list[str] = []
    with (
        filled(keys) as (source, bare_source),
        server() as destination,
        BareEtcd(destination.endpoint) as bare_destination,
        connect(source.url) as from_store,
        connect(destination.url) as to_store,
    ):

        def ours() -> Figures:
            wall, cpu = time.perf_counter(), time.process_time()
            with PrefixMirror(from_store, to_store, PREFIX, f"/copy/{next(runs)}/") as mirror:
                mirror.wait_copied(600)
                figures = _figures(keys, wall, cpu)
                status = mirror.status()
            assert (status.keys, status.puts) == (keys, keys)
            notes.append(f"ours: {keys / figures['mirror-copy-100000']:.1f} s")
            return figures

        def baseline() -> Figures:
            wall, cpu = time.perf_counter(), time.process_time()
            prefix = f"/copy/{next(runs)}/"
            found = bare_source.listed(PREFIX)
            pairs = ((f"{prefix}{key[len(PREFIX) :]}".encode(), value) for key, (_, value) in found.items())
            bare_destination.fill(pairs, PER_COMMIT)
            assert len(found) == keys
            return _figures(keys, wall, cpu)

        yield Sides(ours, baseline, notes)


def _figures(keys: int, wall: float, cpu: float) -> dict[str, float]:
    return {
        "mirror-copy-100000": keys / (time.perf_counter() - wall),
        "mirror-copy-100000-cpu": 1e6 * (time.process_time() - cpu) / keys,
    }


BENCHES = [
    Bench(
        "mirror-copy",
        f"bare grpcio: a paged Range of one server, and transactions of {PER_COMMIT} puts to the other, without a look"
        " at what is there",
        [
            Row("mirror-copy-100000", "keys/s", 0.5, higher_is_better=True),
            Row("mirror-copy-100000-cpu", "µs of core per key"),
        ],
        copy,
        repeats=3,
    ),
]
