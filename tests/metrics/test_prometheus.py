"""Metrics of one process (contract C22)."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

import prometheus_client
import pytest

from datasync import Permanent, Plugin, Reconciler, RetryAfter, View, codecs, connect, metrics, open_view
from datasync.errors import InvalidArgumentError, Rejected, StoreConnectionError
from datasync.metrics.names import METRICS
from datasync.metrics.prometheus import PrometheusMonitor
from datasync.runtime import monitoring
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registry import Registry
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.metrics.support import samples


def scrape(monitor: PrometheusMonitor) -> dict[str, float]:
    return samples(prometheus_client.generate_latest(monitor.registry).decode())


def change(registry: Registry, key: str, value: bytes = b"1") -> Any:
    return registry.submit_changes({key: ChangeBytes(key, value)})


def test_c22_a_change_is_counted_and_timed_from_its_arrival_to_its_acknowledgement(monitor: PrometheusMonitor) -> None:
    # given a source with a subscriber
    events: Queue[Any] = Queue()
    with Registry("north") as registry, registry.watch("agent", events, events, "a/"):
        # then its counters are there before anything happens
        found = scrape(monitor)
        assert found['datasync_events_total{result="ok",source="north"}'] == 0
        assert found['datasync_resyncs_total{reason="initial",source="north"}'] == 0
        # when one change is accepted and another one rejected
        for key, error in (("a/1", None), ("a/2", ValueError("no"))):
            future = change(registry, key)
            take(events).done(error)
            future.exception(5)
        # then each is counted, and the accepted one is timed
        found = scrape(monitor)
        assert found['datasync_events_total{result="ok",source="north"}'] == 1
        assert found['datasync_events_total{result="failed",source="north"}'] == 1
        assert found['datasync_propagation_seconds_count{source="north"}'] == 1
        assert 0 < found['datasync_propagation_seconds_sum{source="north"}'] < 30
        assert found['datasync_propagation_seconds_bucket{le="+Inf",source="north"}'] == 1
        # and a second scrape counts nothing twice
        assert scrape(monitor)['datasync_events_total{result="ok",source="north"}'] == 1
        assert found['datasync_source_keys{source="north"}'] == 2
        assert found['datasync_source_bytes{source="north"}'] == 2
        assert found['datasync_rejected_keys{source="north"}'] == 1
        assert found['datasync_subscription_rejected_keys{name="agent",source="north"}'] == 1
        assert found['datasync_subscriptions{source="north",state="failing"}'] == 1


def test_c22_what_waits_in_a_queue_counts_from_its_arrival(monitor: PrometheusMonitor) -> None:
    # given a change that waits behind another one
    events: Queue[Any] = Queue()
    with Registry("north") as registry, registry.watch("agent", events, events, "a/"):
        first, second = change(registry, "a/1"), change(registry, "a/2")
        event = take(events)
        assert scrape(monitor)['datasync_pending_changes{source="north"}'] == 1
        came = event.put_at
        event.done()
        # when it is put later, and accepted
        last = take(events)
        assert last.first.came_at <= last.put_at
        assert last.first.came_at - came < last.put_at - came + 1e-9
        last.done()
        first.result(PATIENT), second.result(PATIENT)
        assert scrape(monitor)['datasync_propagation_seconds_count{source="north"}'] == 2


def test_c22_a_source_that_is_lost_and_back_shows_it(monitor: PrometheusMonitor) -> None:
    # given a source that was read
    with Registry("west", sourced=True) as registry:
        assert 'datasync_source_state{source="west",state="ready"}' not in scrape(monitor)
        registry.feed_snapshot(7, {}, next(iter(_reasons())))
        before = scrape(monitor)
        # when it is lost
        registry.source_lost(StoreConnectionError("gone"))
        # then its state says so, with the time of the last contact
        found = scrape(monitor)
        assert found['datasync_source_up{source="west"}'] == 0
        assert found['datasync_source_state{source="west",state="stale"}'] == 1
        contact = 'datasync_source_last_contact_timestamp_seconds{source="west"}'
        assert abs(found[contact] - before[contact]) < 0.1
        # when it is back
        registry.feed_snapshot(8, {}, next(iter(_reasons())))
        # then it is up, and the reconnect is counted with its reason
        found = scrape(monitor)
        assert found['datasync_source_up{source="west"}'] == 1
        assert found['datasync_source_last_revision{source="west"}'] == 8
        assert found['datasync_reconnects_total{reason="StoreConnectionError",source="west"}'] == 1
    # and nothing is left of it once it is closed
    assert not [name for name in scrape(monitor) if name.startswith("datasync_source") and '"west"' in name]


def _reasons() -> Any:
    from datasync.events import ResyncReason

    return ResyncReason


def test_c22_a_store_counts_its_listings_and_streams(monitor: PrometheusMonitor) -> None:
    with connect("memory://") as store, Plugin(store, codec=codecs.json, name="plant") as plugin:
        plugin.wait_ready(30)
        wait_until(lambda: scrape(monitor).get('datasync_watches_total{source="plant"}') == 1, "it streams")
        found = scrape(monitor)
        assert found['datasync_lists_total{source="plant"}'] == 1
        assert found['datasync_list_duration_seconds_count{source="plant"}'] == 1


def test_c22_a_reconciler_counts_its_calls_by_result(monitor: PrometheusMonitor) -> None:
    # given calls that end in each way
    answers = {"ok": None, "later": RetryAfter(60), "bad": ValueError("no"), "never": Permanent("no")}

    def apply(key: str, value: Any, previous: Any) -> Any:
        answer = answers[key]
        if key == "later":
            return answer
        if answer is not None:
            raise answer
        return None

    with connect("memory://") as store, Plugin(store, codec=codecs.json) as plugin:
        for key in answers:
            plugin.put(key, 1)
        with Reconciler(plugin, "agent", apply=apply, workers=2):
            name = 'datasync_reconcile_total{name="agent",result='

            def counted() -> bool:
                found = scrape(monitor)
                return all(
                    found.get(f'{name}"{result}"}}', 0) >= 1
                    for result in ("success", "requeue_after", "rejected", "terminal")
                )

            wait_until(counted, "each result is counted")
            found = scrape(monitor)
            assert found['datasync_failing_keys{name="agent"}'] == 2
            assert found['datasync_max_workers{name="agent"}'] == 2
            assert found['datasync_leader{name="agent"}'] == 1
            assert found['datasync_queue_depth{class="retry",name="agent"}'] >= 0
            assert found['datasync_reconcile_duration_seconds_count{name="agent"}'] >= 4


def test_c22_deletes_that_are_held_are_shown(monitor: PrometheusMonitor) -> None:
    with Registry("north", sourced=True) as registry:
        reasons = _reasons()
        with View(registry, "overview", max_delete=1) as view:
            registry.feed_snapshot(1, {f"k{n}": (1, b"1") for n in range(5)}, reasons.INITIAL)
            wait_until(lambda: len(view) == 5, "the view has the keys")
            registry.feed_snapshot(2, {}, reasons.RECONNECTED)
            wait_until(lambda: len(view.held) == 5, "the deletes are held")
            found = scrape(monitor)
            assert found['datasync_held_deletes{name="overview"}'] == 5
            assert found['datasync_view_state{name="overview",state="ready"}'] == 1


def test_c22_the_views_of_a_process_have_the_names_of_their_prefixes(monitor: PrometheusMonitor) -> None:
    # given two views of one prefix, and one of another
    urls = [f"memory://{uuid4().hex}" for _ in range(2)]
    views = [open_view(urls[0], "flags/"), open_view(urls[1], "flags/"), open_view(urls[0], "limits/")]
    try:
        for view in views:
            view.wait_synced(PATIENT)
        # then none hides another
        found = scrape(monitor)
        assert found['datasync_view_state{name="flags/",state="ready"}'] == 2
        assert found['datasync_view_state{name="limits/",state="ready"}'] == 1
        assert found['datasync_view_state{name="limits/",state="error"}'] == 0
    finally:
        for view in views:
            view.close()


def test_c22_metrics_that_come_late_count_what_is_there_already() -> None:
    # given a registry that was made before
    events: Queue[Any] = Queue()
    with Registry("early") as registry, registry.watch("agent", events, events, "a/"):
        monitor = metrics.install(multiprocess=False, registry=prometheus_client.CollectorRegistry())
        try:
            future = change(registry, "a/1")
            take(events).done()
            future.result(PATIENT)
            assert scrape(monitor)['datasync_events_total{result="ok",source="early"}'] == 1
        finally:
            monitoring.install(monitoring.Monitor())
        # and without metrics nobody counts
        assert registry._core.tally is None


def test_c22_a_second_install_is_the_first_one(monitor: PrometheusMonitor) -> None:
    assert metrics.install(multiprocess=False, registry=monitor.registry) is monitor
    with pytest.raises(InvalidArgumentError, match="installed before"):
        metrics.install(multiprocess=False, registry=prometheus_client.CollectorRegistry())


def test_c22_the_multiprocess_mode_needs_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "absent"))
    with pytest.raises(InvalidArgumentError, match="a folder that exists"):
        metrics.install(registry=prometheus_client.CollectorRegistry())
    assert not isinstance(monitoring.monitor(), PrometheusMonitor)


def test_c22_what_was_counted_last_by_an_abandoned_source_is_kept(monitor: PrometheusMonitor) -> None:
    events: Queue[Any] = Queue()
    registry = Registry("gone")
    registration = registry.watch("agent", events, events, "a/")
    future = change(registry, "a/1")
    take(events).done()
    future.result(PATIENT)
    registry.close()
    del registry, registration, future
    gc.collect()
    assert scrape(monitor)['datasync_events_total{result="ok",source="gone"}'] == 1
    assert not monitor._tallies or scrape(monitor)


def test_c22_sources_that_come_and_go_are_not_kept_until_a_scrape(monitor: PrometheusMonitor) -> None:
    # when many sources were used and closed, and nobody scrapes
    for _ in range(500):
        registry = Registry("short")
        events: Queue[Any] = Queue()
        registration = registry.watch("agent", events, events, "a/")
        future = change(registry, "a/1")
        take(events).done()
        future.result(PATIENT)
        registry.close()
        del registry, registration, future, events
    # then few are kept, and every change is counted
    assert len(monitor._tallies) < 250
    gc.collect()
    assert scrape(monitor)['datasync_events_total{result="ok",source="short"}'] == 500
    assert not [one for one in monitor._tallies if one.name == "short"]


def test_c16_no_key_and_no_value_is_in_a_scrape(monitor: PrometheusMonitor) -> None:
    events: Queue[Any] = Queue()
    with Registry("north") as registry, registry.watch("agent", events, events, "secretkey/"):
        future = change(registry, "secretkey/1", CANARY.encode())
        take(events).done(Rejected({"secretkey/1": ValueError("no")}))
        future.exception(5)
        text = prometheus_client.generate_latest(monitor.registry).decode()
    assert "secretkey" not in text
    assert CANARY not in text


def test_every_metric_is_a_name_of_the_table(monitor: PrometheusMonitor) -> None:
    text = prometheus_client.generate_latest(monitor.registry).decode()
    families = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert {name for name in families if not name.endswith("_created")} == set(METRICS)
