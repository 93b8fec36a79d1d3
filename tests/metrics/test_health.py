"""Probes: whether a process lives, is ready, and why not (contract C22)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest

from datasync import Plugin, View, codecs, connect, metrics, open_settings, open_view
from datasync.consumer.view.cache import CachedValues, CacheFile
from datasync.errors import InvalidArgumentError, Rejected, StoreConnectionError
from datasync.events import ResyncReason
from datasync.metrics.prometheus import PrometheusMonitor
from datasync.restsync import Adapter, serve
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registry import Registry
from tests.conftest import CANARY, take, wait_until
from tests.metrics.support import get, samples


@dataclass(frozen=True)
class Flags:
    """The settings of a process."""

    limit: int = 5


@contextmanager
def serving(**options: Any) -> Iterator[int]:
    with metrics.serve_health("127.0.0.1:0", **options) as server:
        yield server.port


def test_c22_a_process_is_ready_once_its_sources_were_read() -> None:
    # given a source that was not read yet
    with serving() as port, Registry("plant", sourced=True) as registry:
        assert get(port, "/readyz") == (200, "ok\n")  # nobody uses it
        registry.watch("agent", None, Queue(), "a/")
        assert get(port, "/livez") == (200, "ok\n")
        assert get(port, "/readyz") == (503, "plant was not read yet\n")
        # when it cannot be reached / then the probe says why
        registry.source_lost(StoreConnectionError("the store is not reachable"))
        assert get(port, "/readyz") == (
            503,
            "plant was not read yet: StoreConnectionError: the store is not reachable\n",
        )
        # when it was read / then the process is ready
        registry.feed_snapshot(1, {}, ResyncReason.INITIAL)
        assert get(port, "/readyz") == (200, "ok\n")


def test_c22_a_store_that_is_down_ends_neither_life_nor_readiness() -> None:
    # given a source that was read
    with Registry("plant", sourced=True) as registry, serving() as port, serving(max_stale=0) as strict:
        registry.feed_snapshot(1, {}, ResyncReason.INITIAL)
        # when it is lost
        registry.source_lost(StoreConnectionError("gone"))
        # then the process serves what it knows, unless it is told that this is not good enough
        assert get(port, "/livez")[0] == get(strict, "/livez")[0] == 200
        assert get(port, "/readyz")[0] == 200
        status, text = get(strict, "/readyz")
        assert (status, text.startswith("plant is lost since 0 s: StoreConnectionError: gone")) == (503, True)
        # and /healthz has the whole story
        status, text = get(port, "/healthz")
        (source,) = [one for one in json.loads(text)["sources"] if one["name"] == "plant"]
        assert (status, source["state"]) == (200, "stale")
        assert (source["error"]["kind"], source["error"]["text"]) == (
            "StoreConnectionError",
            "StoreConnectionError: gone",
        )
        assert source["since"] >= source["last_contact"] - 0.1
        # when it is back / then no error is left
        registry.feed_changes(_nothing(2))
        (source,) = [one for one in json.loads(get(port, "/healthz")[1])["sources"] if one["name"] == "plant"]
        assert (source["state"], source["error"]) == ("ready", None)


def _nothing(revision: int) -> Any:
    from datasync.commits import Batch

    return Batch(revision, [])


def test_c22_a_source_that_nobody_reads_any_more_is_an_error() -> None:
    # given a plugin whose store is closed under it
    with serving() as port, connect("memory://") as store, Plugin(store, name="plant") as plugin:
        plugin.wait_ready(30)
        store.close()
        # then the process is not ready, and still lives
        wait_until(lambda: get(port, "/readyz")[0] == 503, "the probe says no")
        assert "plant is not read any more" in get(port, "/readyz")[1]
        assert get(port, "/livez")[0] == 200


def test_c22_a_view_with_a_limit_of_age_is_not_ready_beyond_it() -> None:
    with Registry("plant", sourced=True) as registry, serving() as port:
        registry.feed_snapshot(1, {"a": (1, b"1")}, ResyncReason.INITIAL)
        with View(registry, "strict", max_stale=0.0) as view, View(registry, "easy") as other:
            view.wait_synced(30), other.wait_synced(30)
            assert get(port, "/readyz")[0] == 200
            registry.source_lost(StoreConnectionError("gone"))
            assert get(port, "/readyz") == (503, "the view 'strict' is stale\n")


def test_c20_a_view_of_the_cache_file_is_ready_while_the_store_is_down(tmp_path: Path) -> None:
    # given a cache file, and a store that never answers
    url = f"sqlite://{tmp_path}/no/such/folder/flags.db"
    cache = CacheFile(tmp_path / "cache", url, "flags/")
    assert cache.save(CachedValues({"a": b"1"}, 5))
    with serving() as port:
        flags = open_view(url, "flags/", cache=tmp_path / "cache", wait=0.1)
        try:
            assert flags["a"] == 1
            assert get(port, "/readyz") == (200, "ok\n")
        finally:
            flags.close()


@pytest.mark.parametrize("opened", ["view", "settings"])
def test_c22_a_view_that_the_process_needs_is_opened_by_the_probe(opened: str, tmp_path: Path) -> None:
    # given a view that nobody has read yet, of a store that is not there
    url = f"sqlite://{tmp_path}/later/flags.db"
    flags = open_view(url, "flags/", wait=0) if opened == "view" else open_settings(url, "flags/", Flags, wait=0)
    try:
        with serving() as easy, serving(views=[flags]) as port:
            # then only those who ask for it are told, and the process lives
            assert get(easy, "/readyz") == (200, "ok\n")
            assert get(port, "/livez") == (200, "ok\n")
            status, text = get(port, "/readyz")
            assert (status, text.startswith("the view 'flags/' is ")) == (503, True)
            wait_until(lambda: "'flags/' is error" in get(port, "/readyz")[1], "it says that the store is not there")
            assert get(port, "/healthz")[0] == 503
            # when the store comes
            (tmp_path / "later").mkdir()
            with connect(url) as store:
                store.new_broker("flags/").put("limit", b"7")
                # then the process becomes ready, although it has read nothing itself
                wait_until(lambda: get(port, "/readyz") == (200, "ok\n"), "it is ready")
    finally:
        flags.close()


def test_c22_a_view_that_was_closed_or_cannot_be_opened_is_a_reason() -> None:
    flags = open_view(f"memory://{uuid4().hex}", "flags/")
    flags.close()
    with serving(views=(flags,)) as port:
        assert get(port, "/readyz") == (503, "a view cannot be opened: ClosedError: the view is closed\n")
        assert get(port, "/livez")[0] == 200


def test_c22_the_rest_server_opens_the_views_that_the_process_needs() -> None:
    # given two views that nobody has read yet
    first, second = (open_view(f"memory://{uuid4().hex}", prefix, wait=0) for prefix in ("first/", "second/"))
    try:
        with Adapter("north") as adapter, serve("127.0.0.1:0", adapter, views=(first, second)) as server:
            wait_until(lambda: get(server.port, "/readyz")[0] == 200, "both were read")
            names = {view["name"] for view in metrics.report()["views"]}
            assert names >= {"first/", "second/"}
    finally:
        first.close(), second.close()


@pytest.mark.parametrize("wrong", ["one", "text", None, [None], {"a": 1}])
def test_views_that_are_none_are_refused(wrong: Any) -> None:
    flags = open_view(f"memory://{uuid4().hex}")  # it would be opened by being looped over
    for use in (metrics.HealthMiddleware, metrics.SystemdNotifier):
        with pytest.raises(InvalidArgumentError, match="in a list or tuple"):
            use(views=flags if wrong == "one" else wrong)


def test_c16_details_and_metrics_need_the_token(monitor: PrometheusMonitor) -> None:
    with serving(token="s3cret") as port, Registry("plant", sourced=True) as registry:
        registry.watch("agent", None, Queue(), "a/")
        # then anyone may ask whether the process lives and is ready, without reasons
        assert get(port, "/livez")[0] == 200
        assert get(port, "/readyz") == (503, "not ready: /healthz has the reasons\n")
        assert get(port, "/readyz", "s3cret") == (503, "plant was not read yet\n")
        for path in ("/healthz", "/metrics"):
            assert get(port, path)[0] == get(port, path, "wrong")[0] == 401
        assert get(port, "/metrics", "s3cret")[0] == 200
        assert get(port, "/healthz", "s3cret")[0] == 503
        assert get(port, "/other")[0] == 404


def test_c22_metrics_that_are_not_installed_say_so() -> None:
    with serving() as port:
        assert get(port, "/metrics") == (
            404,
            "no metrics: call datasync.metrics.install() when the program starts\n",
        )


def test_c22_the_rest_server_has_the_probes_and_the_metrics(monitor: PrometheusMonitor) -> None:
    # given a REST server with a token, whose page is open
    with Adapter("north") as adapter, serve("127.0.0.1:0", adapter, token="s3cret") as server:
        events: Queue[Any] = Queue()
        adapter.watch("agent", events, events, "a/")
        future = adapter.registry.submit_changes({"a/1": ChangeBytes("a/1", b"1")})
        take(events).done(Rejected({"a/1": ValueError("no")}))
        future.exception(5)
        assert get(server.port, "/livez") == (200, "ok\n")
        assert get(server.port, "/readyz") == (200, "ok\n")
        assert get(server.port, "/metrics")[0] == get(server.port, "/healthz")[0] == 401
        found = samples(get(server.port, "/metrics", "s3cret")[1])
        assert found['datasync_events_total{result="failed",source="north"}'] == 1
        (source,) = [
            one for one in json.loads(get(server.port, "/healthz", "s3cret")[1])["sources"] if one["name"] == "north"
        ]
        assert source["subscriptions"]["agent"] == {"state": "failing", "pending": 0, "rejected": 1}
    # and a closed one has them as long as it answers


def test_c22_the_middleware_passes_on_every_other_request() -> None:
    # given an application behind the middleware, under a prefix
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    said: list[str] = []

    def ask(path: str, method: str = "GET") -> bytes:
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path}
        return b"".join(wrapped(environ, lambda status, _: said.append(status)))  # type: ignore[arg-type]

    wrapped = metrics.HealthMiddleware(application, prefix="/-/")
    # then its paths are those under the prefix, and nothing else changes
    assert ask("/livez") == b"/livez"
    assert ask("/-/livez") == b"ok\n"
    assert ask("/-/other") == b"/-/other"
    assert ask("/-livez") == b"/-livez"
    assert ask("/-/livez", "HEAD") == b""
    assert ask("/-/livez", "POST") == b"use GET\n"
    assert said[-1] == "405 Method Not Allowed"


def test_c16_no_value_is_in_the_report() -> None:
    with Registry("plant") as registry:
        events: Queue[Any] = Queue()
        with registry.watch("agent", events, events, "a/"):
            future = registry.submit_changes({"a/1": ChangeBytes("a/1", CANARY.encode())})
            take(events).done(ValueError("no"))
            future.exception(5)
            assert CANARY not in json.dumps(metrics.report())


@pytest.mark.parametrize("max_stale", [-1, "1"])
def test_an_age_that_is_none_is_refused(max_stale: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="max_stale"):
        metrics.HealthMiddleware(max_stale=max_stale)


def test_c19_the_report_of_a_value_that_cannot_be_decoded_names_the_view() -> None:
    with Registry("plant", codec=codecs.json) as registry, View(registry, "overview") as view:
        registry.submit_changes({"a": ChangeBytes("a", b"{")})
        wait_until(lambda: "a" in view.problems, "the value is bad")
        (found,) = metrics.report()["views"]
        assert (found["name"], found["state"]) == ("overview", "ready")
