"""``python -m tests.faults.soak.peer KIND …``: a writer or a server that goes on by itself until it is told otherwise.

Commands come as lines on stdin, each is answered with a line of JSON on stdout:

- ``pause``: nothing more is written; the answer is the whole state, as the source has it.
- ``go``: on it goes. ``compact``, ``replace``: where there is such a thing.

Each transaction has a number and puts at least one key; see ``views``. Whoever dies in the middle of one leaves it to
the next life to find out what became of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from datasync.errors import DatasyncError, DeliveryTimeout, DoneTimeout, NotReadyError, PropagationError
from datasync.events import Op
from datasync.keyval import connect
from datasync.keyval.types import Condition, DeleteOp, PutOp
from datasync.serializer import SerializerJSON
from tests.faults.soak.views import number_of, text_of

PREFIX = "/soak/"
#: Not under the prefix: the number of the last transaction, so that one which comes late does no harm.
MARKER = "/marker"
KEYS = [
    f"{folder}{number:02}"
    for folder, count in (("a/", 20), ("a/b/", 20), ("b/k", 20), ("c/", 60))
    for number in range(count)
]
#: Seconds between two attempts to write.
RETRY = 0.05

_JSON = SerializerJSON()
Change = tuple[str, str | None]


class Peer(ABC):
    """Threads: ``step`` and ``state`` are called by one at a time."""

    #: Puts and deletes in one transaction, at most.
    largest = 6

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.chance = random.Random(options.seed)
        self.number = options.first
        self.counts = {"transactions": 0, "repeated": 0, "refused": 0}

    @abstractmethod
    def step(self) -> None:
        """Write one transaction; an error that passes means that it is to be tried again."""

    @abstractmethod
    def state(self) -> dict[str, str]:
        """What the source holds."""

    def close(self) -> None:
        """End."""

    def changes(self, number: int) -> list[Change]:
        """Transaction *number*: at least one put, and no key twice."""
        keys = self.chance.sample(KEYS, self.chance.choice((1, 1, 2, 3, self.largest)) if self.largest > 1 else 1)
        deleted = [self.chance.random() < 0.3 for _ in keys]
        deleted[0] = False
        text = text_of(number, deleted.count(False), "x" * self.chance.randrange(100))
        return [(key, None if gone else text) for key, gone in zip(keys, deleted, strict=True)]


class StorePeer(Peer):
    """A writer of etcd or SQLite."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.store = connect(options.where)
        self._load()

    def step(self) -> None:
        number = self.number + 1
        ops: list[PutOp | DeleteOp] = [PutOp(MARKER, b"%d" % number)]
        for key, text in self.changes(number):
            ops.append(DeleteOp(PREFIX + key) if text is None else PutOp(PREFIX + key, _bytes(text)))
        before = Condition(MARKER, b"%d" % self.number if self.number else None)
        try:
            done = self.store.commit(ops, [before]).succeeded
        except DatasyncError:
            done = False
        if done:
            self.number = number
        else:
            self.counts["repeated"] += 1
            self._load()

    def state(self) -> dict[str, str]:
        self._load()
        return {pair.key[len(PREFIX) :]: _text(pair.value) for pair in self.store.scan(PREFIX)}

    def compact(self) -> None:
        try:
            self.store.compact()  # type: ignore[attr-defined]
        except DatasyncError:
            pass  # away, or that far already

    def close(self) -> None:
        self.store.close()

    def _load(self) -> None:
        while True:
            try:
                marker = self.store.read(MARKER)
            except DatasyncError:
                time.sleep(RETRY)
            else:
                self.number = int(marker.value) if marker is not None else 0
                return


class SenderPeer(Peer):
    """A gRPC client, one request at a time."""

    largest = 1

    def __init__(self, options: argparse.Namespace) -> None:
        from datasync.grpcsync import Client
        from datasync.grpcsync.client import session

        session.RECONNECT_BACKOFF = (0.1, 1.0)
        super().__init__(options)
        self.number, self._applied = _seeded(self.number)
        self._last = ""
        self._client = Client(
            options.where, state=lambda: {key: StringValue(value=t) for key, t in self._applied.items()}
        )

    def step(self) -> None:
        key, text = self.changes(self.number + 1)[0]
        if self.chance.random() < 0.3 and key in self._applied and key != self._last:
            text = None  # never of the last number: nobody could tell later how far it went
        while True:
            future: Any
            if text is None:
                future = self._client.delete_async(key)
            else:
                future = self._client.put_async(key, StringValue(value=text))
            # In the client's own thread, so before it tells the state to whoever it connects to next.
            future.add_done_callback(lambda done: self._note(key, text, done.exception()))
            error = future.exception()
            if _is_applied(error):
                break
            self.counts["repeated"] += 1
            time.sleep(RETRY)
        if error is not None:
            self.counts["refused"] += 1
        if text is not None:
            self.number += 1
            self._last = key

    def state(self) -> dict[str, str]:
        self._client.wait_ready(30)  # whoever is connected has the full state
        return dict(self._applied)

    def close(self) -> None:
        self._client.close()

    def _note(self, key: str, text: str | None, error: BaseException | None) -> None:
        if not _is_applied(error):
            return
        applied = dict(self._applied)
        if text is None:
            applied.pop(key, None)
        else:
            applied[key] = text
        self._applied = applied


