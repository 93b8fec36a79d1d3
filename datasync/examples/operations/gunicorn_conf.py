"""The part of ``gunicorn.conf.py`` that metrics need."""

from __future__ import annotations

from typing import Any

from datasync import metrics


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended; its counters stay."""
    metrics.worker_exited(worker.pid)
