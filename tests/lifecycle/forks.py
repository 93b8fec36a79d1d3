"""Forks a process that has everything open, again and again, at any moment: I17.

``python -m tests.lifecycle.forks FOLDER [--etcd URL] [--forks 200] [--seed 7] [--only NAME]``

Changes flow through every line all the time, and before most forks another thread takes some of the library's locks and
lets them go only afterwards. Each child uses every handle of its parent's, closes them, and ends; it tells what it was
answered. In the end the parent must have been told everything that was written, once, in order, without a RESYNC.
The result is printed as JSON.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import faulthandler
import gc
import json
import os
import queue
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasync.errors import ForkedError
from datasync.runtime.threads import Flag
from tests.faults.history import Fork
from tests.lifecycle.everything import Everything, Line, Uses, limit_life
from tests.support.timing import slowdown

#: Seconds that one use may take in a child: it is to be refused at once.
USE_LIMIT = 1.0
#: Seconds after which a child that hangs says where, and ends.
CHILD_LIMIT = 15
#: Seconds between two writes of a line.
PACE = 0.002
#: Uses of one child.
SAMPLE = 50
#: Here a fork waits for locks itself, and for who holds them: to hold those would only make it slow.
WAITED_FOR = "datasync.keyval.sqlite"

_LOCKS = (type(threading.Lock()), type(threading.RLock()))


@dataclass
class Result:
    """What came of it."""

    seed: int
    children: int = 0
    uses: int = 0
    #: How children ended.
    exits: Counter[str] = field(default_factory=Counter)
    #: The worst of each use over all children, for the checker of I17.
    worst: dict[str, Fork] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


def locks() -> list[Any]:
    """Every lock in every object of the library that is alive.

    The gate of a ``Flag`` is none: a thread that sets the flag opens it, even if another one closed it.
    """
    found: dict[int, Any] = {}
    for one in gc.get_objects():
        kind = type(one)
        module = str(kind.__module__)
        if module.startswith("datasync") and not module.startswith(WAITED_FOR) and not issubclass(kind, Flag):
            for value in _attributes(one):
                lock = _lock_of(value)
                if lock is not None:
                    found[id(lock)] = lock
    return list(found.values())


def _attributes(one: object) -> Iterator[Any]:
    yield from vars(one).values() if hasattr(one, "__dict__") else ()
    for kind in type(one).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(one, name, None)


def _lock_of(value: Any) -> Any:
    if isinstance(value, _LOCKS):
        return value
    if isinstance(value, threading.Condition):
        return value._lock  # type: ignore[attr-defined]
    if isinstance(value, Flag):
        return None
    if isinstance(value, threading.Event):
        return value._cond._lock  # type: ignore[attr-defined]
    if isinstance(value, concurrent.futures.Future):
        return value._condition._lock  # type: ignore[attr-defined]
    if isinstance(value, queue.Queue):
        return value.mutex
    return None


@contextmanager
def holding(wanted: list[Any]) -> Iterator[None]:
    """Another thread has taken *wanted*, as far as they were free, for the time of the block."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        mine = [lock for lock in wanted if lock.acquire(blocking=False)]
        held.set()
        over.wait()
        for lock in mine:
            lock.release()

    holder = threading.Thread(target=hold, name="holder")
    holder.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        holder.join()


class Writers:
    """A thread for each line that writes until told to stop."""

    def __init__(self, lines: list[Line]) -> None:
        self.errors: list[str] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(line,), name=f"writer-{line.name}") for line in lines
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _write(self, line: Line) -> None:
        try:
            while not self._stopping.wait(PACE):
                line.write()
        except Exception as error:
            self.errors.append(f"{line.name}: a write of the parent's failed: {error!r}")


def try_uses(uses: Uses, order: list[str], tell: Callable[[str, str, float], None]) -> None:
    """In a child: call everything, and tell what came of it."""
    for name in order:
        begun = time.monotonic()
        try:
            uses[name]()
        except ForkedError:
            answer = "ForkedError"
        except BaseException as error:
            answer = repr(error)
        else:
            answer = "works"
        seconds = time.monotonic() - begun
        if seconds > USE_LIMIT:
            seconds /= slowdown()  # what others took of the CPU is no wait of ours
        tell(name, answer, seconds)


