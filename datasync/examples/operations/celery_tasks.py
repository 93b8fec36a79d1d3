"""Tasks of celery that follow live flags, in every process of a worker.

    FLAGS=redis://127.0.0.1:6379/0 CELERY_BROKER_URL=redis://127.0.0.1:6379/1 \
        celery --app datasync.examples.operations.celery_tasks worker
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from datasync import open_view

flags = open_view(os.environ["FLAGS"], "flags/")
app = Celery("tasks", backend=os.environ.get("CELERY_RESULT_BACKEND"))
app.conf.broker_connection_retry_on_startup = True  # the worker starts, and waits, while the broker is down


@app.task
def read_limit() -> tuple[int, Any]:
    """Return the process that ran the task, and the limit that holds there."""
    return os.getpid(), flags.get("limit")
