"""Ends a process that has everything open, without closing anything: C15.

``python -m tests.lifecycle.exits FOLDER HOW [--etcd URL]`` prints ``open`` when all is open, and ends as *HOW* says.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any

from datasync.keyval import connect
from datasync.kvdbsync import Plugin
from tests.lifecycle.everything import Everything, text

#: Seconds that threads of the user's own go on after the main thread has ended.
OVERTIME = 0.5


def end_of_main(everything: Everything) -> None:
    """The main thread just comes to its end."""


def sys_exit(everything: Everything) -> None:
    sys.exit(0)


def exception(everything: Everything) -> None:
    raise RuntimeError("the application failed")


def os_exit(everything: Everything) -> None:
    os._exit(0)


def sigterm(everything: Everything) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()


def sigterm_handled(everything: Everything) -> None:
    """As daemons do it: the handler raises, and nobody closes anything."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()


def atexit_close(everything: Everything) -> None:
    atexit.register(everything.close)


def atexit_use(everything: Everything) -> None:
    """The last thing that the application does is to write."""
    atexit.register(everything.line("local").write)
    atexit.register(everything.line("sqlite").write)


def atexit_open(everything: Everything) -> None:
    """Something is opened when no thread can be started any more; it raises or works, and does not hang."""

    def open_late() -> None:
        queue: Queue[Any] = Queue()
        with connect("memory://") as store:
            plugin = Plugin(store)
            plugin.watch("late", queue, queue, "")
            with suppress(RuntimeError):  # where no thread can be had any more
                plugin.after_init()
            plugin.close()

    atexit.register(open_late)


def stuck_consumer(everything: Everything) -> None:
    """A consumer that never answers again, with changes that wait for it, and a caller that waits for the answer."""
    line = everything.line("local")
    threading.Thread(
        target=lambda: [line.put("h/y", str(number)) for number in range(10)], name="waits", daemon=True
    ).start()


def user_threads(everything: Everything) -> None:
    """Threads of the application's that are no daemons go on writing for a while after the main thread has ended."""
    over = threading.Event()
    timer = threading.Timer(OVERTIME, over.set)
    timer.start()

    def write(line: Any) -> None:
        while not over.is_set():
            line.write()

    for line in everything:
        threading.Thread(target=write, args=(line,)).start()


def while_changing(everything: Everything) -> None:
    """Daemons of the application's write as fast as they can while the interpreter ends."""

    def write(line: Any) -> None:
        while True:
            line.write()

    for line in everything:
        threading.Thread(target=write, args=(line,), daemon=True).start()
    over = threading.Event()
    over.wait(0.2)


def dropped(everything: Everything) -> None:
    """Nobody refers to anything any more."""
    everything.lines.clear()


HOW: dict[str, Callable[[Everything], None]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        end_of_main,
        sys_exit,
        exception,
        os_exit,
        sigterm,
        sigterm_handled,
        atexit_close,
        atexit_use,
        atexit_open,
        stuck_consumer,
        user_threads,
        while_changing,
        dropped,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle.exits", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("how", choices=HOW)
    parser.add_argument("--etcd", default="")
    wanted = parser.parse_args()
    everything = Everything(wanted.folder, wanted.etcd)
    for line in everything:
        line.write()
        assert line.arrived(), f"{line.name}: nothing came"
    everything.line("local").put("k/last", text("x").value)
    sys.stdout.write("open\n")
    sys.stdout.flush()
    HOW[wanted.how](everything)


if __name__ == "__main__":
    main()
