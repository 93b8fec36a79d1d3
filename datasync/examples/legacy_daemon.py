"""A classic daemon with threads, queues and signals, which gets its configuration through datasync.

    python -m datasync.examples.legacy_daemon network.db

SIGTERM and SIGINT end it cleanly. SIGHUP makes it start over from the full configuration. Several worker threads share
the work of one event, and the last one to finish acknowledges the event.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from concurrent.futures import Future
from functools import partial
from queue import Queue

from datasync import ChangeEvent, KeyVal, Op, PropagationError, Rejected, ResyncEvent
from datasync.examples.launch import launch
from datasync.examples.netconf_pb2 import Interface
from datasync.keyval.sqlite import SQLiteStore
from datasync.kvdbsync import Plugin
from datasync.resync import Plugin as Orchestrator
from datasync.syncbase import aggregate_done

log = logging.getLogger("legacy-daemon")

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
WORKERS = 3

Job = tuple[KeyVal, Future[None]]


class Daemon:
    """One thread that reads events, and several that do the work."""

    def __init__(self, path: str) -> None:
        self._orchestrator = Orchestrator()
        self._store = SQLiteStore(path)
        self._plugin = Plugin(kv=self._store, resync=self._orchestrator)
        self._events: Queue[ResyncEvent | ChangeEvent | None] = Queue()
        self._jobs: Queue[Job | None] = Queue()
        self._threads = [threading.Thread(target=self._read, name="events")]
        self._threads += [threading.Thread(target=self._work, name=f"worker-{number}") for number in range(WORKERS)]

    def start(self) -> None:
        self._plugin.after_init()
        self._plugin.wait_ready(5)
        self._plugin.watch("legacy-daemon", self._events, self._events, "interface/")
        for thread in self._threads:
            thread.start()
        self.reload()

    def reload(self) -> None:
        """Start over from the full configuration."""
        log.info("resync: %s", self._orchestrator.do_resync())

    def stop(self) -> None:
        """Stop in the order of the data path: source, reading thread, workers. Pending work is completed."""
        self._plugin.close()
        self._events.put(None)
        self._threads[0].join()
        for _ in range(WORKERS):
            self._jobs.put(None)
        for thread in self._threads[1:]:
            thread.join()
        self._orchestrator.close()
        self._store.close()

    def _read(self) -> None:
        while (event := self._events.get()) is not None:
            parts: dict[str, Future[None]] = {}
            if isinstance(event, ResyncEvent):
                log.info("RESYNC (%s)", event.reason.value)
                for pair in (pair for pairs in event.get_values().values() for pair in pairs):
                    parts[pair.get_key()] = self._submit(pair)
            else:
                for change in event.get_changes():
                    if change.get_change_type() is Op.DELETE:
                        log.info("%s was deleted", change.get_key())
                    else:
                        parts[change.get_key()] = self._submit(change)
            # No wait here: the next event arrives only when this one is acknowledged.
            aggregate_done(parts).add_done_callback(partial(answer, event))

    def _submit(self, pair: KeyVal) -> Future[None]:
        future: Future[None] = Future()
        self._jobs.put((pair, future))
        return future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            pair, future = job
            try:
                configure(pair.get_value(Interface()))
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(None)


def answer(event: ResyncEvent | ChangeEvent, all_parts: Future[None]) -> None:
    """Acknowledge *event* but for the keys that failed; called by the worker that finishes its last part."""
    error = all_parts.exception()
    event.done(Rejected(error.errors) if isinstance(error, PropagationError) else error)


def configure(interface: Interface) -> None:
    """Do the work; an exception rejects the key, which is then delivered again."""
    if not interface.mtu:
        raise ValueError(f"{interface.name} has no mtu")
    log.info("%s: mtu %d by %s", interface.name, interface.mtu, threading.current_thread().name)


def run(path: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    # Before the first thread starts: threads inherit the mask, and sigwait() below receives the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    daemon = Daemon(path)
    daemon.start()
    log.info("ready")
    while (number := signal.sigwait(SIGNALS)) == signal.SIGHUP:
        daemon.reload()
    log.info("%s: stopping", signal.Signals(number).name)
    daemon.stop()
    log.info("stopped; threads left: %d", threading.active_count() - 1)


if __name__ == "__main__":
    launch(run, "FILE")
