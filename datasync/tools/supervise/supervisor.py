"""A command that runs with the keys of a store, and follows their changes.

Source: contract C20 for the view of the keys; what the command sees of them is described in ``docs/commands.md``.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from datasync.consumer.view.notices import place_of
from datasync.consumer.view.view import View
from datasync.errors import ClosedError, DatasyncError
from datasync.runtime.backoff import Backoff
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, Worker, take_in_main_thread
from datasync.runtime.timers import SYSTEM_CLOCK, Clock
from datasync.runtime.wording import counted
from datasync.tools.supervise.child import BY_SIGNAL, Child, Ending
from datasync.tools.supervise.folder import SwappedFolder, write_files
from datasync.tools.supervise.hooks import Hooks
from datasync.tools.supervise.signals import ENDING, signal_to_end
from datasync.tools.supervise.turns import Turns
from datasync.tools.supervise.variables import Variables, check_size

log = get_logger(__name__)

#: Seconds before a change that could not be applied is tried again: the first delay, and the longest.
AGAIN = 1.0, 60.0
#: Seconds between two checks whether the keys were read for the first time.
POLL = 0.05
#: Seconds that a new process must run before the next instance has its turn to restart.
UP = 1.0


@dataclass(frozen=True)
class CommandPlan:
    """The command to run, and the use of the keys.

    Args:
      environment: That of the command, beside the keys.
      variables: The keys become variables with these names; None when they do not.
      folder: The keys become files here; None when they do not.
      render: Makes the files: a shell command, which reads the keys as files in ``$DATASYNC_KEYS`` and writes into
        ``$DATASYNC_FILES``.
      check: Must succeed before new files are put in place; they are in ``$DATASYNC_FILES``.
      reload: Makes the command use new files, in place of a restart: a shell command.
      reload_signal: The same: a signal to the command.
      splay: Seconds of which a random part passes between a change and its effect, another one in each process.
      once: Ignore changes after the start.
    """

    command: tuple[str, ...]
    ending: Ending = Ending()  # noqa: RUF009 - it is frozen
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    variables: Variables | None = None
    folder: SwappedFolder | None = None
    render: str | None = None
    check: str | None = None
    reload: str | None = None
    reload_signal: int | None = None
    splay: float = 0.0
    once: bool = False


class Supervisor:
    """Starts the command of *plan* when *view* was read, and brings each change to it, until one of the two ends.

    What cannot be applied, because a check or a reload failed, is tried again with growing delays; the command runs on
    with what it has. A store that cannot be read changes nothing.

    Args:
      view: The keys and their bytes; its settle window gathers bursts. The caller closes it.
      turns: Limits how many instances restart or reload at a time; closed at the end.
      again: First and longest delay in seconds after a failure.
      clock: Replaces the monotonic clock of delays and splay, in tests.

    Threads: ``run`` one; ``signal`` any, also from a signal handler. One thread of its own, which applies changes.
    """

    def __init__(
        self,
        view: View[bytes],
        plan: CommandPlan,
        *,
        turns: Turns | None = None,
        again: tuple[float, float] = AGAIN,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._view = view
        self._plan = plan
        self._turns = turns
        self._clock = clock
        self._backoff = Backoff(*again, spread=(0.8, 1.2))
        self._random = random.Random(f"{os.uname().nodename}:{os.getpid()}")
        self._notices: SimpleQueue[int | Child] = SimpleQueue()
        self._hooks = Hooks(plan.ending)
        self._changed = Flag()
        self._worker = Worker("supervise-changes", self._follow, wake=self._changed.set)
        self._lock = threading.Lock()  # guards the two below: which child runs, and which is being replaced
        self._child: Child | None = None
        self._replaced: Child | None = None
        # The rest is used by the worker only.
        self._seen: Mapping[str, bytes] = {}  # the snapshot that was applied, or is to be tried again
        self._given: dict[str, str] | None = None  # variables of the command
        self._published: Mapping[str, bytes] | None = None  # the values of the files
        self._loaded: Mapping[str, bytes] | None = None  # the same, once the command uses them

    @property
    def child(self) -> Child | None:
        """The running command, the last one when it has ended; None before the first start."""
        return self._child

    def signal(self, number: int) -> None:
        """Handle a signal that this process received."""
        self._notices.put(number)

    def run(self) -> int:
        """Run until the command ends by itself, or by a signal that was received; return its exit code."""
        unsubscribe = self._view.on_changes(lambda _: self._changed.set())
        self._worker.start()
        ended_by = 0
        try:
            while True:
                notice = take_in_main_thread(self._notices)
                if isinstance(notice, Child):
                    with self._lock:
                        over = notice is self._child and (notice is not self._replaced or bool(ended_by))
                    if over:
                        return self._code_of(notice)
                elif notice in ENDING:
                    ended_by = ended_by or notice
                    child = self._begin_end(notice)
                    if child is None:
                        return BY_SIGNAL + ended_by
                    if child.code is not None:  # its notice came while it was being replaced
                        return self._code_of(child)
                elif self._child is not None:
                    self._child.signal(notice)
        finally:
            unsubscribe()
            self._close()

    def _begin_end(self, number: int) -> Child | None:
        """Stop following, and ask the command to end."""
        self._worker.stopping.set()  # before the lock: no other child is started from here on
        self._interrupt()
        with self._lock:
            child = self._child
        if child is not None:
            child.end(signal_to_end(number, self._plan.ending.kill_signal))
        return child

    def _close(self) -> None:
        self._worker.signal()
        self._interrupt()
        child = self._child
        if child is not None:
            child.close()
        self._worker.close(self._plan.ending.kill_timeout + 5.0)

    def _interrupt(self) -> None:
        """End what the worker may be waiting for."""
        self._hooks.close()
        if self._turns is not None:
            self._turns.close()

    def _code_of(self, child: Child) -> int:
        if child.failure is not None:
            log.error("cannot run %r: %s", self._plan.command[0], child.failure.strerror)
        return child.code or 0

    # The worker.

    def _follow(self, worker: Worker) -> None:
        until: float | None = None
        while not worker.stopping.is_set():
            self._changed.clear()  # before the values are read
            try:
                if not self._ready():
                    self._changed.wait(POLL)
                    continue
                self._apply()
                self._backoff.reset()
                until = None
                if self._plan.once:
                    return
            except ClosedError:
                if worker.stopping.is_set():
                    return
                until = self._later("the view was closed")
            except (DatasyncError, OSError) as error:
                until = self._later(str(error))
            except Exception as error:  # the command must not stay without a supervisor
                until = self._later(place_of(error))
            # A pause may have swallowed the notice of a change.
            if not worker.stopping.is_set() and (until is not None or self._view.snapshot() is self._seen):
                self._clock.wait(self._changed, until)

    def _ready(self) -> bool:
        return self._view.synced or self._view.status().cached

    def _later(self, why: str) -> float:
        delay = self._backoff.next()
        state = "runs on with what it has" if self._child is not None else "is not started"
        log.warning("%s; %r %s; again in %.1f s", why, self._plan.command[0], state, delay)
        return self._clock.monotonic() + delay

    def _apply(self) -> None:
        """Bring the command up to date, as far as it is not."""
        if self._child is None:
            self._take_values()
            self._start(*self._environment())
            return
        values = self._view.snapshot()
        if not self._differs(values):
            self._seen = values
            return
        if values is not self._seen:  # not when it is tried again
            self._pause(self._random.uniform(0.0, self._plan.splay))
        with nullcontext() if self._turns is None else self._turns.take():
            self._stop_if_asked()
            self._take_values()  # what is newer by now
            if self._differs(self._seen) and self._tell() and self._turns is not None:
                self._child.wait_started()
                self._pause(UP)

    def _differs(self, values: Mapping[str, bytes]) -> bool:
        """Return True if the command does not have *values*."""
        if self._plan.variables is not None and self._plan.variables.of(values) != self._given:
            return True
        return self._plan.folder is not None and values != self._loaded

    def _take_values(self) -> None:
        """Read the values, and put them into the files if there are any."""
        self._seen = self._view.snapshot()
        folder = self._plan.folder
        if folder is None or self._published == self._seen:
            return
        draft = folder.draft()
        try:
            self._fill(folder, draft, self._seen)
            if self._plan.check is not None:
                self._hooks.run("check", self._plan.check, {"DATASYNC_FILES": str(draft)})
            folder.publish(draft)
        except BaseException:
            folder.discard(draft)
            raise
        self._published, self._loaded = self._seen, None
        log.info("%s: %s put in place", folder.path, counted(len(self._seen), "key"))

    def _fill(self, folder: SwappedFolder, draft: Path, values: Mapping[str, bytes]) -> None:
        if self._plan.render is None:
            write_files(draft, values)
            return
        keys = folder.draft(".keys")
        try:
            write_files(keys, values)
            variables = {"DATASYNC_KEYS": str(keys), "DATASYNC_FILES": str(draft)}
            self._hooks.run("render", self._plan.render, variables)
        finally:
            folder.discard(keys)

    def _tell(self) -> bool:
        """Have the running command use the values; return True if it was restarted."""
        child = self._child
        assert child is not None
        if self._plan.reload is not None:
            self._hooks.run("reload", self._plan.reload, {**self._files(), "DATASYNC_PID": str(child.pid)})
        elif self._plan.reload_signal is not None:
            child.signal(self._plan.reload_signal)
        else:
            self._restart(child)
            return True
        self._loaded = self._seen
        return False

    def _restart(self, child: Child) -> None:
        given, environment = self._environment()  # while the command runs: it may not be possible
        with self._lock:
            if child.code is not None and child is not self._replaced:  # it has ended by itself: so do we
                return
            self._replaced = child
        child.close()
        self._start(given, environment)

    def _environment(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the variables of the keys, and all of the command. Raises as ``of`` and ``check_size`` do."""
        given = {} if self._plan.variables is None else self._plan.variables.of(self._seen)
        environment = {**self._plan.environment, **self._files(), **given}
        check_size(self._plan.command, environment)
        return given, environment

    def _start(self, given: dict[str, str], environment: dict[str, str]) -> None:
        with self._lock:  # held for the start of a process, so that the end of it finds every child
            self._stop_if_asked()
            self._child = Child(self._plan.command, environment, ending=self._plan.ending, on_end=self._notices.put)
        self._given, self._loaded = given, self._seen

    def _files(self) -> dict[str, str]:
        return {} if self._plan.folder is None else {"DATASYNC_FILES": str(self._plan.folder.path)}

    def _stop_if_asked(self) -> None:
        if self._worker.stopping.is_set():
            raise ClosedError("the command is ending")

    def _pause(self, seconds: float) -> None:
        """Wait; what changes meanwhile is read afterwards."""
        until = self._clock.monotonic() + seconds
        while self._clock.monotonic() < until:
            self._stop_if_asked()
            self._changed.clear()
            self._clock.wait(self._changed, until)
        self._stop_if_asked()
