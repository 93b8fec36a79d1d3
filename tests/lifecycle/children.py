"""Programs that make other processes in the ways that there are, with everything open: C15, I17.

``python -m tests.lifecycle.children FOLDER WAY [--etcd URL]`` prints what went wrong, as a JSON list.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from datasync.errors import ForkedError
from tests.lifecycle.everything import PATIENCE, Everything, RestLine, limit_life

#: Seconds after which a child that hangs says where, and ends.
CHILD_LIMIT = 15

_inherited: list[Everything] = []


def not_refused() -> list[str]:
    """Use everything that the parent has open."""
    troubles = []
    for name, use in _inherited[0].uses().items():
        try:
            use()
        except ForkedError:
            continue
        except BaseException as error:
            troubles.append(f"{name}: {error!r}")
        else:
            troubles.append(f"{name}: works")
    return troubles


def own(folder: str, *only: str) -> list[str]:
    """Open everything anew and let changes through it."""
    Path(folder).mkdir()
    troubles = []
    with Everything(Path(folder), "", *only) as everything:
        for line in everything:
            for _ in range(20):
                line.write()
            if not line.arrived():
                troubles.append(f"{line.name}: {line.written} were written, {line.consumer.values} came")
    return troubles


def still_well(everything: Everything) -> list[str]:
    """What is wrong with the parent's own, after what its children did."""
    troubles = []
    for line in everything:
        line.write()
        if not line.arrived():
            troubles.append(f"{line.name}: {line.written} were written, {line.consumer.values} came to the parent")
        if getattr(line.status(), "reconnects", 0):
            troubles.append(f"{line.name}: {line.status()}")
    return troubles


def in_child(body: Callable[[], list[str]]) -> list[str]:
    """What *body* returns in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _tell(writing, body)
    os.close(writing)
    return _listen(reading) + _end_of(child)


def _tell(writing: int, body: Callable[[], list[str]]) -> None:
    limit_life(CHILD_LIMIT)
    try:
        troubles = body()
    except BaseException as error:
        troubles = [f"a child failed: {error!r}"]
    with os.fdopen(writing, "w") as pipe:
        json.dump(troubles, pipe)
    os._exit(0)


def _listen(reading: int) -> list[str]:
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    return list(json.loads(told)) if told else ["a child said nothing"]


def _end_of(child: int) -> list[str]:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [f"a child ended with {code}"] if code else []


# The ways.


def fork(everything: Everything, folder: str) -> list[str]:
    return in_child(not_refused)


def opens_its_own(everything: Everything, folder: str) -> list[str]:
    """All but gRPC, which promises nothing in a child of a process that has used it."""
    return in_child(lambda: own(f"{folder}/own", "local", "memory", "sqlite", "rest"))


def grandchildren(everything: Everything, folder: str) -> list[str]:
    """A child opens its own, forks, and its child is refused those as well."""

    def child() -> list[str]:
        _inherited.clear()
        os.mkdir(f"{folder}/child")
        with Everything(Path(folder) / "child", "", "local", "memory", "sqlite", "rest") as mine:
            _inherited.append(mine)
            return in_child(not_refused) + still_well(mine)

    return in_child(child)


def multiprocessing_fork(everything: Everything, folder: str) -> list[str]:
    """A process and a pool of the start method fork."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(not_refused), pool.submit(own, f"{folder}/pool", "local", "sqlite", "rest")]
        troubles = [trouble for future in futures for trouble in future.result(PATIENCE)]
    process = context.Process(target=_exit_with, args=(not_refused,))
    process.start()
    process.join(PATIENCE)
    return troubles if process.exitcode == 0 else [*troubles, f"the process ended with {process.exitcode}"]


def _exit_with(body: Callable[[], list[str]]) -> None:
    sys.exit(len(body()))


