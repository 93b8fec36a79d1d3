"""A program of this package as a process of its own, that is asked over its standard input and can be struck down.

One line of JSON is a question, one line the answer. The program ends when its input does, so none outlives a harness
that was killed. ``answer_questions`` is the program's side.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from tests.support.running import environment

#: Seconds in which a program must be up, and in which it must answer.
UP = 30.0
ANSWER = 30.0

Answer = dict[str, Any]


class PeerGone(Exception):
    """The program ended before it answered: whether it did what it was asked is not known."""


class Peer:
    """``python -m module *arguments``, which says ``{"up": true, ...}`` when it is ready.

    Threads: questions are asked one after another; it may be killed, frozen and thawed by another thread meanwhile.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        self._lock = threading.Lock()  # held from a question to its answer
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """True while nobody has struck it."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it is not running"
        return self._process.pid

    def start(self) -> Answer:
        """Start it; returns what it says of itself."""
        with self._lock:
            self._release()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if not os.environ.get("DATASYNC_PEER_LOG") else None,
                env=environment(),
            )
            self._rest = b""
            return self._line(UP)

    def ask(self, do: str, **more: Any) -> Answer:
        """Its answer. Raises ``PeerGone``."""
        with self._lock:
            return self._ask(do, more)

    def interrupted(self, meanwhile: Callable[[], object], do: str, **more: Any) -> Answer:
        """Its answer; *meanwhile* is called where it stands still in the middle, if it comes so far. Raises as ``ask``.

        Nobody else asks before it has answered.
        """
        with self._lock:
            answer = self._ask(do, more)
            if "inside" in answer:
                meanwhile()
                answer = self._ask("go on", {})
            return answer

    def kill(self) -> None:
        """SIGKILL: whoever waits for an answer gets ``PeerGone``."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Close its input, so that it ends in order; SIGKILL when that takes too long."""
        process = self._process
        if process is None:
            return
        self.thaw()
        with self._lock:
            assert process.stdin is not None
            _close(process.stdin)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        with self._lock:
            self._release()

    def terminate(self) -> None:
        """SIGTERM, and wait for its end."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: it stands still, with its locks and connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(which)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        self._signal(how)
        self._signal(signal.SIGCONT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)

    def _release(self) -> None:
        """Give back the pipes of a process that has ended; not before, because somebody may still read what it said."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                _close(pipe)

    def _ask(self, do: str, more: Mapping[str, Any]) -> Answer:
        process = self._process
        if process is None or process.stdin is None:
            raise PeerGone(f"{do}: it is not running")
        try:
            process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            process.stdin.flush()
        except (OSError, ValueError):
            raise PeerGone(f"{do}: it takes no question any more") from None
        return self._line(ANSWER)

    def _line(self, timeout: float) -> Answer:
        process = self._process
        if process is None or process.stdout is None:
            raise PeerGone("it is not running")
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise AssertionError(f"{' '.join(self._command[2:3])} did not answer within {timeout:g} s")
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    raise PeerGone("it ended before it answered")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Answer = json.loads(line)
        return answer


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        pass  # what was written and never read


def say(answer: Mapping[str, Any]) -> None:
    """One line for whoever asked."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def interrupt() -> None:
    """In the middle of something: say so, and wait until it is to go on."""
    say({"inside": True})
    sys.stdin.readline()


def answer_questions(handlers: Mapping[str, Callable[..., Answer]], **about: Any) -> None:
    """Say that the program is up, and call a handler for each line of the standard input, until it ends."""
    say({"up": True, **about})
    for line in sys.stdin:
        question = json.loads(line)
        say(handlers[question.pop("do")](**question))
