"""One log line for each change of a state, with fields (contract C22)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from datasync.errors import Rejected, StoreConnectionError
from datasync.events import ResyncReason
from datasync.examples.operations.json_logs import JsonFormatter
from datasync.keyval.memory import MemoryStore
from datasync.kvdbsync.plugin import Plugin
from datasync.runtime.timeouts import ABANDON_TIMEOUT, FAILURE_BACKOFF
from datasync.syncbase.change import ChangeBytes
from datasync.syncbase.registry import Registry
from tests.conftest import CANARY, OWN_WORDS, take, wait_until
from tests.support.clock import ManualClock


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What the example's formatter makes of the log."""
    found: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    log, handler = logging.getLogger("datasync"), Handler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def test_c22_a_rejection_is_logged_once_in_the_subscribers_own_words(lines: list[dict[str, Any]]) -> None:
    # given a subscriber, and a change of two keys
    events: Queue[Any] = Queue()
    with Registry("plant", sourced=True) as registry, registry.watch("agent", events, events, "a/"):
        future = registry.submit_changes({key: ChangeBytes(key, CANARY.encode()) for key in ("a/1", "a/2")})
        registry.feed_snapshot(1, {"a/1": (1, b"x"), "a/2": (1, b"x")}, ResyncReason.INITIAL)
        # when it rejects one of them
        take(events).done(Rejected({"a/2": ValueError(f"port must be below 1024 ({OWN_WORDS})")}))
        # then one line says what, and why
        (line,) = [line for line in lines if line.get("state") == "failing"]
        assert line["message"] == f"plant: 'agent' rejected 'a/2': ValueError: port must be below 1024 ({OWN_WORDS})"
        assert (line["level"], line["keys"], line["error"]) == ("WARNING", ["a/2"], "Rejected")
        # when it rejects it again, as it is brought again / then that is no news
        take(events).done(ValueError("still not"))
        (_, again) = [line for line in lines if line.get("state") == "failing"]
        assert (again["level"], again["message"]) == ("INFO", "plant: 'agent' rejected 'a/2': ValueError: still not")
        # when it accepts it / then one line says so
        take(events).done()
        (line,) = [line for line in lines if line.get("state") == "synced"]
        assert line["message"].startswith("plant: 'agent' has accepted everything again after ")
        assert (line["source"], line["subscription"]) == ("plant", "agent")
        future.exception(5)


def test_c22_a_late_answer_that_ends_the_last_debt_says_that_everything_is_accepted_again(
    lines: list[dict[str, Any]],
) -> None:
    # given a key that was rejected, and whose redelivery was given up
    events: Queue[Any] = Queue()
    clock = ManualClock()
    with Registry("plant", sourced=True, clock=clock) as registry, registry.watch("agent", events, events, "a/"):
        registry.feed_snapshot(1, {"a/1": (1, b"x")}, ResyncReason.INITIAL)
        take(events).done(Rejected({"a/1": ValueError("no")}))
        clock.advance(FAILURE_BACKOFF[1])
        late = take(events)
        clock.advance(ABANDON_TIMEOUT)
        wait_until(lambda: any("was abandoned" in line["message"] for line in lines), "the event was given up")
        assert not [line for line in lines if line.get("state") == "synced"]
        # when it is accepted after all / then one line says so
        late.done()
        (line,) = [line for line in lines if line.get("state") == "synced"]
        assert line["message"].startswith("plant: 'agent' has accepted everything again after ")


def test_c22_a_subscriber_that_rejects_everything_does_not_fill_the_log(
    lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a subscriber that rejects each change, and one that rejects every other one
    def failing() -> list[str]:
        return [line["message"] for line in lines if line.get("state") == "failing"]

    events: Queue[Any] = Queue()
    with Registry("plant") as registry, registry.watch("agent", events, events, "a/"):
        for every in (1, 2):
            lines.clear()
            for number in range(100):
                future = registry.submit_changes({"a/1": ChangeBytes("a/1", b"%d" % number)})
                take(events).done(None if number % every else ValueError("no"))
                future.exception(5)
            # then a few lines say so, each of which is followed by one that says that it is over
            assert len(failing()) == (10 if every == 1 else 0)
            assert len([line for line in lines if line.get("state") == "synced"]) <= 1
        # when some time has passed / then the next line has the number of those that are missing
        monkeypatch.setattr("datasync.syncbase.events.LOG_INTERVAL", 0.0)
        future = registry.submit_changes({"a/1": ChangeBytes("a/1", b"x")})
        take(events).done(ValueError("no"))
        future.exception(5)
        (line,) = failing()
        assert line.startswith("plant: 'agent' rejected 'a/1': ValueError: no (and ")
        assert line.endswith(" rejections since the last such line)")


def test_c22_a_source_that_is_lost_says_so_once_and_names_itself_once(lines: list[dict[str, Any]]) -> None:
    # given a plugin that follows a store
    store = MemoryStore()
    with Plugin(store, "vpp1/") as plugin:
        plugin.wait_ready(30)
        # when the store fails with an error that names it twice, and is back
        store.fail_with(StoreConnectionError(f"{store.name}: cannot reach {store.name}"))
        wait_until(lambda: [line for line in lines if line.get("state") == "lost"], "it is logged as lost")
        store.fail_with(None)
        wait_until(lambda: [line for line in lines if line.get("state") == "ready"], "it is logged as back")
    # then each line has the name once, and the fields
    (lost,) = [line for line in lines if line.get("state") == "lost" and line["level"] == "WARNING"]
    (back,) = [line for line in lines if line.get("state") == "ready"]
    assert lost["message"] == f"{plugin.registry.name}: cannot reach the store; retrying"
    assert back["message"].startswith(f"{plugin.registry.name}: the source is back after ")
    assert lost["source"] == back["source"] == plugin.registry.name
    assert [line["message"].count(store.name) for line in lines if line.get("source")] != []
    assert all(line["message"].count(store.name) == 1 for line in lines if line.get("source"))


def test_no_line_has_the_name_of_a_class_of_ours(lines: list[dict[str, Any]]) -> None:
    events: Queue[Any] = Queue()
    with Registry("plant") as registry, registry.watch("agent", events, events, "a/"):
        future = registry.submit_changes({"a/1": ChangeBytes("a/1", b"1")})
        take(events).done(ValueError("no"))
        future.exception(5)
        wait_until(lambda: any(line.get("state") == "failing" for line in lines), "it is logged")
    text = "\n".join(line["message"] for line in lines)
    assert not [name for name in ("ChangeEvent", "ResyncEvent", "Queued", "Registry") if name in text]