def spawn(everything: Everything, folder: str) -> list[str]:
    """Handles cannot be sent to a new interpreter, and the refusal says so; what it opens works, gRPC as well."""
    context = multiprocessing.get_context("spawn")
    troubles = []
    for line in everything:
        for name, one in vars(line).items():
            if not type(one).__module__.startswith("datasync") or name in ("watch", "scan"):
                continue  # a watch has a callback of the test's, a scan is only an iterator
            try:
                context.Process(target=print, args=(one,)).start()
            except TypeError as error:
                if "cannot be sent to another one" not in str(error):
                    troubles.append(f"{line.name}: {name}: {error}")
            else:
                troubles.append(f"{line.name}: {name} was sent to another process")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return troubles + pool.submit(own, f"{folder}/spawned").result(PATIENCE)


def daemon_before(everything: Everything, folder: str) -> list[str]:
    """Opened before the double fork that makes a daemon: refused in it."""
    return _daemon(not_refused)


def daemon_after(everything: Everything, folder: str) -> list[str]:
    """Opened after it: works."""
    return _daemon(lambda: own(f"{folder}/daemon", "local", "memory", "sqlite", "rest"))


def _daemon(body: Callable[[], list[str]]) -> list[str]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(reading)
        os.chdir("/")
        _tell(writing, body)
    troubles = _end_of(child)
    os.close(writing)
    return troubles + _listen(reading)


def ports(everything: Everything, folder: str) -> list[str]:
    """A child that goes on holds neither the port nor the connections of its parent's REST server."""
    line = everything.line("rest")
    assert isinstance(line, RestLine)
    where = ("127.0.0.1", line.server.port)
    with socket.create_connection(where, PATIENCE) as peer:
        peer.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        peer.recv(65536)
        reading, writing = os.pipe()
        told, telling = os.pipe()
        child = os.fork()
        if not child:
            peer.detach()  # a descriptor of the test's own, and not to be shut down
            os.close(writing)
            os.write(telling, b".")
            os.read(reading, 1)
            os._exit(0)
        try:
            os.read(told, 1)  # what a child does not keep it closes when it begins, which may be a while after the fork
            line.close()
            peer.settimeout(PATIENCE)
            while peer.recv(65536):
                pass  # to the end, which comes when nobody holds the other side any more
            socket.create_connection(where, PATIENCE).close()
        except ConnectionRefusedError:
            return []
        except TimeoutError:
            return ["a child holds a connection of its parent's server"]
        finally:
            for descriptor in (reading, writing, told, telling):
                os.close(descriptor)
            os.waitpid(child, 0)
    return ["a child holds the port of its parent's server"]


def busy_scan(everything: Everything, folder: str) -> list[str]:
    """A thread reads a listing of SQLite while the process forks; the child drops it, and comes to its end."""
    from datasync.keyval.sqlite import scan as listings
    from datasync.keyval.sqlite.store import SQLiteStore
    from datasync.keyval.types import PutOp

    listings.READ_AHEAD = 1  # so that most of the listing stays in its connection
    with SQLiteStore(f"{folder}/scanned.db") as store:
        store.commit([PutOp(str(number), b"") for number in range(2 * listings.PAGE)])
        scan: Any = store.scan("")
        with scan._connection.use():  # for longer than the fork waits
            child = os.fork()
            if not child:
                limit_life(CHILD_LIMIT)
                del scan
                sys.exit(0)
    return _end_of(child)


def daemon_thread_forks(everything: Everything, folder: str) -> list[str]:
    """The fork comes from a thread of the application's: that one is the child's only one."""
    import threading

    answers: Queue[list[str]] = Queue()
    threading.Thread(target=lambda: answers.put(in_child(not_refused))).start()
    return answers.get(timeout=PATIENCE)


WAYS: dict[str, Callable[[Everything, str], list[str]]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        fork,
        opens_its_own,
        grandchildren,
        multiprocessing_fork,
        spawn,
        daemon_before,
        daemon_after,
        ports,
        busy_scan,
        daemon_thread_forks,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle.children", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--etcd", default="")
    wanted = parser.parse_args()
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    limit_life(50)
    everything = Everything(Path(wanted.folder), wanted.etcd)
    _inherited.append(everything)
    troubles = WAYS[wanted.way](everything, wanted.folder)
    if wanted.way != "ports":
        troubles += still_well(everything)
        everything.close()
    sys.stdout.write(json.dumps(troubles) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
