"""Programs of ours as a user starts them: in a process of their own, bounded in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support.timing import at_most

ROOT = Path(__file__).resolve().parents[2]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which the package is found from any folder, and nothing styles the output."""
    clean = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS")}
    path = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH", "")]))
    return {**clean, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(extra or {})}


def run(
    *arguments: str,
    timeout: float = 50.0,
    stdin: bytes = b"",
    extra: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python with *arguments* to its end."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        env=environment(extra),
        cwd=cwd,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


class Running:
    """A Python process that runs beside the test, and does not outlive it. Output and errors are one text."""

    def __init__(self, *arguments: str, extra: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(extra),
            text=True,
            errors="replace",
        )
        self._lines: list[str] = []
        self._told = threading.Condition()  # guards _lines and _ended
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        with self._told:
            return "".join(self._lines)

    def wait_for(self, text: str, timeout: float = 30.0, *, times: int = 1) -> None:
        """Return when *text* was printed at least *times*, or fail with what was printed instead."""
        deadline = time.monotonic() + timeout
        with self._told:
            while "".join(self._lines).count(text) < times:
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    raise AssertionError(f"{text!r} was not printed within {timeout:g} s, but:\n{''.join(self._lines)}")
                self._told.wait(remaining)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, within *timeout* seconds, or five on an idle machine."""
        code = self._process.wait(at_most(5.0) if timeout is None else timeout)
        self._reader.join(30)
        return code

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)
        self._reader.join(30)
        # Closing what a thread reads would wait for that thread, and no signal would end it.
        assert not self._reader.is_alive(), "a process that the program started outlives it, and holds its output open"
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._told:
                self._lines.append(line)
                self._told.notify_all()
        with self._told:
            self._ended = True
            self._told.notify_all()
