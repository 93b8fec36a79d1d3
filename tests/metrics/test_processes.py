"""Metrics of processes that fork, and share their figures (contract C15, C22). Each runs as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENT
from tests.metrics.support import samples

pytest.importorskip("prometheus_client")

COUNT_ONE = """
from queue import Queue
from datasync.syncbase.change import ChangeBytes

def count_one(registry):
    events = Queue()
    registry.watch("agent", events, events, "")
    future = registry.submit_changes({"k": ChangeBytes("k", b"1")})
    events.get(timeout=30).done()
    future.result(30)
"""


def run(program: str, folder: Path | None) -> str:
    """What *program* printed; *folder* is for the files of the multiprocess mode."""
    extra = {} if folder is None else {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
        timeout=PATIENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shared", [False, True])
def test_c22_the_default_registry_of_a_forked_child_is_counted(shared: bool, tmp_path: Path) -> None:
    # given metrics that were installed, and the default registry, before the fork / when the child uses the new one
    program = """
import os
from datasync import metrics
import datasync.kvdbsync.local as local
monitor = metrics.install()
child = os.fork()
if child == 0:
    count_one(local.DEFAULT_REGISTRY)
    print(monitor.exposition("")[1].decode(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    found = samples(run(COUNT_ONE + program, tmp_path if shared else None))
    # then its changes are counted
    assert found['datasync_events_total{result="ok",source="local"}'] == 1


def test_c22_a_source_that_was_closed_is_not_shown_as_lost_by_several_processes(tmp_path: Path) -> None:
    # given a process that reads a store, and another one that has closed it
    program = """
import os
from queue import Queue
from datasync import Plugin, connect, metrics
monitor = metrics.install()

def read():
    store = connect("memory://one")
    events = Queue()
    plugin = Plugin(store)
    plugin.watch("agent", events, events, "")
    plugin.after_init()
    plugin.wait_ready(30)
    monitor.copy()
    return plugin

child = os.fork()
if child == 0:
    read().close()
    monitor.copy()
    monitor.close()
    print(monitor.exposition("")[1].decode(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("both", flush=True)
plugin = read()
print(monitor.exposition("")[1].decode(), flush=True)
plugin.close()
"""
    # The order of the metrics is that of the folder: any of them may come first in the second half.
    alone, both = run(program, tmp_path).split("\nboth\n")
    # then nothing about it reads as if it were lost
    one, two = samples(alone), samples(both)
    assert one['datasync_source_up{source="memory://one"}'] == float("inf")
    assert one['datasync_source_last_contact_timestamp_seconds{source="memory://one"}'] == float("inf")
    assert one['datasync_source_state{source="memory://one",state="ready"}'] == 0
    assert two['datasync_source_up{source="memory://one"}'] == 1


def test_c22_the_oldest_rejection_of_several_processes_is_shown(tmp_path: Path) -> None:
    # given three processes, of which two have keys that were rejected at different times
    program = """
import os
from datasync import metrics
from datasync.metrics import prometheus
monitor = metrics.install()
for seconds in (2000.0, 1000.0, 0.0):
    child = os.fork()
    if child == 0:
        prometheus.gauges = lambda: [("oldest_rejected_timestamp_seconds", ("north",), seconds)]
        monitor.copy()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
prometheus.gauges = lambda: []
print(monitor.exposition("")[1].decode(), flush=True)
"""
    found = samples(run(program, tmp_path))
    assert found['datasync_oldest_rejected_timestamp_seconds{source="north"}'] == 1000


def test_c22_what_a_process_counted_last_is_there_when_it_has_ended(tmp_path: Path) -> None:
    # given a process that ends right after a change / when another one is asked
    program = """
from datasync import metrics
from datasync.metrics import prometheus
from datasync.syncbase.registry import Registry
prometheus.COPY_INTERVAL = 1000.0
metrics.install()
count_one(Registry("north"))
"""
    run(COUNT_ONE + program, tmp_path)
    text = run('from datasync import metrics; print(metrics.install().exposition("")[1].decode())', tmp_path)
    # then the change is counted
    assert samples(text)['datasync_events_total{result="ok",source="north"}'] == 1


def test_c15_a_fork_while_a_view_is_opened_does_not_hang(tmp_path: Path) -> None:
    # given a thread that opens a view, which makes a registry, while another one forks
    program = """
import os, threading, time
import datasync.consumer.view.opened as opened
from datasync import metrics
from datasync.syncbase.registry import Registry
monitor = metrics.install()
inside = threading.Event()

def forking():
    if monitor._lock.acquire(blocking=False):
        monitor._lock.release()
        return False
    return True

def opening():
    with opened._lock:
        inside.set()
        patience = time.monotonic() + 1.0
        while not forking() and time.monotonic() < patience:
            pass
        Registry("made while it forks").close()

thread = threading.Thread(target=opening, daemon=True)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join(30)
print("over")
"""
    assert "over" in run(program, tmp_path)


def test_c22_a_reconciler_that_was_closed_has_no_workers_in_several_processes(tmp_path: Path) -> None:
    # given a process that had a reconciler and goes on without it / when it is scraped
    program = """
from datasync import Reconciler, codecs, metrics
from datasync.syncbase.registry import Registry
monitor = metrics.install()
with Registry("local") as registry:
    with Reconciler(registry, "agent", "a/", apply=print, codec=codecs.json):
        monitor.copy()
    print(monitor.exposition("")[1].decode(), flush=True)
"""
    found = samples(run(program, tmp_path))
    # then nobody takes it for one without a leader
    assert found['datasync_leader{name="agent"}'] == 0
    assert found['datasync_max_workers{name="agent"}'] == 0
