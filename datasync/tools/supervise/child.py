"""One run of a command, in a process group of its own, behind a guard.

A line of the socket to the guard is a verb with numbers. To the guard: ``start``; ``signal N`` to the command itself;
``end N`` to the whole group, which is killed after the kill timeout; ``kill``; ``until WARN DEADLINE`` for a command
that must not outlive a lock. From it: ``started PID`` or ``failed ERRNO``; ``overdue``; ``ended STATUS``.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datasync.errors import InvalidArgumentError
from datasync.runtime import boot_clock
from datasync.runtime.closing import Closable
from datasync.runtime.logs import get_logger
from datasync.runtime.threads import Flag, Worker

log = get_logger(__name__)

#: Exit codes as shells and ``env`` have them: a command that cannot be run, and one that is not found.
CANNOT_RUN, NOT_FOUND = 126, 127
#: Added to the number of a signal that ended a command.
BY_SIGNAL = 128
#: Default of ``kill_timeout`` in seconds.
KILL_TIMEOUT = 30.0

_GUARD = str(Path(__file__).with_name("guard.py"))


@dataclass(frozen=True)
class Ending:
    """The way to end a command: *kill_signal* to its group, then SIGKILL after *kill_timeout* seconds."""

    kill_signal: int = signal.SIGTERM
    kill_timeout: float = KILL_TIMEOUT


class Child(Closable):
    """One run of *command*: started at once, and over when its whole process group has ended.

    If this process is killed or ends, the group is asked to end, and is killed after the timeout.

    Args:
      environment: All of it; that of this process by default.
      on_end: Called with the child by its thread when it is over; must return soon.
      until: Times of the boot clock by which the group is asked to end, and by which it is killed: see ``extend``.

    Raises:
      InvalidArgumentError: The command or the environment has a NUL.
      OSError: No process can be started.

    Threads: any; one of its own.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        ending: Ending = Ending(),
        on_end: Callable[[Child], object] | None = None,
        until: tuple[float, float] | None = None,
    ) -> None:
        if not command:
            raise InvalidArgumentError("a command is needed: write it behind --")
        if any("\0" in part for part in [*command, *(environment or {}).keys(), *(environment or {}).values()]):
            raise InvalidArgumentError(f"the command {command[0]!r}: an argument or a variable has a NUL")
        self.command = tuple(command)
        #: The process id, 0 before the start, and when it failed.
        self.pid = 0
        #: True when the group was asked to end because the time of ``until`` had come.
        self.overdue = False
        #: Why the command could not be run.
        self.failure: OSError | None = None
        self._code: int | None = None
        self._ending = ending
        self._on_end = on_end
        self._begun, self._ended = Flag(), Flag()
        ours, theirs = socket.socketpair()
        self._line = ours
        clock = "-" if boot_clock.NUMBER is None else str(boot_clock.NUMBER)
        numbers = (str(theirs.fileno()), clock, str(int(ending.kill_signal)), repr(float(ending.kill_timeout)))
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", _GUARD, *numbers, *command], env=environment, pass_fds=[theirs.fileno()]
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._worker = Worker(f"supervise-{os.path.basename(command[0])}", self._listen)
        try:
            self._worker.start()
        except BaseException:  # the guard has not got the word to start
            ours.close()
            self._guard.wait()
            raise
        if until is not None:
            self.extend(*until)
        self._tell("start")

    @property
    def code(self) -> int | None:
        """The exit code, 128 and its number for a signal; None until the group has ended."""
        return self._code

    def __repr__(self) -> str:
        return f"<Child {shlex.join(self.command)}, pid {self.pid}, {'running' if self._code is None else self._code}>"

    def signal(self, number: int) -> None:
        """Send the signal to the command itself, not to the other processes of its group."""
        self._tell(f"signal {int(number)}")

    def end(self, number: int | None = None) -> None:
        """Ask the group to end, by *number* or the kill signal; it is killed after the timeout. Does not wait."""
        self._tell(f"end {int(self._ending.kill_signal if number is None else number)}")

    def kill(self) -> None:
        """Kill the group. Does not wait."""
        self._tell("kill")

    def extend(self, warn_at: float, deadline: float) -> None:
        """Have the guard ask the group to end at *warn_at* and kill it at *deadline*, times of the boot clock.

        It does so even when this process is suspended by then.
        """
        self._tell(f"until {warn_at!r} {deadline!r}")

    def wait_started(self, timeout: float | None = None) -> int:
        """Wait until the command runs, or it is over; return its process id, 0 after *timeout* seconds."""
        self._begun.wait(timeout)
        return self.pid

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the group has ended; return the exit code, None after *timeout* seconds."""
        self._ended.wait(timeout)
        return self._code

    def close(self) -> None:
        """End the group and wait for that. May be called twice."""
        if self._code is None:
            self.end()
        self.wait()
        self._worker.close()

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # the guard has ended
            self._line.sendall(text.encode() + b"\n")

    # The child's thread.

    def _listen(self, worker: Worker) -> None:
        code = self._read_reports()
        if code is None:
            code = BY_SIGNAL + signal.SIGKILL
            log.error("the guard of %r was killed: so is its process group", self.command[0])
            with suppress(OSError):
                if self.pid:  # the kernel has killed the command alone
                    os.killpg(self.pid, signal.SIGKILL)
        if self.failure is not None:
            code = NOT_FOUND if isinstance(self.failure, FileNotFoundError) else CANNOT_RUN
        self._guard.wait()
        self._line.close()
        self._code = code
        self._begun.set()
        self._ended.set()
        if self._on_end is not None:
            self._on_end(self)

    def _read_reports(self) -> int | None:
        """Read what the guard says until it ends; return the exit code of the command, None if it did not say one."""
        code: int | None = None
        # Reset, when the guard ends before it has read what we said: its own words are read first.
        with suppress(OSError), self._line.makefile("rb") as lines:
            for line in lines:
                verb, *rest = line.decode().split()
                number = int(rest[0]) if rest else 0
                if verb == "started":
                    self.pid = number
                elif verb == "failed":
                    self.failure = OSError(number, os.strerror(number))
                elif verb == "overdue":
                    self.overdue = True
                elif verb == "ended":
                    code = _exit_code(number)
                if self.pid:
                    self._begun.set()
        return code


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else BY_SIGNAL - code
