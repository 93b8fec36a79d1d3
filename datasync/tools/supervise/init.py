"""The duties of the first process of a container: pass signals on, and reap orphans."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from datasync.tools.supervise.child import BY_SIGNAL

#: Signals that the first process keeps for itself: about its child, and of faults of its own.
_OWN = (signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
        signal.SIGABRT, signal.SIGTTIN, signal.SIGTTOU)  # fmt: skip


def split_from_init(*, always: bool = False) -> None:
    """Return in a child process if this is process 1, which stays behind as an init; return at once otherwise.

    The init passes every signal on, reaps every orphan, and exits with the child's code. Without it, signals without
    a handler would be ignored, and orphans would stay as zombies until the container ends.

    Args:
      always: Do so whatever the process id is, in tests.

    Threads: the main thread, before any other was started.
    """
    if os.getpid() != 1 and not always:
        return
    passed_on = signal.valid_signals() - set(_OWN)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*passed_on, signal.SIGCHLD])
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_serve(pid, [*passed_on, signal.SIGCHLD]))


def _serve(pid: int, signals: list[int]) -> int:
    """Pass signals on to *pid* and reap, until it ends; return its exit code."""
    while True:
        number = signal.sigwait(signals)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            continue
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)  # there is one child at least until this loop returns
            if ended == 0:
                break
            if ended == pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else BY_SIGNAL - code
