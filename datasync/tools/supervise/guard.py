"""The process between us and a command: it starts the command, and ends its process group when we cannot.

A program of its own, run by its path and without ``site``, so that it starts in some milliseconds: it imports nothing
of this package. ``child.py`` starts it and describes the lines that both write.

We may be killed or suspended at any moment; the guard sees the end of the socket or the time, and ends the group. If
the guard itself is killed, the kernel kills the command (Linux), and ``child.py`` the rest of the group. As a
subreaper the guard also reaps what the command leaves behind, so that it knows when the group is empty.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
#: Seconds between two checks of the times: no wait of the system counts the time of a suspended machine.
STEP = 0.25
#: Seconds between two checks whether a group that is ending has ended.
ENDING_STEP = 0.02
#: Seconds after SIGKILL for which processes that cannot end (in a system call, or another user's) are waited for.
HOPELESS = 10.0
#: Signals that a terminal or a service manager sends to all processes alike: they are for us, who pass them on.
FOR_THE_SUPERVISOR = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE, signal.SIGWINCH,
)  # fmt: skip
#: Those that Python itself ignores, so that nothing can be concluded from it.
IGNORED_BY_PYTHON = {signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE)}


class CommandGuard:
    """Runs *command* in a process group of its own, and reports on *line*.

    Args:
      now: The clock of the deadlines.
      kill_signal: Asks the command to end when we are gone, or when the deadline is near.
      kill_timeout: Seconds from such a request to SIGKILL.
    """

    def __init__(
        self,
        line: socket.socket,
        now: Callable[[], float],
        kill_signal: int,
        kill_timeout: float,
        command: Sequence[str],
    ) -> None:
        self._line = line
        self._now = now
        self._kill_signal = kill_signal
        self._kill_timeout = kill_timeout
        self._command = command
        self._rest = b""
        self._connected = True
        self._pid = 0
        self._status: int | None = None
        self._warn_at = self._deadline = math.inf  # those of a lock
        self._kill_at = math.inf  # that of a request to end
        self._killed_at: float | None = None
        self._overdue = self._refused = False
        group = os.getpgrp()
        #: The group that had the terminal before the command; 0 when we are not in the foreground of one.
        self._terminal = group if _foreground() == group else 0
        self._ignored = {n for n in FOR_THE_SUPERVISOR if signal.getsignal(n) == signal.SIG_IGN} - IGNORED_BY_PYTHON
        with suppress(OSError):  # out of the reach of a signal to our group
            os.setpgid(0, 0)
        for number in FOR_THE_SUPERVISOR:
            signal.signal(number, signal.SIG_IGN)
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def run(self) -> None:
        """Wait for the word to start, start the command, and return when its process group has ended."""
        while not self._pid:
            self._receive()
            if not self._connected:
                return
            if self._refused:
                self._say(f"ended {int(signal.SIGKILL)}")
                return
        while not self._ended():
            watched: list[int] = [self._wake, *([self._line.fileno()] if self._connected else [])]
            ready, _, _ = select.select(watched, [], [], self._wait())
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            if self._connected and self._line.fileno() in ready:
                self._receive()
            self._reap()
            self._check_times()
        if self._terminal:
            with suppress(OSError):
                os.tcsetpgrp(0, self._terminal)
        self._say(f"ended {self._status}")

    def _wait(self) -> float | None:
        if self._status is not None:
            return ENDING_STEP
        due = min(self._deadline if self._overdue else self._warn_at, self._deadline, self._kill_at)
        return None if due == math.inf else max(0.0, min(STEP, due - self._now()))

    # Lines.

    def _receive(self) -> None:
        data = b""
        with suppress(OSError):  # reset, when the other side ends before it has read what we said
            data = self._line.recv(4096)
        if not data:  # we were killed
            self._connected = False
            if self._pid:
                self._end(self._kill_signal)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(*line.decode().split())

    def _obey(self, verb: str, *numbers: str) -> None:
        if verb == "start":
            if self._now() >= self._warn_at:  # both of us were suspended meanwhile
                self._refused = True
                self._say("overdue")
            else:
                self._start()
        elif verb == "until":
            self._warn_at, self._deadline = float(numbers[0]), float(numbers[1])
        elif verb == "end":
            self._end(int(numbers[0]))
        elif verb == "kill":
            self._kill()
        elif verb == "signal" and self._status is None:
            with suppress(OSError):
                os.kill(self._pid, int(numbers[0]))

    def _say(self, text: str) -> None:
        with suppress(OSError):
            self._line.sendall(text.encode() + b"\n")

    # The command.

    def _start(self) -> None:
        told, tell = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._become_command()
            except OSError as error:
                os.write(tell, b"%d" % (error.errno or errno.EIO))
            except BaseException:
                os.write(tell, b"%d" % errno.EINVAL)
            finally:
                os._exit(127)
        os.close(tell)
        with suppress(OSError):  # here too: whichever comes first
            os.setpgid(self._pid, self._pid)
        problem = os.read(told, 16)  # ends with the exec, which closes the other end
        os.close(told)
        self._say(f"failed {int(problem)}" if problem else f"started {self._pid}")

    def _become_command(self) -> None:
        parent = os.getppid()
        os.setpgid(0, 0)
        if self._terminal:  # while SIGTTOU is ignored
            os.tcsetpgrp(0, os.getpgrp())
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)
        signal.set_wakeup_fd(-1)
        for number in (*FOR_THE_SUPERVISOR, *IGNORED_BY_PYTHON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN if number in self._ignored else signal.SIG_DFL)
        os.execvp(self._command[0], list(self._command))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid and os.WIFSTOPPED(status):
                # Nobody could ever continue it: the user's shell sees only us, and we run.
                if self._terminal and os.WSTOPSIG(status) == signal.SIGTSTP:
                    self._signal_group(signal.SIGCONT)
            elif pid == self._pid:
                self._status = status
                if self._group_lives():  # what it has left behind ends with it
                    self._end(self._kill_signal)

    def _ended(self) -> bool:
        """Return True when no process of the group is left, or it cannot be ended."""
        if self._status is None:
            return False
        hopeless = self._killed_at is not None and self._now() >= self._killed_at + HOPELESS
        return hopeless or not self._group_lives()

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True

    # Ends.

    def _check_times(self) -> None:
        now = self._now()
        if now >= self._warn_at and not self._overdue:
            self._overdue = True
            self._say("overdue")
            self._end(self._kill_signal)
        if now >= min(self._kill_at, self._deadline) and self._killed_at is None:
            self._kill()

    def _end(self, number: int) -> None:
        """Ask the group to end, and have it killed after the timeout, or at an earlier deadline."""
        self._signal_group(number)
        self._signal_group(signal.SIGCONT)  # a stopped process ends only when it goes on
        self._kill_at = min(self._kill_at, self._now() + self._kill_timeout)

    def _kill(self) -> None:
        self._killed_at = self._killed_at or self._now()
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        if self._pid:  # 0 would be our own group
            with suppress(OSError):
                os.killpg(self._pid, number)


def _foreground() -> int:
    try:
        return os.tcgetpgrp(0)
    except OSError:
        return 0


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))


def main(arguments: Sequence[str]) -> None:
    """Guard the command: descriptor, number of the clock or ``-``, kill signal, kill timeout, the command."""
    descriptor, clock, kill_signal, kill_timeout, *command = arguments
    line = socket.socket(fileno=int(descriptor))
    line.set_inheritable(False)
    number = None if clock == "-" else int(clock)
    now = time.monotonic if number is None else lambda: time.clock_gettime(number)
    CommandGuard(line, now, int(kill_signal), float(kill_timeout), command).run()


if __name__ == "__main__":
    main(sys.argv[1:])
