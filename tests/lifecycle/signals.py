"""Waits in a public call until a signal comes: what comes out, how soon, and what still works afterwards. C15.

``python -m tests.lifecycle.signals FOLDER [--etcd URL]`` goes through all calls that wait, with each of the signals,
and prints (call, signal, what came out, seconds) as JSON, with what went wrong. With ``--missed`` the signal does not
wake the call, as if it had come just before the wait: the system gives it to another thread.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any

from datasync.errors import ClosedError
from datasync.keyval import connect
from datasync.keyval.sqlite.store import SQLiteStore
from datasync.kvdbsync import Plugin
from datasync.resync.orchestrator import Plugin as Orchestrator
from datasync.runtime import threads
from datasync.syncbase.change import Change
from datasync.syncbase.futures import DoneFuture
from datasync.syncbase.registry import Registry
from tests.lifecycle.everything import Everything, GrpcLine, LocalLine, RestLine, StoreLine, limit_life, text

#: Seconds within which a signal has to come out of a call.
LIMIT = 1.0
#: Seconds that a call is to wait unless it is interrupted.
LONG = 30.0
#: Calls of Python's own library, which a signal that comes just before the wait does not end.
NOT_OURS = ("queue.get",)


class Stop(BaseException):
    """What the application's handler of SIGTERM raises."""


def on_term(number: int, frame: object) -> None:
    raise Stop


