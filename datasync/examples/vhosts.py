"""A daemon that keeps the virtual hosts of a web server as they stand in a store: one file for each.

    python -m datasync.examples.vhosts sqlite:vhosts.db

SIGTERM and SIGINT end it. SIGHUP writes every file again. Its condition is under the key ``status/vhosts``. A bad value
keeps the last good file, and is named in the status.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from datasync import Plugin, Reconciler, connect
from datasync.consumer import ReconcilerStatus
from datasync.examples.launch import launch

log = logging.getLogger("vhosts")

FOLDER = Path("vhosts.d")
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
#: Seconds between two looks at the condition.
LOOK = 0.5


def apply(key: str, host: Any, previous: Any) -> None:
    """Write or remove the file of one host; an exception rejects that host alone."""
    path = FOLDER / f"{key.removeprefix('vhost/')}.conf"
    if host is None:
        path.unlink(missing_ok=True)
        log.info("%s is removed", path.name)
        return
    new = path.with_suffix(".new")
    new.write_text(f"server_name {host['name']};\nroot {host['root']};\n")
    os.replace(new, path)
    log.info("%s is written", path.name)


def describe(status: ReconcilerStatus) -> bytes:
    """Return the status as one line of JSON, without values."""
    bad = ", ".join(f'"{key}"' for key in sorted(status.problems))
    healthy = str(status.synced and not status.problems).lower()
    return f'{{"healthy": {healthy}, "problems": [{bad}]}}'.encode()


def run(url: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before the first thread starts: sigtimedwait() gets them
    FOLDER.mkdir(exist_ok=True)
    with connect(url) as store, Plugin(kv=store, allow_delayed_start=True) as network:
        broker, told = store.new_broker("status/"), b""
        with Reconciler(network, "vhosts", "vhost/", apply=apply, state="vhosts.state", max_delete=0.5) as vhosts:
            while (got := signal.sigtimedwait(SIGNALS, LOOK)) is None or got.si_signo == signal.SIGHUP:
                if got is not None:
                    vhosts.reconcile_all()
                if (condition := describe(vhosts.status())) != told:
                    try:
                        broker.put("vhosts", condition)
                        told = condition
                    except Exception as error:  # the store is down: the next look tries again
                        log.warning("no status: %s", type(error).__name__)
    log.info("stopped")


if __name__ == "__main__":
    launch(run, "URL")
