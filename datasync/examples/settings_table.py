"""Every process follows a table of the application: an admin saves a row, and each worker has it.

The table belongs to the application: a Django model, an SQLAlchemy class, a script with ``psql``. Nothing of that
changes. A DBA runs once what this prints::

    datasync postgres watch-table public.settings --key name --grant worker

Then run it with a store of that table::

    python -m datasync.examples.settings_table 'postgres://worker@db/shop?table=public.settings&key=name'
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from datasync import Plugin, Reconciler, codecs, connect


def apply(name: str, row: Any | None, before: Any | None) -> None:
    """Called once per real difference, also for what changed while this process was down."""
    if row is None:
        print(f"{name}: removed", flush=True)
    else:
        old = "new" if before is None else before["value"]
        print(f"{name}: {old} -> {row['value']}", flush=True)


def main(url: str) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with connect(url) as table, Plugin(kv=table, codec=codecs.json) as plugin:
        with Reconciler(plugin, "settings", "", apply=apply, codec=codecs.json):
            stopping.wait()


if __name__ == "__main__":
    main(sys.argv[1])
