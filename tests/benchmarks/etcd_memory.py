"""Memory growth while a snapshot is read, measured in a new process each time.

``python -m tests.benchmarks.etcd_memory ours|baseline HOST:PORT PREFIX`` prints bytes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from datasync.keyval.urls import connect
from tests.benchmarks.bare_etcd import BareEtcd
from tests.benchmarks.replay import Consumer


def main(side: str, endpoint: str, prefix: str) -> None:
    with BareEtcd(endpoint) as bare, connect(f"etcd://{endpoint}") as store:
        # Imports and the connection are not measured.
        bare.listed("nothing/")
        store.scan("nothing/")
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        if side == "ours":
            consumer = Consumer(store, prefix)
            event = consumer.first_resync()
            keys = [pair.get_key() for pairs in event.get_values().values() for pair in pairs]
            event.done()
            print(memory("VmHWM") - before)
            del keys
            consumer.close()
        else:
            kept = bare.listed(prefix)
            print(memory("VmHWM") - before)
            del kept


def memory(name: str) -> int:
    """Bytes of the field *name* of this process's status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
