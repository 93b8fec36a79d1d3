"""A network agent: watches interfaces and routes, applies them, and answers each event.

    python -m datasync.examples.agent sqlite:network.db

It runs until Ctrl-C or SIGTERM. Meanwhile, from another terminal:

    datasync put sqlite:network.db /vnf-agent/vpp1/config/interface/eth0 \
        '{"name":"eth0","enabled":true,"mtu":1500,"ip_addresses":["192.0.2.1/24"]}'

and again with another ``mtu``, or with one of 20000, which it refuses.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
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
    ProtoWatchResp,
    ResyncEvent,
    with_client_lifetime_ttl,
)
from datasync.examples.dataplane import INTERFACES, ROUTES, Dataplane, Item, Refused, new_item
from datasync.examples.netconf_pb2 import AgentStatus
from datasync.keyval import connect
from datasync.kvdbsync import Plugin
from datasync.kvdbsync.servicelabel import agent_prefix
from datasync.runtime.threads import Worker

#: What the keys of agents' own reports start with.
STATUS = "status/"
#: What ends the agent.
ENDING = {signal.SIGINT, signal.SIGTERM}


@dataclass(frozen=True)
class Difference:
    """One key: what it was and what it is to be; None: not there."""

    key: str
    old: Item | None
    new: Item | None


@dataclass
class Report:
    """How one event was handled: what it asked for, and what was refused, by key."""

    event: str
    revision: int
    differences: list[Difference] = field(default_factory=list)
    #: Keys of a RESYNC that the dataplane had already.
    same: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)


class NetworkAgent:
    """Keeps *dataplane* in step with what *watcher* delivers.

    Args:
      watcher: Any transport, or several as ``KVProtoWatchers``.
      report: Called after each event was applied or refused, before it is answered.

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
        # One queue for both kinds: they come in the order in which they are to be handled.
        self._events: Queue[ResyncEvent | ChangeEvent | None] = Queue()

    def run(self) -> None:
        """Handle events until ``stop``."""
        with self._watcher.watch(self.name, self._events, self._events, INTERFACES, ROUTES):
            while (event := self._events.get()) is not None:
                self._handle(event)

    def stop(self) -> None:
        """Let ``run`` return, after the event that it is at."""
        self._events.put(None)

    def _handle(self, event: ResyncEvent | ChangeEvent) -> None:
        """Whatever happens, the event is answered: the watcher waits for it, and so may a caller."""
        error: Exception | None = None
        try:
            report = self._resync(event) if isinstance(event, ResyncEvent) else self._change(event)
            if report.refused:
                error = Refused(report.refused)
            self._count(report)
            self._report(report)
        except Exception as failure:
            error = failure
            print(f"{self.name}: {failure!r}", file=sys.stderr)
        event.done(error)

    def _resync(self, event: ResyncEvent) -> Report:
        """The full state: make the dataplane equal to it, as far as it can be."""
        wanted: dict[str, Item] = {}
        unreadable: dict[str, str] = {}
        for pairs in event.get_values().values():
            for pair in pairs:
                item = _read(pair, unreadable)
                if item is not None:
                    wanted[pair.get_key()] = item
        before = self.dataplane.items
        refused = self.dataplane.apply_what_fits(wanted, unreadable)
        after = self.dataplane.items
        differences = [
            Difference(key, before.get(key), after.get(key))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
        same = sum(before.get(key) == item for key, item in after.items())
        return Report(f"RESYNC ({event.reason.value})", event.revision, differences, same, refused)

    def _change(self, event: ChangeEvent) -> Report:
        """Some keys: apply all of them or none. After a refusal comes a RESYNC, which sorts good from bad."""
        unreadable: dict[str, str] = {}
        changes = event.get_changes()
        differences = [Difference(change.get_key(), _previous(change), _read(change, unreadable)) for change in changes]
        items = dict(self.dataplane.items)
        for difference in differences:
            items.pop(difference.key, None)
            if difference.new is not None:
                items[difference.key] = difference.new
        revision = max(change.get_revision() for change in changes)
        report = Report("CHANGE", revision, differences, refused=unreadable)
        if not unreadable:
            try:
                self.dataplane.apply(items)
            except Refused as refusal:
                report.refused = refusal.problems
        return report

    def _count(self, report: Report) -> None:
        status = self.status
        status.event, status.revision = report.event, report.revision
        status.refused.clear()
        status.refused.update(report.refused)
        status.changes += report.event == "CHANGE"
        status.resyncs += report.event != "CHANGE"
        status.refusals += bool(report.refused)


def print_report(report: Report) -> None:
    """One line for the event, one for each key."""
    print(f"{report.event} at revision {report.revision}", flush=True)
    for line in describe(report):
        print(f"  {line}", flush=True)


def describe(report: Report) -> list[str]:
    """What is new (+), gone (-), other (~) and refused (!), a line each."""
    lines = []
    for difference in report.differences:
        sign = "+" if difference.old is None else "-" if difference.new is None else "~"
        lines.append(f"{sign} {difference.key}  {told(difference)}")
    if report.same:
        lines.append(f"= {report.same} as before")
    return lines + [f"! {key}  refused: {problem}" for key, problem in report.refused.items()]


def told(difference: Difference) -> str:
    """The fields that changed as ``name old → new``; all fields where only one side is there."""
    old, new = fields_of(difference.old), fields_of(difference.new)
    if difference.old is None or difference.new is None:
        return " ".join(f"{name}={value}" for name, value in {**old, **new}.items())
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}" for name in names) or "as it was"


