"""``datasync demo``: two processes on one SQLite file, or on the store that ``--store`` names.

This process writes a network configuration. The other one is the agent of ``datasync.examples.agent``. The agent
acknowledges through its status, a key with the agent's lifetime. The demo checks every step itself.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datasync.cli.console import make_console
from datasync.cli.story import Story
from datasync.errors import InvalidArgumentError
from datasync.events import ChangeEvent, Op, ResyncEvent
from datasync.examples.agent import AGAIN, CHANGE, STATUS
from datasync.examples.dataplane import INTERFACES, ROUTES
from datasync.examples.netconf_pb2 import AgentStatus, Interface, Route
from datasync.keyval.kvproto import ProtoTxn, ProtoWrapper
from datasync.keyval.types import Capability
from datasync.keyval.urls import connect
from datasync.kvdbsync.plugin import Plugin
from datasync.kvdbsync.servicelabel import agent_prefix
from datasync.options import with_prefix
from datasync.runtime.closing import Closable

#: Seconds after which the demo fails; it takes four on an idle machine, and must not fail on a busy one.
TIME_LIMIT = 30.0
#: The same on a store of the user's, where the status of a killed agent may need long to expire.
STORE_TIME_LIMIT = 90.0
#: Seconds until the status of a killed agent expires.
SESSION_TTL = 1.5
#: The agent of the demo.
LABEL = "vpp1"

_AGENT = ("-m", "datasync", "demo", "--agent")


class DemoError(Exception):
    """A step of the demo did not happen as expected."""


class AgentProcess:
    """The other process."""

    def __init__(self, url: str, dataplane: Path) -> None:
        command = [sys.executable, *_AGENT, url, str(dataplane)]
        # When this process ends, so does the agent's standard input, and then the agent.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        self.pid = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End the process without a chance to clean up."""
        self._process.kill()
        self._reap()

    def stop(self) -> int:
        """Ask the process to end, and return its exit code."""
        self._process.terminate()
        try:
            return self._reap()
        except subprocess.TimeoutExpired:
            self.kill()
            raise DemoError("the agent did not end within 3 s of SIGTERM") from None

    def _reap(self) -> int:
        code = self._process.wait(3.0)
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code


