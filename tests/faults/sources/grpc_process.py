"""The process of a gRPC sender, as the harness controls it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from datasync.syncbase.msg.convert import CONTENT_JSON, CONTENT_PROTO
from tests.faults.checkers.sender_log import Ended, SenderLog, Sent, Told, fold
from tests.faults.sources.source import Ops
from tests.support.running import environment

#: Seconds of silence after which either side asks for a sign of life, and that it may take.
KEEPALIVE, KEEPALIVE_TIMEOUT = 1.0, 0.5


class Sender:
    """One sender over all its lives: told what to send, killed, frozen, started again with all that it was told.

    Threads: the writer's and the harness's; one of its own per process, which reads the reports.
    """

    def __init__(self, options: Mapping[str, Any], noticed: Callable[[str, float], None] = lambda *_: None) -> None:
        self.log = SenderLog()
        self._options = json.dumps(options)
        self._noticed = noticed
        self._lock = threading.RLock()  # guards what the log and the process have in common: who was told what
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._numbers = iter(range(1, 1 << 62))
        self._reports = iter(range(1, 1 << 62))
        self._open: set[int] = set()
        self._big = 0  # the number of the last one that was too large
        self._settled: set[int] = set()
        self._token = 0
        self._wanted: dict[str, bytes] = {}
        self._through = 0

    @property
    def open(self) -> int:
        """Operations that it was told of and has said nothing of yet."""
        return len(self._open)

    @property
    def wanted(self) -> Mapping[str, bytes]:
        """The state that it wants, as a copy."""
        with self._lock:
            return dict(self._wanted)

    def start(self) -> None:
        """A process with all that was wanted so far."""
        command = [sys.executable, "-m", "tests.faults.sources.grpc_sender", self._options]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("DATASYNC_PEER_LOG") else subprocess.DEVNULL,
            env=environment({"GRPC_ENABLE_FORK_SUPPORT": "0"}),
            text=True,
        )
        reader = threading.Thread(target=self._read, args=(process,), name="sender-reports", daemon=True)
        with self._lock:
            state = {key: value.hex() for key, value in self._wanted.items()}
            self._process, self._reader = process, reader
            reader.start()
            self._write({"state": state, "through": self._through})

    def ops(self, ops: Ops) -> None:
        """Tell it to send *ops*, each a request of its own."""
        with self._lock:
            numbered = []
            for key, value in ops:
                sent = Sent(next(self._numbers), key, value)
                numbered.append((sent.number, key, None if value is None else value.hex()))
                self.log.sent.append(sent)
                fold(self._wanted, [sent])
                self._open.add(sent.number)
                self._through = sent.number
            self._write({"do": "ops", "ops": numbered})

    def resync(self) -> None:
        """Tell it to send the full state, in its place between the operations."""
        with self._lock:
            number = next(self._numbers)
            self.log.resyncs.append(number)
            self._write({"do": "resync", "number": number})

    def waits_for(self, number: int) -> bool:
        """True while nothing was said of that operation."""
        return number in self._open

    def big(self, key: str, size: int) -> int:
        """Tell it to put *size* bytes, which is too much for the agent; one of them at a time, for they take long."""
        with self._lock:
            if self._big in self._open:
                return
            self._big = number = next(self._numbers)
            self.log.sent.append(Sent(number, key, b"too large %d" % number, wanted=False))
            self._open.add(number)
            self._write({"do": "big", "number": number, "key": key, "size": size})
        return number

    def settle(self) -> None:
        """Tell it to be done with everything; what could not be sent is made good."""
        with self._lock:
            self._token = next(self._numbers)
            self._write({"do": "settle", "token": self._token})

    @property
    def settled(self) -> bool:
        """True once it is done with everything."""
        return self._token in self._settled

    def send(self, number: signal.Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def kill(self) -> None:
        """kill -9; what it had not said by then is not known."""
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        process.kill()
        self._over(process, reader)

    def close(self) -> None:
        """Let it end by itself, in order."""
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        self.send(signal.SIGCONT)
        with self._lock:
            assert process.stdin is not None
            try:
                process.stdin.close()
            except OSError:
                pass
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            self.log.closed.append("I15: the sender did not end within 10 s")
            process.kill()
        self._over(process, reader)

    def _over(self, process: subprocess.Popen[str], reader: threading.Thread) -> None:
        process.wait(10)
        reader.join(10)
        with self._lock:
            self._process = None
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except OSError:
                    pass  # what could not be written any more
            for number in sorted(self._open):
                self.log.ended.append(Ended(number, "lost", next(self._reports)))
            self._open.clear()

    def _write(self, command: Mapping[str, Any]) -> None:
        """What cannot be told to a dead one is part of the state that the next one gets."""
        process = self._process
        if process is None:
            for number, *_ in command.get("ops", ()):
                self._open.discard(number)
                self.log.ended.append(Ended(number, "lost", next(self._reports)))
            if command.get("do") == "big":
                self._open.discard(command["number"])
                self.log.ended.append(Ended(command["number"], "lost", next(self._reports)))
            return
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
        except (OSError, ValueError):
            pass  # it was killed a moment ago

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                report = json.loads(line)
            except ValueError:
                break  # killed while it wrote
            at = next(self._reports)
            if "told" in report:
                self.log.told.append(Told(report["told"], at))
            elif "end" in report:
                # A resync has no entry: its full state is told.
                if report["n"] in self._open:
                    self._open.discard(report["n"])
                    self.log.ended.append(Ended(report["n"], report["end"], at))
            elif "settled" in report:
                self._settled.add(report["settled"])
            elif "state" in report:
                self._noticed(report["state"], report["at"])
            elif "closed" in report and (report["closed"] > 4.0 or report["open"]):
                self.log.closed.append(f"the client took {report['closed']:.1f} s to close, {report['open']} open")


def sender_options(target: str, source: str, chance: random.Random) -> dict[str, Any]:
    """For ``Sender``: the client's own times, but for those that would be measured instead of the library."""
    return {
        "target": target,
        "backoff": (0.1, 1.0),
        "connect_timeout": 2.0,
        "client": {
            "source": source,
            "content_type": chance.choice((CONTENT_JSON, CONTENT_PROTO)),
            "keepalive": KEEPALIVE,
            "keepalive_timeout": KEEPALIVE_TIMEOUT,
            "answer_timeout": 6.0,
            "send_timeout": 3.0,
        },
    }
