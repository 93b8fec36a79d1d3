"""Senders over gRPC as the source of cells: processes of their own behind a proxy; the agent lives in the harness.

The truth of revisions is what the agent's registry says that it applied, and that is checked against the log of the
sender from both sides: nothing that was acknowledged is missing, nothing that was never sent is there, nothing comes
late or twice, and when all is over the agent holds exactly what the sender wants.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.context import current_source
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.server.adapter import Adapter, _ServiceHandler
from datasync.grpcsync.server.executor import ThreadPerCallExecutor
from datasync.grpcsync.server.server import _options
from datasync.grpcsync.server.sources import SourcesRegistration
from datasync.grpcsync.status import AdapterStatus
from datasync.keyval.memory import MemoryStore
from datasync.syncbase.change import ChangeResp
from datasync.syncbase.msg.convert import CONTENT_JSON, CONTENT_PROTO
from datasync.syncbase.registry import Registry
from tests.faults.history import Op1, Silence, Truth, TruthCommit, apply
from tests.faults.sources import Misfortune, Ops, Source, random_ops
from tests.support.proxy import TcpProxy, free_port

#: Seconds of silence after which either side asks for a sign of life, and that it may take.
KEEPALIVE, KEEPALIVE_TIMEOUT = 1.0, 0.5
#: Bytes of a message that the agent takes; a sender of its own may send more.
MESSAGE_SIZE = 1024 * 1024
#: Operations without an answer with which more are sent, and seconds for which there may be more before that.
UNANSWERED, PATIENCE = 64, 0.5
#: The source of the sender that must not matter.
OTHER = "other"
#: Seconds after which an aged connection is ended.
AGE = 0.3

#: Ends of an operation after which it was applied, or needed not be: the agent had it.
ANSWERS = ("ok", "absent", "PropagationError", "DoneTimeout", "DeliveryTimeout", "SubscriptionError")
#: Ends of an operation that never reached the agent.
NOT_SENT = ("StoreConnectionError", "ClosedError", "PermissionDenied", "InvalidArgumentError")
#: Whether it did is not known.
UNKNOWN = ("UnknownOutcome", "NotReadyError", "StoreError", "lost")


class Sent(NamedTuple):
    """An operation that the sender was told; *size* of one that is too large and no part of what is wanted."""

    number: int
    key: str
    value: bytes | None
    wanted: bool = True


class Ended(NamedTuple):
    """What became of operation *number*, and when the sender said so (a count of its reports)."""

    number: int
    end: str
    at: int


class Told(NamedTuple):
    """A full state up to operation *number* is being sent."""

    number: int
    at: int


class Applied(NamedTuple):
    """What the registry did: operations, or a full state."""

    revision: int
    ops: tuple[Op1, ...]
    state: Mapping[str, bytes] | None


@dataclass
class SenderLog:
    """All that one sender was told and said, over all its lives."""

    sent: list[Sent] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    #: Full states that have a place between the operations.
    resyncs: list[int] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> dict[str, bytes]:
        """The state that the sender wants."""
        return _fold({}, self.sent)


def check_sender(log: SenderLog, applied: Sequence[Applied]) -> list[str]:
    """What is wrong with *applied*, given *log*."""
    troubles = list(log.closed)
    ends: dict[int, Ended] = {}
    for end in log.ended:
        if end.number in ends:
            troubles.append(f"I9: operation {end.number} ended twice: {ends[end.number].end}, then {end.end}")
        ends[end.number] = end
    troubles += [f"I9: operation {one.number} never ended" for one in log.sent if one.number not in ends]
    numbers, more = _match(log, applied, ends)
    troubles += more
    for one in log.sent:
        end = ends.get(one.number)
        if end is None or one.value is None:
            continue  # a delete of what is not there leaves no trace
        if not one.wanted and one.number in numbers:
            troubles.append(f"operation {one.number} was above the limit, and applied")
        elif end.end in ("ok", *ANSWERS) and one.number not in numbers:
            troubles.append(f"operation {one.number}, {one.key!r}, was answered ({end.end}) and never applied")
        elif end.end in NOT_SENT and one.number in numbers:
            troubles.append(f"operation {one.number} was applied, and its caller was told {end.end}")
        elif end.end not in (*ANSWERS, *NOT_SENT, *UNKNOWN):
            troubles.append(f"operation {one.number} ended with {end.end}")
    return troubles


def _match(log: SenderLog, applied: Sequence[Applied], ends: Mapping[int, Ended]) -> tuple[set[int], list[str]]:
    """Follow *applied* in its order; the numbers of the operations in it, and what is out of order."""
    troubles = []
    puts = {one.value: one for one in log.sent if one.value is not None}
    deletes: dict[str, list[int]] = {}
    for one in log.sent:
        if one.value is None:
            deletes.setdefault(one.key, []).append(one.number)
    folds = _Folds(log.sent)
    numbers: set[int] = set()
    last = 0
    telling: Told | None = None
    for entry in applied:
        if entry.state is not None:
            since = 0 if telling is None else telling.at
            following = (one for one in log.told if one.at > since and folds.at(one.number) == entry.state)
            told = next(following, None)
            if told is not None:
                telling = told
                continue
            asked = next((one for one in log.resyncs if one > last and folds.at(one) == entry.state), 0)
            if not asked:
                troubles.append(f"revision {entry.revision}: a full state that the sender did not tell after {telling}")
            last = max(last, asked)
            continue
        for key, value in entry.ops:
            if value is None:
                number = next((n for n in deletes.get(key, ()) if n > last), 0)
            else:
                number = puts[value].number if value in puts and puts[value].key == key else 0
            what = f"revision {entry.revision}: {key!r} {'deleted' if value is None else value!r}"
            if not number:
                troubles.append(f"{what}: nobody sent that")
                continue
            if number <= last:
                troubles.append(f"{what}: operation {number} after {last}")
            end = ends.get(number)
            settled = telling is not None and end is not None and end.end in UNKNOWN and end.at < telling.at
            if settled and value is not None:
                troubles.append(f"{what}: operation {number} came after the full state that settled it")
            numbers.add(number)
            last = max(last, number)
    return numbers, troubles


class _Folds:
    """The states that a sender wanted, asked for in any order but mostly forwards."""

    def __init__(self, sent: Sequence[Sent]) -> None:
        self._sent = sent
        self._known: dict[int, dict[str, bytes]] = {}
        self._next = 0
        self._state: dict[str, bytes] = {}

    def at(self, number: int) -> Mapping[str, bytes]:
        """The state after operation *number*."""
        if number not in self._known:
            if self._next and self._sent[self._next - 1].number > number:
                self._known[number] = _fold({}, [one for one in self._sent if one.number <= number])
                return self._known[number]
            while self._next < len(self._sent) and self._sent[self._next].number <= number:
                _fold(self._state, [self._sent[self._next]])
                self._next += 1
            self._known[number] = dict(self._state)
        return self._known[number]


def _fold(state: dict[str, bytes], sent: Iterable[Sent]) -> dict[str, bytes]:
    for one in sent:
        if not one.wanted:
            continue
        if one.value is None:
            state.pop(one.key, None)
        else:
            state[one.key] = one.value
    return state


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
        command = [sys.executable, "-m", "tests.faults.grpc_sender", self._options]
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join((root, *filter(None, (os.environ.get("PYTHONPATH"),))))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("DATASYNC_PEER_LOG") else subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "GRPC_ENABLE_FORK_SUPPORT": "0"},
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
                _fold(self._wanted, [sent])
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


class OwnQueue:
    """Passes on what is of the default source; of the other one it keeps a view, and says done at once."""

    def __init__(self, inner: Queue[Any], view: dict[str, bytes]) -> None:
        self._inner = inner
        self._view = view

    def put_nowait(self, event: Any) -> None:
        if event.get_context()[current_source] != OTHER:
            self._inner.put_nowait(event)
            return
        if hasattr(event, "get_values"):
            pairs = [pair for some in event.get_values().values() for pair in some]
            fresh = {pair.get_key(): pair.get_value(BytesValue()).value for pair in pairs}
            self._view.clear()
            self._view.update(fresh)
        else:
            for change in event.get_changes():
                if change.get_change_type().value == "Put":
                    self._view[change.get_key()] = change.get_value(BytesValue()).value
                else:
                    self._view.pop(change.get_key(), None)
        event.done()


class GrpcTransport:
    """An adapter in the shape of a plugin; its watchers get what is of the default source."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.registry: Registry = adapter.registry

    def after_init(self) -> None:
        """Whoever pushes is not waited for."""

    def watch(
        self, name: str, changes: Queue[Any] | None, resyncs: Queue[Any] | None, *prefixes: str, in_flight: int = 1
    ) -> SourcesRegistration:
        view: dict[str, bytes] = {}
        queues: list[Any] = [None if one is None else OwnQueue(one, view) for one in (changes, resyncs)]
        return self._adapter.watch(name, *queues, *prefixes, in_flight=in_flight)

    def status(self) -> AdapterStatus:
        return self._adapter.status()

    def close(self) -> None:
        self._adapter.close()