class StatusMonitor:
    """The agent's status as this process receives it, through the library too."""

    def __init__(self, plugin: Plugin) -> None:
        self._events: queue.Queue[ResyncEvent | ChangeEvent] = queue.Queue()
        plugin.watch("demo", self._events, self._events, STATUS)
        self.last = AgentStatus()
        self.present = False

    def next(self, timeout: float) -> None:
        """Handle the next event, if one arrives within *timeout* seconds."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return
        if isinstance(event, ResyncEvent):
            for pairs in event.get_values().values():
                for pair in pairs:
                    self.present = True
                    pair.get_value(self.last)
        else:
            for change in event.get_changes():
                self.present = change.get_change_type() is Op.PUT
                if self.present:
                    change.get_value(self.last)
        event.done()


class Demo(Closable):
    """The parts of the demo. A context manager that leaves no process behind."""

    def __init__(self, console: Console, folder: Path, url: str = "") -> None:
        self._limit = STORE_TIME_LIMIT if url else TIME_LIMIT
        self._deadline = time.monotonic() + self._limit
        self._story = Story(console, "writer")
        self._url = url or f"sqlite://{folder}/network.db?session_ttl={SESSION_TTL}"
        self._dataplane = folder / "dataplane.json"
        self._store = connect(self._url)
        self._broker = ProtoWrapper(self._store).new_broker(agent_prefix(LABEL))
        try:
            self._check_free()
        except BaseException:
            self._store.close()
            raise
        self._plugin = Plugin(kv=self._store, prefix=agent_prefix(LABEL))
        self._plugin.after_init()
        self._statuses = StatusMonitor(self._plugin)
        self._has_lease = Capability.LEASE in self._store.capabilities
        # Process and number of its events at the last write, for a store whose revisions two processes count apart.
        self._handled = (0, 0)
        self._agent: AgentProcess | None = None
        self.totals: Counter[str] = Counter()
        self.passed: list[str] = []

    def close(self) -> None:
        """End the agent and close the store."""
        if self._agent is not None:
            self._agent.kill()
        self._plugin.close()
        try:
            self._store.new_broker().delete(agent_prefix(LABEL), with_prefix())  # the store may be the user's
        finally:
            self._store.close()

    def _check_free(self) -> None:
        """Raise unless there are no keys where the demo writes, so that it deletes none of the user's at the end."""
        if next(iter(self._broker.list_keys()), None) is not None:
            raise InvalidArgumentError(
                f"{self._store.name} has keys under {agent_prefix(LABEL)!r}, where the demo writes: name another store"
            )

    def run(self) -> None:
        """Run all parts in order. Raises ``DemoError`` at the first unexpected result."""
        self.first_resync()
        self.change_with_previous_value()
        self.transaction()
        self.rejection()
        self.kill_and_restart()
        self.clean_end()

    def first_resync(self) -> None:
        self._story.title("1  The configuration exists before the agent: the agent starts with a RESYNC")
        revision = self._write(
            "add 2 interfaces and 1 route",
            self._txn()
            .put(INTERFACES + "eth0", _interface("eth0", "uplink", 1500, "192.0.2.10/24"))
            .put(INTERFACES + "eth1", _interface("eth1", "rack 1", 1500, "10.1.0.1/16", "2001:db8:1::1/64"))
            .put(ROUTES + "0.0.0.0/0", _route("0.0.0.0/0", "192.0.2.1", "eth0")),
        )
        self._start_agent()
        status = self._wait_acknowledged(revision, "RESYNC (initial)")
        self._check("the first event is a RESYNC with all keys", status.resyncs == 1 and not status.rejected)

    def change_with_previous_value(self) -> None:
        self._story.title("2  One key changes: the agent receives a CHANGE with the previous value")
        changed = _interface("eth1", "rack 1", 9000, "10.1.0.1/16", "2001:db8:1::1/64")
        revision = self._write("set the mtu of eth1 to 9000", self._txn().put(INTERFACES + "eth1", changed))
        status = self._wait_acknowledged(revision, CHANGE)
        self._check("a change is applied and acknowledged", not status.rejected)

    def transaction(self) -> None:
        self._story.title("3  Several keys change in one transaction: one CHANGE, applied as a whole")
        revision = self._write(
            "add an interface and a route through it, delete the default route",
            self._txn()
            .put(INTERFACES + "eth2", _interface("eth2", "storage", 9000, "10.2.0.1/16"))
            .put(ROUTES + "10.64.0.0/12", _route("10.64.0.0/12", "10.2.0.254", "eth2"))
            .delete(ROUTES + "0.0.0.0/0"),
        )
        changes = self._statuses.last.changes
        status = self._wait_acknowledged(revision, CHANGE)
        self._check("a transaction is one event", status.changes == changes + 1 and not status.rejected)

    def rejection(self) -> None:
        self._story.title("4  The agent rejects a key: other changes go on, and the key comes again by itself")
        key = ROUTES + "203.0.113.0/24"
        revision = self._write(
            "add a route through eth7, which does not exist",
            self._txn().put(key, _route("203.0.113.0/24", "198.51.100.254", "eth7")),
        )
        status = self._wait_acknowledged(revision, CHANGE)
        self._check("a rejected change is reported with the agent's error", "eth7" in status.rejected.get(key, ""))
        changed = _interface("eth1", "rack 1", 1500, "10.1.0.1/16", "2001:db8:1::1/64")
        revision = self._write("set the mtu of eth1 to 1500", self._txn().put(INTERFACES + "eth1", changed))
        status = self._wait_acknowledged(revision, CHANGE)
        self._check("a rejected key holds back no other", list(status.rejected) == [key])
        added = _interface("eth7", "the missing one", 1500, "198.51.100.1/24")
        revision = self._write("add eth7, and leave the route as it is", self._txn().put(INTERFACES + "eth7", added))
        self._wait_acknowledged(revision, CHANGE)
        self._wait(lambda: not status.rejected, "the route is delivered again")
        self._story.say(f"done: {key} was delivered again by itself", "green")
        self._check("a rejected key is delivered again by itself", status.event == AGAIN)

    def kill_and_restart(self) -> None:
        self._story.title("5  The agent is killed, the configuration changes, the agent restarts")
        assert self._agent is not None
        killed, self._agent = self._agent, None
        killed.kill()
        self._total()
        self._story.say(f"SIGKILL to process {killed.pid}")
        revision = self._write(
            "meanwhile: change eth0, add eth3, delete eth2 and its route",
            self._txn()
            .put(INTERFACES + "eth0", _interface("eth0", "uplink", 1400, "192.0.2.10/24"))
            .put(INTERFACES + "eth3", _interface("eth3", "rack 2", 1500, "10.3.0.1/16"))
            .delete(INTERFACES + "eth2")
            .delete(ROUTES + "10.64.0.0/12"),
        )
        if self._has_lease:
            self._wait(lambda: not self._statuses.present, "the status of the killed agent expires")
            self._story.say("the status of the killed agent has expired")
            self._check("a client-lifetime key expires with its client", not self._statuses.present)
        else:
            self._story.say("the status of the killed agent stays: this store has no client-lifetime keys")
        self._start_agent()
        status = self._wait_acknowledged(revision, "RESYNC (initial)")
        self._check("the restarted agent receives what it missed", status.resyncs == 1 and not status.rejected)
        disabled = Interface(name="eth3", description="rack 2", mtu=1500, ip_addresses=["10.3.0.1/16"])
        revision = self._write("disable eth3", self._txn().put(INTERFACES + "eth3", disabled))
        status = self._wait_acknowledged(revision, CHANGE)
        self._check("the restarted agent receives further changes", status.changes == 1 and not status.rejected)

    def clean_end(self) -> None:
        self._story.title("6  The agent ends cleanly")
        assert self._agent is not None
        self._total()
        asked, self._agent = self._agent, None
        code = asked.stop()
        self._wait(lambda: not self._statuses.present, "the agent deletes its status")
        self._story.say(f"SIGTERM: the agent ended with exit code {code} and deleted its status")
        self._check("the agent ends cleanly", code == 0)

    def _start_agent(self) -> None:
        self._agent = AgentProcess(self._url, self._dataplane)
        self._story.say(f"starts the agent: process {self._agent.pid}")

    def _txn(self) -> ProtoTxn:
        return self._broker.new_txn()

    def _write(self, what: str, txn: ProtoTxn) -> int:
        status = self._statuses.last
        self._handled = (status.pid, status.resyncs + status.changes)
        revision = txn.commit().revision
        self._story.say(f"writes revision {revision}: {what}")
        return revision

    def _wait_acknowledged(self, revision: int, event: str) -> AgentStatus:
        """Wait until the agent has acknowledged *revision*, and check the kind of the event."""
        started = time.monotonic()
        status = self._statuses.last
        before = set(status.rejected)
        self._wait(
            lambda: (
                self._statuses.present
                and self._agent is not None
                and status.pid == self._agent.pid
                and self._has_handled(status, revision)
            ),
            f"the agent acknowledges revision {revision}",
        )
        waited = f"after {time.monotonic() - started:.2f} s"
        rejected = {key: problem for key, problem in status.rejected.items() if key not in before}
        for key, problem in rejected.items():
            self._story.say(f"rejected by process {status.pid} {waited}: {key}: {problem}", "red")
        if not rejected:
            self._story.say(f"done: applied up to revision {status.revision} by process {status.pid} {waited}", "green")
        if not status.event.startswith(event):  # it may have been delivered again meanwhile
            raise DemoError(f"expected the agent to handle a {event}, but it handled a {status.event}")
        return status

    def _has_handled(self, status: AgentStatus, revision: int) -> bool:
        """Return True if the agent has handled *revision*, as far as this process can know."""
        if Capability.REVISION in self._store.capabilities:
            return status.revision >= revision
        pid, events = self._handled
        return status.resyncs + status.changes > (events if status.pid == pid else 0)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise DemoError(f"timeout after {self._limit:.0f} s, still waiting for: {what}")
            code = None if self._agent is None else self._agent.exit_code
            if code is not None:
                raise DemoError(f"the agent ended with exit code {code}, still waiting for: {what}")
            self._statuses.next(min(remaining, 0.2))

    def _check(self, sentence: str, passed: bool) -> None:
        if not passed:
            raise DemoError(f"check failed: {sentence}")
        self.passed.append(sentence)

    def _total(self) -> None:
        status = self._statuses.last
        self.totals.update(resyncs=status.resyncs, changes=status.changes, rejections=status.rejections)


