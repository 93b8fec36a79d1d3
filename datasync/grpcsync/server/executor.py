"""An executor with one thread per call, because long-lived streams would exhaust a pool."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from datasync.runtime.logs import LimitedLog, get_logger
from datasync.runtime.threads import CLOSE_TIMEOUT, Worker

log = get_logger(__name__)

T = TypeVar("T")


class ThreadPerCallExecutor(concurrent.futures.Executor):
    """Starts a thread for each call. The server's ``maximum_concurrent_rpcs`` limits their number. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._workers: set[Worker] = set()
        #: Calls for which no thread could start; a thread that finishes its own call takes them over.
        self._waiting: deque[Callable[[], None]] = deque()
        self._numbers = itertools.count(1)
        self._log = LimitedLog(log)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run *fn* in a new thread; if none can start, in the thread of a call that has finished.

        Never raises, because gRPC would not accept any call after that.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        future.set_running_or_notify_cancel()
        worker = Worker(f"grpcsync-call-{next(self._numbers)}", lambda worker: self._run(worker, call))
        with self._lock:
            self._workers.add(worker)
        try:
            worker.start()
        except RuntimeError as error:
            with self._lock:
                self._workers.discard(worker)
                self._waiting.append(call)
            self._log.error("no thread for a call, which waits until another call finishes: %s", error)
        return future

    def _run(self, worker: Worker, call: Callable[[], None] | None) -> None:
        while call is not None:
            call()
            with self._lock:
                call = self._waiting.popleft() if self._waiting else None
                if call is None:
                    self._workers.discard(worker)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for running calls, up to ``CLOSE_TIMEOUT`` in total. Called after the server has stopped."""
        with self._lock:
            workers = list(self._workers)
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for worker in workers if wait else ():
            worker.close(max(0.0, deadline - time.monotonic()))
