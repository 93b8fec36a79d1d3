"""The part of ``gunicorn.conf.py`` that metrics and probes need, from the start of the server to its end."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from datasync import metrics

#: The variable by which the workers find the folder with the numbers of all.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
#: Begins the name of a folder that was made here.
OURS = "datasync-metrics-"

# A reload runs this file again, while workers that have the folder are alive. But the master of an upgrade (USR2) has
# the variable of its predecessor, which removes the folder when it ends.
_replaced = os.environ.get("GUNICORN_PID")
_found, _mine = Path(os.environ.get(FOLDER, OURS)).name, f"{OURS}{_replaced or 'first'}-"
if FOLDER not in os.environ or (_replaced and _found.startswith(OURS) and not _found.startswith(_mine)):
    os.environ[FOLDER] = tempfile.mkdtemp(prefix=_mine)


def post_worker_init(worker: Any) -> None:
    """Open the view of the application before the first request: until it was read, the worker is not ready."""
    import_module(worker.app.app_uri.partition(":")[0]).flags.status()


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended; its counters stay."""
    metrics.worker_exited(worker.pid)


def on_exit(server: Any) -> None:
    """Remove the folder, unless it was there before."""
    folder = Path(os.environ[FOLDER])
    if folder.name.startswith(OURS):
        shutil.rmtree(folder, ignore_errors=True)
