"""A network agent: watches interfaces and routes, applies them, and acknowledges each event.

    python -m datasync.examples.agent sqlite:network.db

It runs until Ctrl-C or SIGTERM. Meanwhile, in another terminal:

    datasync put sqlite:network.db /vnf-agent/vpp1/config/interface/eth0 \
        '{"name":"eth0","enabled":true,"mtu":1500,"ip_addresses":["192.0.2.1/24"]}'

Repeat the command with another ``mtu``. The agent rejects an ``mtu`` of 20000.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

from google.protobuf.message import Message

from datasync import (
    ChangeEvent,
    DatasyncError,
    DecodeError,
    KeyVal,
    KeyValProtoWatcher,
    Op,
    Plugin,
    ProtoWatchResp,
    Rejected,
    ResyncEvent,
    connect,
    with_client_lifetime_ttl,
)
from datasync.examples.dataplane import INTERFACES, ROUTES, Dataplane, Item, new_item
from datasync.examples.launch import ENDING, block_signals, launch
from datasync.examples.netconf_pb2 import AgentStatus
from datasync.keyval.types import Capability
from datasync.kvdbsync.servicelabel import agent_prefix
from datasync.runtime.threads import Worker

#: Key prefix of the agents' own status.
STATUS = "status/"
#: Names of events in reports; that of a RESYNC has its reason.
CHANGE, AGAIN = "CHANGE", "CHANGE (again)"


@dataclass(frozen=True)
class Difference:
    """One key before and after an event; None means absent."""

    key: str
    old: Item | None
    new: Item | None

    @property
    def sign(self) -> str:
        """``+`` for an added key, ``-`` for a removed one, ``~`` for a changed one."""
        return "+" if self.old is None else "-" if self.new is None else "~"


@dataclass
class Report:
    """The handling of one event: its differences, and the errors of rejected keys."""

    event: str
    revision: int
    differences: list[Difference] = field(default_factory=list)
    #: Number of keys of a RESYNC that the dataplane had already.
    same: int = 0
    rejected: Mapping[str, str] = field(default_factory=dict)


class NetworkAgent:
    """Keeps *dataplane* in sync with *watcher*.

    Args:
      watcher: Any transport, or several as ``KVProtoWatchers``.
      report: Called for each event after it was applied or rejected, and before it is acknowledged.

    Threads: ``run`` in one, ``stop`` from any.
    """

    def __init__(
        self,
        watcher: KeyValProtoWatcher,
        dataplane: Dataplane | None = None,
        *,
        name: str = "network-agent",
        report: Callable[[Report], object] | None = None,
    ) -> None:
        self.name = name
        self.dataplane = dataplane or Dataplane()
        self.status = AgentStatus(pid=os.getpid())
        self._watcher = watcher
        self._report = report or print_report
        # One queue for both kinds of event keeps them in order.
        self._events: Queue[ResyncEvent | ChangeEvent | None] = Queue()

    def run(self) -> None:
        """Handle events until ``stop``."""
        with self._watcher.watch(self.name, self._events, self._events, INTERFACES, ROUTES):
            while (event := self._events.get()) is not None:
                self._handle(event)

    def stop(self) -> None:
        """End ``run`` after the current event."""
        self._events.put(None)

    def _handle(self, event: ResyncEvent | ChangeEvent) -> None:
        """Acknowledge the event in any case: the watcher waits for it, and so may a caller."""
        error: Exception | None = None
        try:
            report = self._resync(event) if isinstance(event, ResyncEvent) else self._change(event)
            if report.rejected:
                error = Rejected(report.rejected)  # the other keys are applied; these are delivered again
            self._count(report)
            self._report(report)
        except Exception as failure:
            error = failure
            print(f"{self.name}: {failure!r}", file=sys.stderr)
        event.done(error)

    def _resync(self, event: ResyncEvent) -> Report:
        """Make the dataplane equal to the full state, except for invalid keys."""
        wanted: dict[str, Item] = {}
        invalid: dict[str, str] = {}
        for pairs in event.get_values().values():
            for pair in pairs:
                item = _read(pair, invalid)
                if item is not None:
                    wanted[pair.get_key()] = item
        before = self.dataplane.items
        rejected = self.dataplane.apply_what_fits(wanted, invalid)
        after = self.dataplane.items
        differences = [
            Difference(key, before.get(key), after.get(key))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
        same = sum(before.get(key) == item for key, item in after.items())
        return Report(f"RESYNC ({event.reason.value})", event.revision, differences, same, rejected)

    def _change(self, event: ChangeEvent) -> Report:
        """Apply every change that fits. The keys of the others keep their last valid value."""
        invalid: dict[str, str] = {}
        differences = [
            Difference(change.get_key(), _previous(change), _read(change, invalid)) for change in event.get_changes()
        ]
        rejected = self.dataplane.apply_changes({one.key: one.new for one in differences}, invalid)
        return Report(AGAIN if event.redelivery else CHANGE, event.revision, differences, rejected=rejected)

    def _count(self, report: Report) -> None:
        status = self.status
        status.event = report.event
        if report.event in (CHANGE, AGAIN):
            for difference in report.differences:
                status.rejected.pop(difference.key, None)
        else:
            status.rejected.clear()
            status.resyncs += 1
        status.rejected.update(report.rejected)
        if report.event != AGAIN:  # which brings keys of earlier revisions
            status.revision = report.revision
            status.changes += report.event == CHANGE
            status.rejections += bool(report.rejected)


def print_report(report: Report) -> None:
    """Print one line for the event and one per key."""
    print(f"{report.event} at revision {report.revision}")
    for difference in report.differences:
        print(f"  {difference.sign} {difference.key}  {describe_fields(difference)}")
    if report.same:
        print(f"  = {report.same} unchanged")
    for key, problem in report.rejected.items():
        print(f"  ! {key}  rejected: {problem}")
    sys.stdout.flush()


def describe_fields(difference: Difference) -> str:
    """Return the changed fields as ``name old → new``, or all fields of a key that was added or removed."""
    old, new = fields_of(difference.old), fields_of(difference.new)
    if difference.old is None or difference.new is None:
        return " ".join(f"{name}={value}" for name, value in {**old, **new}.items())
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}" for name in names) or "unchanged"


def fields_of(item: Message | None) -> dict[str, str]:
    """Return the fields as text, without empty ones and without the first one, which repeats the key."""
    if item is None:
        return {}
    texts = {name: _text(getattr(item, name)) for name in list(item.DESCRIPTOR.fields_by_name)[1:]}
    return {name: text for name, text in texts.items() if text}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, str)) else ", ".join(value)


def _read(pair: KeyVal | ProtoWatchResp, invalid: dict[str, str]) -> Item | None:
    """Return the value, or None for a delete. Note a value that cannot be decoded, and continue."""
    if isinstance(pair, ProtoWatchResp) and pair.get_change_type() is Op.DELETE:
        return None
    try:
        return pair.get_value(new_item(pair.get_key()))
    except DecodeError as error:
        invalid[pair.get_key()] = str(error)
        return None


def _previous(change: ProtoWatchResp) -> Item | None:
    item = new_item(change.get_key())
    try:
        return item if change.get_prev_value(item) else None
    except DecodeError:
        return None  # the previous value was rejected when it arrived


@contextmanager
def running(agent: NetworkAgent) -> Iterator[None]:
    """Run *agent* in a thread for the time of the block."""
    with closing(Worker("examples-agent", lambda _: agent.run(), wake=agent.stop)) as worker:
        worker.start()
        yield


def follow(url: str, *, dataplane: Dataplane | None = None, report: Callable[[Report], object] = print_report) -> None:
    """Run an agent on the store at *url* until SIGINT or SIGTERM. It writes its status to the store."""
    block_signals()
    with connect(url) as store, Plugin(kv=store, prefix=agent_prefix()) as plugin:
        lifetime = [with_client_lifetime_ttl()] if Capability.LEASE in store.capabilities else []

        def write_status(handled: Report) -> None:
            report(handled)
            try:
                plugin.put(STATUS + agent.name, agent.status, *lifetime)
            except DatasyncError as error:  # the event itself was handled
                print(f"{agent.name}: the status was not written: {error}", file=sys.stderr)

        agent = NetworkAgent(plugin, dataplane, report=write_status)
        with running(agent):
            signal.sigwait(ENDING)
        if not lifetime:
            _delete_status(plugin, agent.name)


def _delete_status(plugin: Plugin, name: str) -> None:
    """Delete the status of an agent that ends, in a store that does not do so itself."""
    try:
        plugin.delete(STATUS + name)
    except DatasyncError as error:
        print(f"{name}: the status was not deleted: {error}", file=sys.stderr)


def run(url: str) -> None:
    """Run an agent on *url* until a signal."""
    print("network-agent: press Ctrl-C to end", flush=True)
    follow(url)
    print("network-agent: ended", flush=True)


if __name__ == "__main__":
    launch(run, "URL")
