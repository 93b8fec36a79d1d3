"""Tests of a small program, as an example of ``datasync.testing``.

Run them: ``pytest -p datasync.testing datasync/examples/guides/how_to_test.py``
"""

from __future__ import annotations

from typing import Any

import pytest

from datasync import ChangeEvent, Plugin, Reconciler, UnknownOutcome, open_view
from datasync.keyval.memory import MemoryStore
from datasync.testing import Faults, ManualClock, RecordingSubscriber, override, settle

# [program]
flags = open_view("memory://how-to-test", "flags/")


def greeting() -> str:
    return "Hi!" if flags.get("informal") else "Good morning."


class Ports:
    """A switch that knows the ports up to 48."""

    def __init__(self) -> None:
        self.open: dict[str, Any] = {}

    def apply(self, key: str, port: Any, previous: Any) -> None:
        if port is None:
            self.open.pop(key, None)
        elif port["number"] > 48:
            raise ValueError("there is no such port")
        else:
            self.open[key] = port["number"]


# [override]
def test_a_flag_changes_the_greeting() -> None:
    assert greeting() == "Good morning."
    with override(flags, informal=True):
        assert greeting() == "Hi!"


@override(flags, informal=True)
def test_with_a_decorator() -> None:
    assert greeting() == "Hi!"


@pytest.mark.datasync_override(flags, informal=True)
def test_with_a_marker() -> None:
    assert greeting() == "Hi!"


# [rejection]
def test_a_bad_port_is_tried_again_until_it_is_corrected(datasync_plugin: Plugin[Any]) -> None:
    switch = Ports()
    with Reconciler(datasync_plugin, "switch", "port/", apply=switch.apply) as reconciler:
        datasync_plugin.put("port/a", {"number": 99})
        datasync_plugin.put("port/b", {"number": 7})
        settle(reconciler)
        assert switch.open == {"port/b": 7}
        assert list(reconciler.problems) == ["port/a"]
        datasync_plugin.put("port/a", {"number": 8})
        settle(reconciler)
        assert switch.open == {"port/a": 8, "port/b": 7}
        assert reconciler.problems == {}


def test_a_rejected_key_comes_again(datasync_plugin: Plugin[Any]) -> None:
    with RecordingSubscriber(datasync_plugin, "port/") as subscriber:
        subscriber.reject("port/a", times=1)
        datasync_plugin.put("port/a", {"number": 7})
        subscriber.wait_for(lambda seen: "port/a" in seen.values)
        assert subscriber.rejected == ["port/a"]
        again = [event for event in subscriber.events if isinstance(event, ChangeEvent) and event.redelivery]
        assert len(again) == 1


# [clock]
def test_it_comes_again_after_a_second(datasync_plugin: Plugin[Any], datasync_clock: ManualClock) -> None:
    with RecordingSubscriber(datasync_plugin, "port/") as subscriber:
        subscriber.reject("port/a", times=1)
        datasync_plugin.put("port/a", {"number": 7})
        settle(subscriber)
        assert subscriber.values == {}
        datasync_clock.advance(2)
        settle(subscriber)
        assert subscriber.values == {"port/a": {"number": 7}}


# [faults]
def test_what_was_written_while_the_store_was_lost_arrives(
    datasync_plugin: Plugin[Any], datasync_faults: Faults
) -> None:
    switch = Ports()
    with Reconciler(datasync_plugin, "switch", "port/", apply=switch.apply) as reconciler:
        settle(reconciler)
        with datasync_faults.lost():
            datasync_faults.writer("port/").put("a", b'{"number": 7}')
        settle(reconciler)
        assert switch.open == {"port/a": 7}
        datasync_faults.resync()  # nothing has changed, so nothing is called
        settle(reconciler)
        assert reconciler.status().ok == 1


def test_a_write_without_an_answer(datasync_store: MemoryStore, datasync_faults: Faults) -> None:
    datasync_faults.lose_outcome(applied=True)
    with pytest.raises(UnknownOutcome):
        datasync_store.new_broker().put("port/a", b"{}")
    assert datasync_store.new_broker().get_value("port/a").found