def run(url: str = "") -> int:
    """Run the demo on the store at *url*, or on a new SQLite file. Returns 0 if every step happened as expected."""
    console = make_console()
    started = time.monotonic()
    # The URL may have a password: its scheme says enough.
    shared = f"one {url.partition(':')[0]}: store" if url else "one SQLite file"
    console.print(Text(f"datasync demo: a writer and an agent share {shared}", "bold"), soft_wrap=True)
    with _temporary_folder() as folder, Demo(console, Path(folder), url) as demo:
        failure: DemoError | None = None
        try:
            demo.run()
        except DemoError as error:
            failure = error
    _summary(console, demo, failure, time.monotonic() - started)
    return 0 if failure is None else 1


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="datasync-demo-")
    except OSError as error:
        raise OSError("cannot create a temporary folder: set TMPDIR to a writable folder") from error


def _summary(console: Console, demo: Demo, failure: DemoError | None, seconds: float) -> None:
    table = Table(box=SIMPLE_HEAD, show_header=False, pad_edge=False, show_edge=False)
    for sentence in demo.passed:
        table.add_row(Text("ok", "green"), sentence)
    if failure is not None:
        table.add_row(Text("FAILED", "bold red"), str(failure))
    console.print(Text("\nSummary", "bold"))
    console.print(table)
    totals = demo.totals
    console.print(
        f"{totals['resyncs']} RESYNCs, {totals['changes']} CHANGEs, {totals['rejections']} rejected,"
        f" {len(demo.passed)} checks {'passed' if failure is None else 'passed before the failure'}, {seconds:.1f} s",
        soft_wrap=True,
    )


def _interface(name: str, description: str, mtu: int, *addresses: str) -> Interface:
    return Interface(name=name, description=description, enabled=True, mtu=mtu, ip_addresses=addresses)


def _route(destination: str, next_hop: str, out_interface: str) -> Route:
    return Route(destination=destination, next_hop=next_hop, out_interface=out_interface, metric=10)