def fields_of(item: Message | None) -> dict[str, str]:
    """The fields as text, without the first one, which the key has already, and without empty ones."""
    if item is None:
        return {}
    texts = {name: _text(getattr(item, name)) for name in list(item.DESCRIPTOR.fields_by_name)[1:]}
    return {name: text for name, text in texts.items() if text}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, str)) else ", ".join(value)


def _read(pair: KeyVal | ProtoWatchResp, unreadable: dict[str, str]) -> Item | None:
    """The value, None for a delete; one that cannot be read is noted and stops nothing else."""
    if isinstance(pair, ProtoWatchResp) and pair.get_change_type() is Op.DELETE:
        return None
    try:
        return pair.get_value(new_item(pair.get_key()))
    except DecodeError as error:
        unreadable[pair.get_key()] = str(error)
        return None


def _previous(change: ProtoWatchResp) -> Item | None:
    item = new_item(change.get_key())
    try:
        return item if change.get_prev_value(item) else None
    except DecodeError:
        return None  # an unreadable value before this one: it was refused then


def follow(
    url: str,
    label: str | None = None,
    *,
    dataplane: Dataplane | None = None,
    report: Callable[[Report], object] = print_report,
) -> None:
    """Run an agent on the store at *url* until SIGINT or SIGTERM; it writes its status into the store."""
    block_signals()
    with connect(url) as store, Plugin(kv=store, prefix=agent_prefix(label)) as plugin:

        def tell(handled: Report) -> None:
            report(handled)
            try:
                plugin.put(STATUS + agent.name, agent.status, with_client_lifetime_ttl())
            except DatasyncError as error:  # the event was handled all the same
                print(f"{agent.name}: the status was not written: {error}", file=sys.stderr)

        agent = NetworkAgent(plugin, dataplane, report=tell)
        worker = Worker("examples-agent", lambda _: agent.run(), wake=agent.stop)
        worker.start()
        signal.sigwait(ENDING)
        worker.close()


def block_signals() -> None:
    """Leave SIGINT and SIGTERM to ``sigwait``: a handler could not put on a queue that it interrupts.

    To be called before the first thread starts, because threads inherit what is blocked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m datasync.examples.agent URL, as in sqlite:network.db", file=sys.stderr)
        return 2
    return run(arguments[0])


def run(url: str) -> int:
    """Follow *url* until a signal, and say what became of it; the exit code."""
    print("network-agent: Ctrl-C ends it", flush=True)
    try:
        follow(url)
    except DatasyncError as error:
        print(f"agent: {error}", file=sys.stderr)
        return 1
    print("network-agent: ended", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
