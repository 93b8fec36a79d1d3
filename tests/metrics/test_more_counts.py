"""Metrics of mirrors, of values that do not decode, and of the time that keys wait (contract C22)."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from queue import Queue
from typing import Any

import prometheus_client
import pytest

from datasync import Plugin, Reconciler, View, codecs, connect
from datasync.errors import DecodeError
from datasync.metrics.names import MIRROR_STATES
from datasync.metrics.prometheus import PrometheusMonitor
from datasync.runtime import monitoring
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registry import Registry
from datasync.tools.mirror.mirror import PrefixMirror
from datasync.tools.mirror.status import MirrorState
from tests.conftest import take, wait_until
from tests.metrics.support import samples


def scrape(monitor: PrometheusMonitor) -> dict[str, float]:
    return samples(prometheus_client.generate_latest(monitor.registry).decode())


def test_c22_a_mirror_shows_its_state_its_lag_and_what_it_wrote(monitor: PrometheusMonitor) -> None:
    with connect("memory://") as source, connect("memory://") as destination:
        broker = source.new_broker("a/")
        broker.put("one", b"1")
        broker.put("two", b"2")
        mirror = PrefixMirror(source, destination, "a/", "b/", delete=True, max_delete=1)
        label = f'name="{mirror.name}"'
        with mirror:
            # given a mirror that is in sync
            mirror.wait_copied(30)
            wait_until(lambda: mirror.status().state is MirrorState.SYNCED, "the mirror is in sync")
            found = scrape(monitor)
            assert mirror.name.endswith(" b/")
            assert found[f'datasync_mirror_state{{{label},state="synced"}}'] == 1
            assert found[f'datasync_mirror_keys_total{{{label},op="put"}}'] == 2
            assert found[f'datasync_mirror_keys_total{{{label},op="delete"}}'] == 0
            assert found[f"datasync_mirror_lag_revisions{{{label}}}"] == 0
            assert found[f"datasync_mirror_lag_seconds{{{label}}}"] == 0
            status = mirror.status()
            assert found[f"datasync_mirror_in_sync_since_timestamp_seconds{{{label}}}"] == status.in_sync_since
            assert found[f"datasync_mirror_applied_timestamp_seconds{{{label}}}"] == status.applied_at
            assert found[f"datasync_held_deletes{{{label}}}"] == 0
            # when it has written nothing for a pause
            mirror.pause()
            broker.delete("one")
            wait_until(lambda: mirror.status().lag_revisions > 0, "the source is ahead")
            found = scrape(monitor)
            assert found[f'datasync_mirror_state{{{label},state="paused"}}'] == 1
            assert found[f"datasync_mirror_lag_revisions{{{label}}}"] == 1
            # and goes on
            mirror.resume()
            wait_until(lambda: mirror.status().deletes == 1, "the delete was copied")
            wait_until(lambda: mirror.status().state is MirrorState.SYNCED, "the mirror is in sync again")
            assert scrape(monitor)[f'datasync_mirror_keys_total{{{label},op="delete"}}'] == 1
        # then a mirror that was closed is not shown
        assert not [name for name in scrape(monitor) if name.startswith("datasync_mirror_state") and label in name]


def test_the_states_of_a_mirror_are_those_of_its_status() -> None:
    assert tuple(state.value for state in MirrorState) == MIRROR_STATES


def test_c22_values_that_do_not_decode_are_counted(monitor: PrometheusMonitor) -> None:
    # given the counter, which is there with 0
    assert scrape(monitor)["datasync_decode_errors_total"] == 0
    with Registry("north", codec=codecs.json) as registry:
        registry.submit_changes({"a/1": ChangeBytes("a/1", b"no json")})
        # when a view, and a subscriber of its own, read a bad value
        with View(registry, "a/") as view:
            registry.submit_changes({"a/2": ChangeBytes("a/2", b"no json")})
            wait_until(lambda: "2" in str(view.problems), "the view has read it")
            seen = scrape(monitor)["datasync_decode_errors_total"]
            assert seen >= 1
        events: Queue[Any] = Queue()
        registry.watch("agent", events, events, "a/")
        take(events).done()  # the state so far
        registry.submit_changes({"a/3": ChangeBytes("a/3", b"no json")})
        event = take(events)
        with pytest.raises(DecodeError):
            _ = event.get_changes()[0].value
        event.done()
        # then both count
        assert scrape(monitor)["datasync_decode_errors_total"] == seen + 1


@dataclass
class Limits:
    rate: int = 0


def test_c22_unknown_fields_are_counted(monitor: PrometheusMonitor) -> None:
    codec = codecs.typed(Limits, unknown="ignore")
    assert scrape(monitor)["datasync_unknown_fields_total"] == 0
    for _ in range(2):
        assert codec.decode(b'{"rate": 1, "burst": 2}') == Limits(1)
    assert scrape(monitor)["datasync_unknown_fields_total"] == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()")
def test_c14_a_child_counts_for_itself_although_a_thread_of_its_parent_was_counting(monitor: PrometheusMonitor) -> None:
    held, over = threading.Event(), threading.Event()

    def count_slowly() -> None:
        with monitoring._lock:
            held.set()
            over.wait(30)

    monitoring.count("decode_errors")
    thread = threading.Thread(target=count_slowly)
    thread.start()
    assert held.wait(30)
    child = os.fork()
    if not child:
        monitoring.count("decode_errors")
        os._exit(int(scrape(monitor)["datasync_decode_errors_total"] != 1))
    over.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_c22_the_wait_of_a_key_and_the_work_on_it_are_timed(monitor: PrometheusMonitor) -> None:
    began, go = threading.Event(), threading.Event()

    def apply(key: str, value: Any, previous: Any) -> None:
        if key == "one":
            began.set()
            assert go.wait(30)

    with connect("memory://") as store, Plugin(store, codec=codecs.json) as plugin:
        # given a worker that is busy, and a key that waits for it
        plugin.put("one", 1)
        with Reconciler(plugin, "agent", apply=apply) as reconciler:
            assert began.wait(30)
            plugin.put("two", 2)
            depth = 'datasync_queue_depth{class="live",name="agent"}'
            wait_until(lambda: scrape(monitor)[depth] == 1, "the key waits")
            found = scrape(monitor)
            assert found['datasync_queue_duration_seconds_count{name="agent"}'] == 1
            running = found['datasync_unfinished_work_seconds{name="agent"}']
            assert running > 0
            # when the worker is free
            go.set()
            reconciler.wait_synced(timeout=30)
        # then both waited and both were worked on, the second one at least while the first was running
        found = scrape(monitor)
        assert found['datasync_queue_duration_seconds_count{name="agent"}'] == 2
        assert found['datasync_work_duration_seconds_count{name="agent"}'] == 2
        assert found['datasync_work_duration_seconds_sum{name="agent"}'] >= running
        assert found['datasync_queue_duration_seconds_sum{name="agent"}'] > 0