class BlackHole:
    """A server that takes connections, and never says anything."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def close(self) -> None:
        self._socket.close()


def waits(everything: Everything, hole: BlackHole) -> Iterator[tuple[str, Callable[[], object]]]:
    """The calls that wait, each ready to be made, twice and more."""
    local = everything.line("local")
    grpc = everything.line("grpc")
    rest = everything.line("rest")
    sqlite = everything.line("sqlite")
    assert isinstance(local, LocalLine)
    assert isinstance(grpc, GrpcLine)
    assert isinstance(rest, RestLine)
    assert isinstance(sqlite, StoreLine)
    yield "queue.get", lambda: Queue[Any]().get(timeout=LONG)
    yield "registry.wait_ready", lambda: Registry(sourced=True).wait_ready(LONG)
    yield (
        "registry.propagate_changes",
        lambda: local.registry.propagate_changes({"h/x": Change("h/x", text("x"))}, timeout=LONG),
    )
    yield "registry.propagate_resync", lambda: Registry("r").propagate_resync({}) and local.future.result(LONG)
    yield "PropagationFuture.result", lambda: local.future.result(LONG)
    yield "PropagationFuture.exception", lambda: local.future.exception(LONG)
    yield "DoneFuture.result", lambda: DoneFuture().result(LONG)
    yield "txn.commit", lambda: local.txn.put("h/x", text("x")).commit() and local.future.result(LONG)
    yield "orchestrator.do_resync", lambda: do_resync()
    yield "plugin.wait_ready (not started)", lambda: Plugin(connect("memory://")).wait_ready(LONG)
    yield "grpc client.put", lambda: grpc.waiting.put("h/y", text("x"))
    yield "grpc client.delete", lambda: grpc.waiting.delete("h/y")
    yield "grpc client.resync", lambda: grpc.waiting.resync({})
    yield "grpc future.result", lambda: grpc.future.result(LONG)
    yield "grpc client.wait_ready", lambda: grpc_wait(hole)
    yield "rest client.put", lambda: rest_call(hole, lambda client: client.put("x", text("x")))
    yield "rest client.get", lambda: rest_call(hole, lambda client: client.get("x"))
    yield "rest client.list", lambda: rest_call(hole, lambda client: client.list())
    yield "rest client.wait_ready", lambda: rest_wait(hole)
    yield "sqlite commit behind another writer", lambda: locked(sqlite)
    yield "watcher.watch", lambda: watch_wait(hole)
    yield "etcd check", lambda: etcd_call(hole, lambda store: store.check())
    yield "etcd commit", lambda: etcd_call(hole, lambda store: store.new_broker("x").put("k", b"v"))
    yield "etcd scan", lambda: etcd_call(hole, lambda store: list(store.scan("")))
    yield "etcd plugin.after_init", lambda: etcd_call(hole, lambda store: Plugin(store).after_init())
    yield "etcd plugin.wait_ready", lambda: etcd_call(hole, delayed_start)


def do_resync() -> None:
    """Of an orchestrator whose only registration does not answer."""
    with Orchestrator(accept_timeout=LONG, ack_timeout=LONG) as orchestrator:
        orchestrator.register("silent")
        try:
            orchestrator.do_resync()
        finally:
            # Another one gets its turn: the one that was interrupted has let go.
            orchestrator.register("second", handler=lambda event: event.ack())
            threading.Thread(target=_resync, args=(orchestrator,), daemon=True).start()
            while orchestrator.runs < 2:
                time.sleep(0.001)


def _resync(orchestrator: Orchestrator) -> None:
    with suppress(ClosedError):
        orchestrator.do_resync()


def grpc_wait(hole: BlackHole) -> None:
    from datasync import grpcsync

    with grpcsync.Client(hole.address) as client:
        client.wait_ready(LONG)


def rest_call(hole: BlackHole, call: Callable[[Any], object]) -> None:
    from datasync import restsync

    with restsync.Client(f"http://{hole.address}", timeout=LONG) as client:
        call(client)


def rest_wait(hole: BlackHole) -> None:
    from datasync import restsync

    with restsync.Client(f"http://{hole.address}") as client:
        client.watch("agent", Queue(), Queue(), "")
        client.wait_ready(LONG)


def etcd_call(hole: BlackHole, call: Callable[[Any], object]) -> None:
    with connect(f"etcd://{hole.address}", dial_timeout=LONG, operation_timeout=LONG) as store:
        call(store)


def delayed_start(store: Any) -> None:
    with Plugin(store, allow_delayed_start=True) as plugin:
        plugin.wait_ready(LONG)


def watch_wait(hole: BlackHole) -> None:
    with connect(f"etcd://{hole.address}") as store:
        store.new_watcher("x").watch(lambda change: None, timeout=LONG)


def locked(line: StoreLine) -> None:
    """Another process has the file to itself."""
    assert isinstance(line.store, SQLiteStore)
    import sqlite3

    other = sqlite3.connect(line.store._path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with SQLiteStore(line.store._path, lock_timeout=LONG) as store:
            store.new_broker("x").put("k", b"v")
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def sender(number: int, delay: float) -> Iterator[tuple[threading.Event, list[float]]]:
    """Send ourselves signal *number*, *delay* seconds after the event is set; the list gets the moment of it."""
    begun, sent = threading.Event(), list[float]()

    def send() -> None:
        begun.wait()
        time.sleep(delay)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, name="sender")
    thread.start()
    try:
        yield begun, sent
    finally:
        begun.set()
        with suppress(KeyboardInterrupt, Stop):  # the call ended by itself
            thread.join()


@contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Only threads that were there before take the signals; Python's handler waits for this one all the same."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def one(
    name: str, wait: Callable[[], object], number: signal.Signals, delay: float, missed: bool
) -> tuple[str, str, str, float]:
    with sender(number, delay) as (begun, sent):
        try:
            with blocked(*[number] * missed):
                begun.set()  # not before: on a busy machine the signal may come before the call
                wait()
        except (KeyboardInterrupt, Stop) as error:
            return name, number.name, type(error).__name__, time.monotonic() - sent[0]
        except BaseException as error:
            return name, number.name, repr(error), 0.0
        return name, number.name, "nothing", 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle.signals", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--etcd", default="")
    parser.add_argument("--delay", type=float, default=0.1)
    parser.add_argument("--only", default="")
    parser.add_argument("--missed", action="store_true")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    limit_life(50)
    if wanted.missed:
        threads.SIGNAL_DELAY = 0.2
    results = []
    troubles = []
    with ExitStack() as stack:
        hole = BlackHole()
        stack.callback(hole.close)
        everything = stack.enter_context(Everything(wanted.folder, wanted.etcd))
        for name, wait in waits(everything, hole):
            if wanted.only in name and not (wanted.missed and name in NOT_OURS):
                for number in (signal.SIGTERM,) if wanted.missed else (signal.SIGINT, signal.SIGTERM):
                    results.append(one(name, wait, number, wanted.delay, wanted.missed))
        for line in everything:  # usable
            line.write()
            if not line.arrived():
                troubles.append(f"{line.name}: {line.written} were written, {line.consumer.values} came")
        begun = time.monotonic()
    closed = time.monotonic() - begun  # and closable
    left = [one.name for one in threading.enumerate() if one.name.startswith("datasync-")]
    sys.stdout.write(json.dumps({"results": results, "troubles": troubles, "closed": closed, "left": left}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
