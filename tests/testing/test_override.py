"""Other values for a view or for settings, during a test (C20)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from datasync import Plugin, View, codecs, connect, open_settings, open_view
from datasync.consumer.view.settings import Settings
from datasync.errors import InvalidArgumentError
from datasync.keyval.memory import MemoryStore
from datasync.syncbase.registry import Registry
from datasync.testing import ABSENT, override, settle
from tests.conftest import PATIENT, take, wait_until


@pytest.fixture
def plugin() -> Iterator[Plugin[Any]]:
    with MemoryStore() as store, Plugin(store, codec=codecs.json) as plugin:
        yield plugin


@pytest.fixture
def flags(plugin: Plugin[Any]) -> Iterator[View[Any]]:
    with View(plugin, "flags") as view:
        plugin.put("a", 1)
        plugin.put("b", {"on": False})
        settle(view)
        yield view


def test_an_override_is_seen_by_every_way_to_read(flags: View[Any]) -> None:
    flags.index("kind", lambda key, value: type(value).__name__)
    # when values are overridden, added and removed
    with override(flags, a="x", c=3, b=ABSENT):
        # then each way to read says so
        assert flags["a"] == "x"
        assert flags.get("c") == 3
        assert flags.get("b") is None
        assert flags.get("b", 7) == 7
        with pytest.raises(KeyError):
            flags["b"]
        assert "b" not in flags
        assert "c" in flags
        assert len(flags) == 2
        assert sorted(flags) == ["a", "c"]
        assert dict(flags) == dict(flags.snapshot()) == {"a": "x", "c": 3}
        assert dict(flags.items()) == {"a": "x", "c": 3}
        assert flags.by_index("kind", "int") == {"c": 3}
        assert flags.by_index("kind", "str") == {"a": "x"}
        assert flags.snapshot() is flags.snapshot()
    # and afterwards all is as it was
    assert dict(flags) == {"a": 1, "b": {"on": False}}
    assert flags.by_index("kind", "int") == {"a": 1}


def test_the_other_keys_stay_live_and_the_overridden_one_is_new_afterwards(
    flags: View[Any], plugin: Plugin[Any]
) -> None:
    with override(flags, a=100):
        plugin.put("a", 2)
        plugin.put("c", 3)
        settle(flags)
        assert dict(flags) == {"a": 100, "b": {"on": False}, "c": 3}
    assert flags["a"] == 2


def test_overrides_are_nested_and_end_in_any_order(flags: View[Any]) -> None:
    first, second = override(flags, a="first", z=1), override(flags, {"a": "second"})
    with first:
        with second:
            assert (flags["a"], flags["z"]) == ("second", 1)
        assert flags["a"] == "first"
    # when the older one ends first
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert flags["a"] == "second"
    assert "z" not in flags
    second.__exit__(None, None, None)
    assert flags["a"] == 1


def test_an_override_ends_when_the_block_raises(flags: View[Any]) -> None:
    with pytest.raises(ZeroDivisionError), override(flags, a=2):
        raise ZeroDivisionError
    assert flags["a"] == 1


def test_a_decorated_function_keeps_its_name_and_may_call_itself(flags: View[Any]) -> None:
    @override(flags, a=2)
    def read(again: bool) -> Any:
        return read(False) if again else flags["a"]

    assert read.__name__ == "read"
    assert read(True) == 2
    assert flags["a"] == 1


def test_what_cannot_be_decorated_says_so(flags: View[Any]) -> None:
    def values() -> Iterator[int]:
        yield 1

    for what in (type("TestFlags", (), {}), values):
        with pytest.raises(InvalidArgumentError, match="cannot be decorated"):
            override(flags, a=2)(what)


def test_every_thread_sees_an_override_and_many_at_once_leave_nothing_behind(flags: View[Any]) -> None:
    # given threads that override other keys, and one key in common
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(200):
            with override(flags, {f"own-{number}": turn, "common": number}):
                if flags[f"own-{number}"] != turn or "common" not in flags or flags["a"] != 50:
                    wrong.append(dict(flags))

    # when they run
    with override(flags, a=50):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENT)
    # then each has seen its own, and that of the main thread
    assert wrong == []
    assert dict(flags) == {"a": 1, "b": {"on": False}}


def test_values_are_those_that_the_view_could_have_read(plugin: Plugin[Any]) -> None:
    # given a view of dataclasses / then values are copied, frozen and checked as stored ones are
    @dataclass(frozen=True)
    class Host:
        name: str

    with View(plugin, "hosts", codec=codecs.typed(Host)) as hosts, View(plugin, "flags") as flags:
        with override(hosts, web=Host("a")):
            assert hosts["web"] == Host("a")
        with pytest.raises(InvalidArgumentError, match="'web' cannot be overridden"):
            override(hosts, web={"name": 7})
        with override(flags, a={"list": [1]}), pytest.raises(TypeError):
            flags["a"]["list"].append(2)
        with pytest.raises(InvalidArgumentError, match="'a' cannot be overridden"):
            override(flags, a={1, 2})


def test_what_is_no_view_cannot_be_overridden() -> None:
    with pytest.raises(InvalidArgumentError, match="not a dict"):
        override({}, a=1)  # type: ignore[arg-type]


def test_listeners_are_told_what_a_reader_sees(flags: View[Any], plugin: Plugin[Any]) -> None:
    # given a listener
    told: list[tuple[str, Any, Any]] = []
    flags.on_change(lambda *change: told.append(change))
    # when a value is overridden, and changes beneath
    with override(flags, a=5, b={"on": False}):
        assert told == [("a", 1, 5)]
        plugin.put("a", 2)
        plugin.put("c", 3)
        settle(flags)
        assert told[1:] == [("c", None, 3)]
        with override(flags, a=6):
            pass
        assert told[2:] == [("a", 5, 6), ("a", 6, 5)]
    assert told[4:] == [("a", 5, 2)]


def test_a_view_that_is_not_open_can_be_overridden_and_opens_meanwhile() -> None:
    # given a view whose store nobody has opened
    with connect("memory://override") as store:
        store.new_broker("flags/").put("b", b"2")
        with open_view("memory://override", "flags/") as opened:
            opened.close()
        view = open_view("memory://override", "flags/")
        threads = set(threading.enumerate())
        with override(view, a=1):
            # when an overridden key is read / then nothing is opened
            assert view["a"] == 1
            assert set(threading.enumerate()) <= threads
            # when another one is read / then the store is, and the override holds
            assert view["b"] == 2
            assert view["a"] == 1
        assert dict(view) == {"b": 2}
        view.close()


@dataclass(frozen=True)
class Pool:
    low: int = 1
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


@pytest.fixture
def settings() -> Iterator[Settings[Pool]]:
    with connect("memory://override-settings") as store:
        store.new_broker("pool/").put("high", b"20")
        with open_settings("memory://override-settings", "pool/", Pool) as settings:
            settings.wait_synced()
            assert settings.current.high == 20  # the last good object is the last one that was built
            yield settings


def test_settings_are_overridden_as_one_valid_object(settings: Settings[Pool]) -> None:
    told: list[Any] = []
    settings.on_change(lambda old, new, fields: told.append((old, new, set(fields))))
    with override(settings, low=5):
        assert settings.current == Pool(5, 20)
        with override(settings, {"high": 6}):
            assert settings.current == Pool(5, 6)
        assert settings.current == Pool(5, 20)
    assert settings.current == Pool(1, 20)
    assert [new for _, new, _ in told] == [Pool(5, 20), Pool(5, 6), Pool(5, 20), Pool(1, 20)]


def test_settings_that_would_not_be_valid_are_not_overridden(settings: Settings[Pool]) -> None:
    with pytest.raises(InvalidArgumentError, match="no field 'hihg'"):
        override(settings, hihg=5)
    with pytest.raises(InvalidArgumentError, match="not valid: Pool raised ValueError"), override(settings, low=50):
        pass
    assert settings.current == Pool(1, 20)
    assert settings.problems == {}


def test_the_last_good_settings_are_never_those_of_a_test(settings: Settings[Pool]) -> None:
    # given an override that makes a stored value good that is not
    with connect("memory://override-settings") as store:
        broker = store.new_broker("pool/")
        with override(settings, high=100):
            broker.put("low", b"50")
            wait_until(lambda: settings.current == Pool(50, 100), "the overridden object has the new value")
        # when it ends / then the object is the last good one of the store
        assert settings.current == Pool(1, 20)
        assert "" in settings.problems


def test_a_view_over_a_registry_is_overridden_too() -> None:
    with Registry("r") as registry, View(registry, "v") as view, override(view, {"x/y": 1}):
        assert view["x/y"] == 1


def test_a_web_server_in_the_test_sees_an_override(flags: View[Any]) -> None:
    from queue import Queue

    seen: Queue[Any] = Queue()
    with override(flags, a="shown"):
        thread = threading.Thread(target=lambda: seen.put(flags["a"]))
        thread.start()
        assert take(seen) == "shown"
        thread.join(PATIENT)


def test_blocks_of_one_object_in_two_threads_end_each_their_own(flags: View[Any]) -> None:
    # given one object whose block runs in two threads, another one between them
    one, other = override(flags, a=10), override(flags, a=20)
    entered, leave = threading.Event(), threading.Event()

    def second() -> None:
        with one:
            entered.set()
            assert leave.wait(PATIENT)

    one.__enter__()
    with other:
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(PATIENT)
        assert flags["a"] == 10
        # when the first block ends / then the newest one still counts
        one.__exit__(None, None, None)
        assert flags["a"] == 10
        leave.set()
        thread.join(PATIENT)
        assert flags["a"] == 20
    assert flags["a"] == 1


def test_settings_that_a_refused_override_would_have_made_are_seen_by_nobody() -> None:
    # given settings, and a listener
    with open_settings("memory://refused-override", "", Sizes) as settings:
        settings.wait_synced(PATIENT)
        shown = settings.current
        heard: list[Any] = []
        settings.view.on_changes(lambda differences: heard.append(dict(differences)))
        # when an override is refused / then nothing was shown meanwhile
        with pytest.raises(InvalidArgumentError, match="not valid"), override(settings, size="wide"):
            pass
        assert (heard, settings.current) == ([], shown)


@dataclass(frozen=True)
class Sizes:
    size: int = 1
