"""The registry alone, fed by callers: each waits for an answer of its own, and every one of them gets one.

Source: contract C4 (changes of a caller are never merged), C8, C9.
"""

from __future__ import annotations

import random
from queue import Queue
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue

from datasync.errors import ClosedError, DeliveryTimeout, DoneTimeout, PropagationError
from datasync.events import Op
from datasync.keyval.memory import MemoryStore
from datasync.syncbase.change import Change, KeyVal
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus
from tests.faults.history import Op1
from tests.faults.recorder import RawSerializer
from tests.faults.sources.source import Misfortune, Ops, Source, random_ops

#: What a caller may be told when a subscriber did not take its change.
FAILURES = (PropagationError, DeliveryTimeout, DoneTimeout, ClosedError)


class LocalTransport:
    """A registry in the shape of a plugin."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def after_init(self) -> None:
        """Nothing to start."""

    def watch(
        self, name: str, changes: Queue[Any] | None, resyncs: Queue[Any] | None, *prefixes: str, in_flight: int = 1
    ) -> Registration:
        return self.registry.watch(name, changes, resyncs, *prefixes, in_flight=in_flight)

    def status(self) -> TransportStatus:
        return self.registry.status()

    def close(self) -> None:
        self.registry.close()


class LocalSource(Source):
    """Callers on several threads; what goes wrong is up to the consumers, and to resyncs in between."""

    sourced = False
    within = True

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.store = MemoryStore()  # not used
        self.futures: list[PropagationFuture] = []

    def transport(self) -> LocalTransport:
        self.registry = Registry("local", serializer=RawSerializer())  # with the timeouts of the cell
        return LocalTransport(self.registry)

    @property
    def revision(self) -> int:
        commits = self.truth.epochs[-1].commits
        return commits[-1].revision if commits else 0

    def write(self, ops: Ops) -> None:
        with self.lock:
            there = set(self.truth.state)
            changes = {
                key: Change(key, op=Op.DELETE) if value is None else Change(key, BytesValue(value=value))
                for key, value in ops
            }
            self.futures.append(self.registry.submit_changes(changes))
            effect = [Op1(key, value) for key, value in ops if value is not None or key in there]
            if effect:
                self.truth.record(self.registry.revision, effect)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            "replaced": self._replace,
            "asked-again": self._ask,
            "second-caller": lambda: self.write(random_ops(self.chance)),
            "empty-transaction": lambda: self.write([]),
        }

    def settle(self) -> None:
        """No future hangs, and each has an answer that makes sense."""
        for future in self.futures:
            assert future.done(), f"a caller waits for ever: {future.silent()}"
            error = future.exception(0)
            assert error is None or isinstance(error, FAILURES), f"a caller was told {error!r}"

    def _replace(self) -> None:
        """A caller brings the whole state."""
        with self.lock:
            before = dict(self.truth.state)
            after = {key: value for key, value in random_ops(self.chance) if value is not None}
            kept = {key: value for key, value in before.items() if self.chance.random() < 0.7}
            state = {**kept, **after}
            values = {key: KeyVal(key, BytesValue(value=value)) for key, value in state.items()}
            self.futures.append(self.registry.submit_resync(values))
            gone = [Op1(key, None) for key in before if key not in state]
            put = [Op1(key, value) for key, value in state.items() if before.get(key) != value]
            self.truth.record(self.registry.revision, gone + put)

    def _ask(self) -> None:
        """Somebody wants to hear it all again."""
        names = list(self.registry.subscriptions)
        if names:
            try:
                self.futures.append(self.registry.request_resync(self.chance.choice(names)))
            except ValueError:
                pass  # gone meanwhile
