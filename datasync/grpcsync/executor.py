"""A thread for each call: a pool starves once streams fill it."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from datasync.threads import CLOSE_TIMEOUT, Worker

T = TypeVar("T")


class ThreadPerCall(concurrent.futures.Executor):
    """Starts a thread for everything that is submitted; ``maximum_concurrent_rpcs`` of the server bounds them.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _workers
        self._workers: set[Worker] = set()
        self._numbers = itertools.count(1)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run *fn* in a thread of its own."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call(worker: Worker) -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                with self._lock:
                    self._workers.discard(worker)

        worker = Worker(f"grpcsync-call-{next(self._numbers)}", call)
        with self._lock:
            self._workers.add(worker)
        future.set_running_or_notify_cancel()
        worker.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for what runs, up to ``CLOSE_TIMEOUT`` altogether; the server that it belongs to has stopped by now."""
        with self._lock:
            workers = list(self._workers)
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for worker in workers if wait else ():
            worker.close(max(0.0, deadline - time.monotonic()))