class ServerPeer(Peer):
    """A REST server, with changes made in its own process: each life of it begins with a state of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        from datasync.restsync import Adapter, serve

        super().__init__(options)
        self._adapter = Adapter("rest")
        self.number, state = _seeded(self.number)
        self._fill(state)
        self._server = serve(options.where, self._adapter)

    def step(self) -> None:
        from datasync.syncbase.change import ChangeBytes

        self.number += 1
        self._adapter.registry.submit_changes(
            {
                key: ChangeBytes(key, op=Op.DELETE) if text is None else ChangeBytes(key, _bytes(text))
                for key, text in self.changes(self.number)
            }
        ).result(10)

    def state(self) -> dict[str, str]:
        return {kv.get_key(): kv.get_value(StringValue()).value for kv in self._adapter.registry.items()}

    def replace(self) -> None:
        """Another full state, which has a part of this one."""
        self.number += 1
        fresh = {key: text_of(self.number, 1) for key in self.chance.sample(KEYS, 20)}
        self._fill({key: text for key, text in self.state().items() if self.chance.random() < 0.7} | fresh)

    def close(self) -> None:
        self._server.close()
        self._adapter.registry.close()

    def _fill(self, state: dict[str, str]) -> None:
        from datasync.syncbase.change import KeyValBytes

        self._adapter.registry.propagate_resync({key: KeyValBytes(key, _bytes(text)) for key, text in state.items()})


def log_into(file: str) -> None:
    """All that the library says."""
    form = "%(asctime)s.%(msecs)03d %(threadName)s %(levelname)s %(message)s"
    logging.basicConfig(filename=file, level=logging.DEBUG, format=form, datefmt="%H:%M:%S")


KINDS: dict[str, type[Peer]] = {"etcd": StorePeer, "sqlite": StorePeer, "grpc": SenderPeer, "rest": ServerPeer}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak.peer", description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("where", help="URL or address")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="number before the first transaction, where none is kept")
    parser.add_argument("--rate", type=float, default=25.0, help="transactions per second")
    parser.add_argument("--log", default="", help="a file for what the library logs")
    options = parser.parse_args(arguments)
    if options.log:
        log_into(options.log)
    peer = KINDS[options.kind](options)
    going, ending = threading.Event(), threading.Event()
    turn = threading.Lock()  # one step, or one command

    def work() -> None:
        due = time.monotonic()
        while not ending.is_set():
            going.wait()
            with turn:
                if going.is_set() and not ending.is_set():
                    peer.step()
                    peer.counts["transactions"] += 1
            due = max(due + 1 / options.rate, time.monotonic() - 1)
            ending.wait(max(0.0, due - time.monotonic()))

    worker = threading.Thread(target=work, name="writer", daemon=True)
    worker.start()
    _say({"ready": True})
    for line in sys.stdin:
        command = line.strip()
        answer: dict[str, Any] = {"done": command}
        if command == "pause":
            going.clear()
            with turn:
                answer |= {"state": _patiently(peer), "number": peer.number, "counts": peer.counts}
        elif command == "go":
            going.set()
        else:
            with turn:
                getattr(peer, command)()
        _say(answer)
    ending.set()
    going.set()
    worker.join(5)
    peer.close()
    return 0


def _patiently(peer: Peer) -> dict[str, str]:
    deadline = time.monotonic() + 30
    while True:
        try:
            return peer.state()
        except DatasyncError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY)


def _is_applied(error: BaseException | None) -> bool:
    """True when the receiver's state has it, whatever the subscribers said."""
    # The last of these is what is said when a subscriber unsubscribes before it has answered.
    return error is None or isinstance(error, (PropagationError, DoneTimeout, DeliveryTimeout, NotReadyError))


def _seeded(number: int) -> tuple[int, dict[str, str]]:
    """The state that a life begins with."""
    number += 1
    keys = KEYS[::2]
    return number, dict.fromkeys(keys, text_of(number, len(keys)))


def _bytes(text: str) -> bytes:
    return _JSON.marshal(StringValue(value=text))


def _text(data: bytes) -> str:
    text = _JSON.unmarshal(data, StringValue()).value
    number_of(text)
    return text


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
