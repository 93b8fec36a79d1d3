"""Many cells, each in a process of its own, so that a cell that hangs can be killed and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from tests.faults.cell import Cell, Result

#: Seconds beyond its duration after which a cell prints where it hangs, and after which it is killed.
HANGS, KILLED = 90.0, 100.0


class Apart:
    """Runs each cell in a process with a session of its own. Threads: any."""

    def __init__(self, *, seconds: float = KILLED) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()  # guards the next two fields
        self._running: set[subprocess.Popen[str]] = set()
        self._closed = False

    def run(self, cell: Cell) -> Result:
        """The result of *cell*, even if its process had to be killed."""
        with tempfile.TemporaryDirectory(prefix="datasync-cell-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "result.json"
            process = self._start(cell, path, folder)
            try:
                said, _ = process.communicate(timeout=cell.seconds + self._seconds)
            except subprocess.TimeoutExpired:
                said = "the cell hangs"
            finally:
                self._kill(process)
                process.wait()
                process.stdout.close()  # type: ignore[union-attr]
                with self._lock:
                    self._running.discard(process)
            if path.exists():
                return Result.from_json(json.loads(path.read_text())["cells"][0])
            return Result(cell, troubles=[f"no result, exit status {process.returncode}: {said[-4000:]}"])

    def close(self) -> None:
        """Kill the running processes; no further one is started."""
        with self._lock:
            self._closed = True
            for process in self._running:
                self._kill(process)

    def _start(self, cell: Cell, result: Path, folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.faults", *cell.arguments, "--json", str(result)]
        with self._lock:
            if self._closed:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env=os.environ | {"TMPDIR": folder},  # removed even after a kill
            )
            self._running.add(process)
            return process

    def _kill(self, process: subprocess.Popen[str]) -> None:
        """Kill the session as well: servers may outlive the process that started them."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def run_many(cells: Iterable[Cell], jobs: int, say: Callable[[Result], None]) -> list[Result]:
    """Run *cells*, *jobs* at a time, until all have ended or Ctrl-C is pressed; call *say* with each result."""
    results: list[Result] = []
    waiting: set[Future[Result]] = set()
    coming: Iterator[Cell] = iter(cells)
    apart = Apart()
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            while len(waiting) < jobs and (cell := next(coming, None)) is not None:
                waiting.add(pool.submit(apart.run, cell))
            if not waiting:
                return results
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                results.append(future.result())
                say(results[-1])
    except KeyboardInterrupt:  # cells that still run are not in the table
        return results
    finally:
        apart.close()
        pool.shutdown(wait=False)  # their processes are dead, and a second Ctrl-C must not wait
