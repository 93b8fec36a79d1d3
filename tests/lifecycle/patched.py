"""A process that gevent has patched, with some lines open in it: C15.

``python -m tests.lifecycle.patched FOLDER LINE,LINE [--etcd URL] [--untold]`` prints what went wrong as a JSON list.
gRPC is told of gevent unless *untold*.
"""

# ruff: noqa: E402 - the patch comes before everything else, as gevent wants it
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import json
import sys
import threading
from pathlib import Path

import gevent

from datasync.errors import UnsupportedError
from tests.lifecycle.everything import PATIENCE, Everything, Line, limit_life

#: Changes through each line.
CHANGES = 100


def write(line: Line) -> None:
    for _ in range(CHANGES):
        line.write()


def run(everything: Everything) -> list[str]:
    """All lines at once, and beside them something that must not be kept from its turn."""
    troubles = []
    turns = 0
    over = threading.Event()

    def count() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            gevent.sleep(0.001)

    counting = gevent.spawn(count)
    writers = [gevent.spawn(write, line) for line in everything]
    gevent.joinall(writers, timeout=PATIENCE, raise_error=True)
    for line in everything:
        if not line.arrived():
            troubles.append(f"{line.name}: {line.written} were written, {line.consumer.values} came")
    over.set()
    counting.join()
    if turns < 10:
        troubles.append(f"another greenlet had {turns} turns only")
    return troubles


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle.patched", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("lines")
    parser.add_argument("--etcd", default="")
    parser.add_argument("--untold", action="store_true")
    wanted = parser.parse_args()
    limit_life(40)
    lines = wanted.lines.split(",")
    if not wanted.untold and {"grpc", "etcd"} & set(lines):
        import grpc.experimental.gevent

        grpc.experimental.gevent.init_gevent()
    troubles = []
    try:
        with Everything(wanted.folder, wanted.etcd if "etcd" in lines else "", *lines) as everything:
            troubles += run(everything)
    except UnsupportedError as error:
        troubles.append(str(error))
    troubles += [f"{one.name} is left" for one in threading.enumerate() if one.name.startswith("datasync-")]
    sys.stdout.write(json.dumps(troubles) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