def in_child(everything: Everything, order: list[str], writing: int, leave: str) -> None:
    """The life of a child. Never returns."""
    faulthandler.enable()
    limit_life(CHILD_LIMIT)
    pipe = os.fdopen(writing, "w")
    try:
        try_uses(everything.uses(), order, lambda *told: print(*told, sep="\t", file=pipe))
        begun = time.monotonic()
        everything_closed(everything)
        print("close", "works", time.monotonic() - begun, sep="\t", file=pipe)
        pipe.close()
        if leave != "_exit":
            gc.collect()
    except BaseException as error:
        sys.stderr.write(f"child: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)
    if leave == "exit":
        sys.exit(0)  # all of the interpreter's end, with everything of the parent's still there
    os._exit(0)


def everything_closed(everything: Everything) -> None:
    """Close what has a ``close``; consumers' threads do not exist here."""
    everything.orchestrator.close()
    for line in everything.lines:
        for one in list(vars(line).values()):
            if type(one).__module__.startswith("datasync") and hasattr(one, "close"):
                one.close()


def fork_once(everything: Everything, chance: random.Random, result: Result, held: list[Any]) -> None:
    names = list(everything.uses())
    names = chance.sample(names, min(SAMPLE, len(names)))
    leave = chance.choice(("exit", "_exit", "_exit", "_exit"))
    reading, writing = os.pipe()
    if held:
        with holding(held):
            child = os.fork()
            if not child:
                _child(everything, names, reading, writing, leave)
    else:
        child = os.fork()
        if not child:
            _child(everything, names, reading, writing, leave)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = [line.rstrip("\n").split("\t") for line in pipe]
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    result.children += 1
    result.exits[f"{leave} {code}"] += 1
    if code or len(told) != len(names) + 1:
        last = told[-1][0] if told else "nothing"
        result.troubles.append(f"a child ended with {code} ({leave}) after {last}, {len(told)} of {len(names) + 1}")
    for name, answer, seconds in told:
        result.uses += 1
        if name == "close":
            continue
        fork = Fork(name, answer, float(seconds), USE_LIMIT, "")
        known = result.worst.get(name)
        if known is None or (fork.answer != "ForkedError", fork.seconds) > (
            known.answer != "ForkedError",
            known.seconds,
        ):
            result.worst[name] = fork


def _child(everything: Everything, names: list[str], reading: int, writing: int, leave: str) -> None:
    os.close(reading)
    in_child(everything, names, writing, leave)


def run(everything: Everything, forks: int, seed: int) -> Result:
    chance = random.Random(seed)
    result = Result(seed)
    before = {line.name: list(line.consumer.resyncs) for line in everything}
    writers = Writers(everything.lines)
    try:
        for number in range(forks):
            if number % 20 == 0:
                all_locks = locks()
            held = chance.sample(all_locks, chance.choice((0, 1, len(all_locks) // 4, len(all_locks))))
            time.sleep(chance.uniform(0, 0.01))  # so that it falls into any moment
            fork_once(everything, chance, result, held)
    finally:
        writers.stop()
    result.troubles += writers.errors
    for line in everything:
        result.written[line.name] = line.written
        if not line.arrived():
            got = line.consumer.values
            result.troubles.append(f"{line.name}: {line.written} were written, {len(got)} came: …{got[-3:]}")
        if line.consumer.resyncs != before[line.name]:
            result.troubles.append(f"{line.name}: a RESYNC came: {line.consumer.resyncs}")
        if getattr(line.status(), "reconnects", 0):
            result.troubles.append(f"{line.name}: the connection was lost: {line.status()}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lifecycle.forks", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--etcd", default="")
    parser.add_argument("--forks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--limit", type=int, default=50, help="seconds after which the program says where it hangs")
    wanted = parser.parse_args()
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    limit_life(wanted.limit)
    gc.freeze()  # what is there for good need not be copied for each child that looks at it
    with Everything(wanted.folder, wanted.etcd, *wanted.only) as everything:
        result = run(everything, wanted.forks, wanted.seed)
    harm = "; ".join(result.troubles)
    forks = [fork._replace(parent=harm) for fork in result.worst.values()]
    sys.stdout.write(json.dumps({**vars(result), "worst": None, "forks": forks}) + "\n")
    return 1 if result.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