class _Truth(Truth):
    """What the registry says of revisions; what all must come to is what the sender wants."""

    def __init__(self, wanted: Callable[[], Mapping[str, bytes]]) -> None:
        super().__init__()
        self._wanted = wanted

    @property
    def state(self) -> Mapping[str, bytes]:
        return self._wanted()


class GrpcSource(Source):
    """One agent, one proxy, one sender that matters, and one that does not."""

    sourced = False
    pace = 0.02
    transactions = 100

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.store = MemoryStore()  # not used
        self.applied: list[Applied] = []
        self._mirror: dict[str, bytes] = {}
        self._port = free_port()
        self._server, self._executor = _make_server()
        self._limits = Limits(message_size=MESSAGE_SIZE)
        self._adapter = Adapter(self._server, limits=self._limits)
        self._adapter.registry.observe(self._observe)
        self._aged = False
        self._listen()
        self._proxy = TcpProxy(("127.0.0.1", self._port))
        self._down = threading.Event()  # set when the sender noticed that it has no connection
        self._down_at = 0.0
        self._up = threading.Event()  # set when it has one
        self.sender = Sender(sender_options(self._proxy.address, "", chance), self._noticed)
        self.other = Sender(sender_options(self._proxy.address, OTHER, chance))
        self._other_was_there = False
        self.truth = _Truth(lambda: self.sender.wanted)
        self.sender.start()

    def transport(self) -> GrpcTransport:
        return GrpcTransport(self._adapter)

    @property
    def revision(self) -> int:
        if self.faults.healed.is_set() and not self._settled:
            return -1  # it may be as it should be by chance, and something is under way yet
        commits = self.truth.epochs[-1].commits
        return commits[-1].revision if commits else 0

    @property
    def server_watchers(self) -> int | None:
        return self._adapter.status().streams

    def write(self, ops: Ops) -> None:
        """As an application does it that waits for answers before it sends more, but not for ever."""
        until = time.monotonic() + PATIENCE
        while self.sender.open > UNANSWERED and time.monotonic() < until:
            time.sleep(0.002)
        with self.lock:
            self.sender.ops(ops)
            if self.faults.healed.is_set():
                self.sender.settle()

    @property
    def _settled(self) -> bool:
        return self.sender.settled and (self.other.settled or not self._other_was_there)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "sender-kill9": self._kill,
            "sender-sigstop": self._freeze_sender,
            "sender-closed": lambda: self._replace_sender(self.sender.close),
            "server-restart": self._restart,
            "drop": self._proxy.drop,
            "reset": self._proxy.reset,
            "reset-mid-message": self._reset_mid_message,
            "cut-pipelined": self._cut_pipelined,
            "away": self.away,
            "black-hole": lambda: self._swallow(up=True, down=True),
            "black-hole-up": lambda: self._swallow(up=True, down=False),
            "black-hole-down": lambda: self._swallow(up=False, down=True),
            "delay": lambda: self._for_a_while(lambda: self._proxy.delay(self.chance.uniform(0.01, 0.3))),
            "rate": lambda: self._for_a_while(lambda: self._proxy.rate(self.chance.randint(500, 20_000))),
            "freeze": lambda: self._for_a_while(self._proxy.freeze),
            "goaway": self._age,
            "size-cap": self._too_large,
            "resync": self._resync,
            "other-sender": self._somebody_else,
        }

    def heal(self) -> None:
        super().heal()
        self._proxy.heal()
        self.sender.send(signal.SIGCONT)
        if self._aged:
            self._aged = False
            self._restart_server(None)
        self.sender.settle()
        if self._other_was_there:
            self.other.settle()

    def settle(self) -> None:
        self.sender.close()
        self.other.close()
        troubles = check_sender(self.sender.log, self.applied)
        if self._mirror != self.sender.log.wanted:
            troubles.append(f"the agent holds what nobody wants: {_apart(self.sender.log.wanted, self._mirror)}")
        if self._other_was_there:
            registry = self._adapter.registries.get(OTHER)  # none when the transport was left before it came through
            there = {} if registry is None else held(registry)
            if there != self.other.log.wanted:
                troubles.append(f"of the other sender: {_apart(self.other.log.wanted, there)}")
        assert not troubles, f"{len(troubles)} things, first: " + "; ".join(troubles[:5])

    def close(self) -> None:
        self.sender.kill()
        self.other.kill()
        self._proxy.close()
        self._adapter.close()
        self._stop_server()
        self.store.close()

    def away(self, *meanwhile: Misfortune) -> None:
        """Nothing listens for a while."""
        self._proxy.refuse()
        for happens in meanwhile:
            happens()
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._proxy.heal()

    # What the agent did.

    def _observe(self, revision: int, changes: Sequence[ChangeResp] | None) -> None:
        """Called with the registry's lock held, in the order of the facts."""
        applied, ops = observed(self._adapter.registry, self._mirror, revision, changes)
        if ops or applied.state is not None:
            self.applied.append(applied)
            self.truth.record(revision, ops)

    # Misfortunes.

    def _kill(self) -> None:
        self._replace_sender(self.sender.kill)

    def _replace_sender(self, end: Misfortune) -> None:
        end()
        self.faults.healed.wait(self.chance.uniform(0, 0.2))
        self._up.clear()
        self.sender.start()
        self._wait_for(self._up.is_set)

    def _wait_for(self, condition: Callable[[], bool], patience: float = 5.0) -> None:
        until = time.monotonic() + patience
        while not condition() and not self.faults.healed.is_set() and time.monotonic() < until:
            self.faults.healed.wait(0.02)

    def _freeze_sender(self) -> None:
        self.sender.send(signal.SIGSTOP)
        self.faults.healed.wait(self.chance.uniform(0.05, 2.5))
        self.sender.send(signal.SIGCONT)

    def _restart(self) -> None:
        """The server, not the adapter: the state is still there, and so are the subscribers."""
        self._restart_server(None)

    def _age(self) -> None:
        """Connections are ended in order when they are of age, again and again."""
        if not self._aged:
            self._aged = True
            self._restart_server(AGE)
        self.faults.healed.wait(self.chance.uniform(0.2, 1.0))

    def _reset_mid_message(self) -> None:
        self._proxy.reset_after(self.chance.randrange(300))
        self.faults.healed.wait(self.chance.uniform(0.01, 0.5))
        self._proxy.heal()

    def _cut_pipelined(self) -> None:
        """A window full of requests is under way."""
        self._wait_for(lambda: self.sender.open < UNANSWERED)
        self.write([op for _ in range(40) for op in random_ops(self.chance)])
        self.faults.healed.wait(self.chance.uniform(0, 0.02))
        self._proxy.reset()

    def _for_a_while(self, begin: Misfortune) -> None:
        begin()
        self.faults.healed.wait(self.chance.uniform(0.1, 1.0))
        self._proxy.heal()

    def _swallow(self, *, up: bool, down: bool) -> None:
        """Until the sender has noticed, or a little less."""
        long = self.chance.random() < 0.5
        limit = KEEPALIVE + KEEPALIVE_TIMEOUT + 1.0
        self._down.clear()
        there = self._up.is_set()
        begin = time.monotonic()
        self._proxy.black_hole(up=up, down=down)
        if not long:
            self.faults.healed.wait(self.chance.uniform(0, 1.5))
        else:
            until = begin + limit + 0.5
            while not self._down.is_set() and not self.faults.healed.is_set() and time.monotonic() < until:
                self.faults.healed.wait(0.02)
            if there and not self.faults.healed.is_set():
                self.course.silences.append(Silence(begin, self._down_at if self._down.is_set() else None, limit))
        self._proxy.heal()

    def _too_large(self) -> None:
        """For the agent, or already for the sender's own limit; over when the sender has been told."""
        number = self.sender.big("a/big", self.chance.choice((2 * MESSAGE_SIZE, 20 * MESSAGE_SIZE)))
        self._wait_for(lambda: not self.sender.waits_for(number))
        self._wait_for(self._up.is_set)

    def _resync(self) -> None:
        """The full state in the midst of the changes."""
        self._wait_for(lambda: self.sender.open < UNANSWERED)
        self.sender.resync()

    def _somebody_else(self) -> None:
        """A sender of another source comes, writes the same keys, says it all again, or dies."""
        if not self._other_was_there:
            self._other_was_there = True
            self.other.start()
        self._wait_for(lambda: self.other.open < UNANSWERED)
        for _ in range(self.chance.randint(1, 20)):
            self.other.ops([(key, value and b"o" + value) for key, value in random_ops(self.chance)])
        dice = self.chance.random()
        if dice < 0.3:
            self.other.resync()
        elif dice < 0.5:
            self.other.kill()
            self.other.start()

    # The server.

    def _noticed(self, state: str, at: float) -> None:
        if state == "ready":
            self._up.set()
        else:
            self._up.clear()
            if not self._down.is_set():
                self._down_at = at
                self._down.set()

    def _listen(self) -> None:
        for _ in range(200):
            try:
                if self._server.add_insecure_port(f"127.0.0.1:{self._port}"):
                    break
            except RuntimeError:
                pass  # the one before has not gone yet
            time.sleep(0.01)
        self._server.start()

    def _restart_server(self, max_age: float | None) -> None:
        self._stop_server(self.chance.choice((None, 0.1)))
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        age = None if max_age is None else max_age * 0.8
        self._adapter._limits = replace(self._limits, stream_age=age)
        self._server, self._executor = _make_server(max_age)
        self._server.add_generic_rpc_handlers((_ServiceHandler(self._adapter._methods()),))
        self._listen()

    def _stop_server(self, grace: float | None = None) -> None:
        self._server.stop(grace).wait(5)
        self._executor.shutdown()


