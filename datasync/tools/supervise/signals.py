"""The signals of a supervisor: which of them end it, which are the command's, and how they reach its main loop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasync.errors import InvalidArgumentError

#: Signals that ask to end.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: Signals that are the command's own, and end nothing here.
PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH)


def read_signal(what: str, text: str) -> int:
    """Return the number of the signal *text*: ``TERM``, ``SIGTERM`` or ``15``.

    Args:
      what: The option, for errors.

    Raises:
      InvalidArgumentError: There is no such signal.
    """
    name = text.strip().upper()
    try:
        if name.isdigit():
            return int(signal.Signals(int(name)))
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except (ValueError, KeyError):
        raise InvalidArgumentError(f"{what} must be a signal such as TERM or HUP, not {text!r}") from None


def signal_to_end(received: int, kill_signal: int) -> int:
    """Return the signal by which a command is to end when we *received* one: SIGTERM means the one of its own."""
    return kill_signal if received == signal.SIGTERM else received


@contextmanager
def caught(handle: Callable[[int], object]) -> Iterator[None]:
    """Call *handle* with each signal of both kinds, in the main thread, between two of its instructions.

    One that was ignored when the program started, as by ``nohup``, stays ignored. The handlers of before are put back.
    Threads: the main thread.
    """
    before = {number: signal.getsignal(number) for number in (*ENDING, *PASSED_ON)}
    caught_here = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in caught_here:
            signal.signal(number, lambda number, _: handle(number))
        yield
    finally:
        for number in caught_here:
            signal.signal(number, before[number] or signal.SIG_DFL)
