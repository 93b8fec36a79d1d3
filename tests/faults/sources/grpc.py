"""Senders over gRPC as the source of cells: processes of their own behind a proxy; the agent lives in the harness.

The truth of revisions is what the agent's registry says that it applied, and that is checked against the log of the
sender from both sides: nothing that was acknowledged is missing, nothing that was never sent is there, nothing comes
late or twice, and when all is over the agent holds exactly what the sender wants.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Queue
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

from datasync.context import current_source
from datasync.grpcsync.limits import Limits
from datasync.grpcsync.server.adapter import Adapter
from datasync.grpcsync.server.executor import ThreadPerCallExecutor
from datasync.grpcsync.server.server import _options
from datasync.grpcsync.server.sources import SourcesRegistration
from datasync.grpcsync.status import AdapterStatus
from datasync.keyval.memory import MemoryStore
from datasync.serializer import SerializerJSON
from datasync.syncbase.change import ChangeResp
from datasync.syncbase.registry import Registry
from tests.faults.checkers.sender_log import Applied, check_sender
from tests.faults.history import Op1, Silence, Truth, TruthCommit, apply
from tests.faults.sources.grpc_process import KEEPALIVE, KEEPALIVE_TIMEOUT, Sender, sender_options
from tests.faults.sources.grpc_strangers import FewDescriptors, Strangers
from tests.faults.sources.source import Misfortune, Ops, Source, random_ops
from tests.support.proxy import TcpProxy, free_port

#: Bytes of a message that the agent takes; a sender of its own may send more.
MESSAGE_SIZE = 1024 * 1024
#: Operations without an answer with which more are sent, and seconds for which there may be more before that.
UNANSWERED, PATIENCE = 64, 0.5
#: The source of the sender that must not matter.
OTHER = "other"
#: Seconds after which an aged connection is ended.
AGE = 0.3
#: Descriptors that the agent's process may open beside those that it has when the source begins.
DESCRIPTORS = 256


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
    serializer = SerializerJSON()
    pace = 0.02
    transactions = 100

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.store = MemoryStore()  # not used
        self.applied: list[Applied] = []
        self._mirror: dict[str, bytes] = {}
        self._port = free_port()
        self._few = FewDescriptors(DESCRIPTORS)
        self._server, self._executor = _make_server()
        self._limits = Limits(message_size=MESSAGE_SIZE)
        self._adapter = Adapter(self._server, limits=self._limits)
        self._adapter.registry.observe(self._observe)
        self._aged = False
        self._listen()
        self._proxy = TcpProxy(("127.0.0.1", self._entrance()))
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
            "strangers": self._strangers,
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
        self._few.close()
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
            there = there and not (self._down.is_set() and self._down_at < begin)  # lost by what was before
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

    def _strangers(self) -> None:
        """More connections than this process has descriptors, silent or without a call, for a while."""
        with Strangers(self._port, 2 * DESCRIPTORS):
            self.faults.healed.wait(self.chance.uniform(0.1, 1.0))

    # The server.

    def _entrance(self) -> int:
        """The port that the senders' proxy forwards to."""
        return self._port

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
        self._server.add_generic_rpc_handlers(self._adapter._handlers())
        self._listen()

    def _stop_server(self, grace: float | None = None) -> None:
        self._server.stop(grace).wait(5)
        self._executor.shutdown()


def _make_server(max_age: float | None = None) -> tuple[grpc.Server, ThreadPerCallExecutor]:
    executor = ThreadPerCallExecutor()
    limits = Limits(message_size=MESSAGE_SIZE)
    options = _options(limits, 1024, max_age, KEEPALIVE, KEEPALIVE_TIMEOUT)
    return grpc.server(executor, maximum_concurrent_rpcs=1000, options=options), executor


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