def _make_server(max_age: float | None = None) -> tuple[grpc.Server, ThreadPerCallExecutor]:
    executor = ThreadPerCallExecutor()
    limits = Limits(message_size=MESSAGE_SIZE)
    options = _options(limits, max_age, KEEPALIVE, KEEPALIVE_TIMEOUT)
    return grpc.server(executor, maximum_concurrent_rpcs=1000, options=options), executor


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


def held(registry: Registry) -> dict[str, bytes]:
    """The state that *registry* knows."""
    return {pair.get_key(): pair.get_value(BytesValue()).value for pair in registry.items()}


def observed(
    registry: Registry, mirror: dict[str, bytes], revision: int, changes: Sequence[ChangeResp] | None
) -> tuple[Applied, list[Op1]]:
    """What an observer of *registry* was told, and the operations that it comes to; *mirror* is brought up to date."""
    if changes is None:
        state = held(registry)
        ops = [Op1(key, None) for key in mirror if key not in state]
        ops += [Op1(key, value) for key, value in state.items() if mirror.get(key) != value]
        applied = Applied(revision, (), state)
    else:
        ops = [Op1(one.key, None if one.value is None else one.get_value(BytesValue()).value) for one in changes]
        applied = Applied(revision, tuple(ops), None)
    apply(mirror, TruthCommit(revision, tuple(ops)))
    return applied, ops


def _apart(right: Mapping[str, bytes], found: Mapping[str, bytes]) -> str:
    keys = sorted(key for key in {*right, *found} if right.get(key) != found.get(key))
    return ", ".join(f"{key!r} is {found.get(key)!r} and not {right.get(key)!r}" for key in keys[:5])
