"""Settings are one object, valid as a whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from datasync import connect, open_settings
from datasync.consumer import Settings, View, ViewState
from datasync.errors import InvalidArgumentError, NotReadyError
from datasync.testing import override
from tests.conftest import CANARY, PATIENT, take, wait_until
from tests.support.view_sources import Source


@dataclass(frozen=True)
class Limits:
    low: int = 1
    high: int = 10
    name: str = "x"
    rate: float = 0.5
    hosts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"{CANARY}: low is above high")


@dataclass(frozen=True)
class Needy:
    url: str


def write(feed: Source, **values: Any) -> None:
    feed.write({key: None if value is None else json.dumps(value).encode() for key, value in values.items()})


@pytest.fixture
def settings(feed: Source) -> Iterator[Settings[Limits]]:
    with View(feed.watcher, "settings") as view:
        view.wait_synced(PATIENT)
        yield Settings(view, Limits)


def test_c20_settings_are_the_defaults_and_then_what_the_keys_say(feed: Source, settings: Settings[Limits]) -> None:
    assert settings.current == Limits()
    write(feed, low=5, hosts=["a"], rate=1)
    wait_until(lambda: settings.current == Limits(low=5, hosts=["a"], rate=1), "the settings follow")
    assert settings.current is settings.current
    assert (settings.problems, settings.state) == ({}, ViewState.READY)
    write(feed, low=None)
    wait_until(lambda: settings.current.low == 1, "a deleted key has its default again")


def test_c20_an_invalid_whole_keeps_the_last_good_object_and_says_why(feed: Source, settings: Settings[Limits]) -> None:
    # given
    write(feed, low=5)
    wait_until(lambda: settings.current.low == 5, "the first change is there")
    good = settings.current
    # when two keys do not fit one another, one has a wrong type, or no JSON
    write(feed, low=11)
    wait_until(lambda: settings.problems, "there is a problem")
    assert settings.current is good
    assert "ValueError" in str(settings.problems[""])
    assert CANARY not in str(settings.problems)
    write(feed, low=True)
    wait_until(lambda: "'low' must be int, not bool" in str(settings.problems.get("")), "the type is wrong")
    feed.write({"low": b"{"})
    write(feed, high=20)
    wait_until(lambda: "low" in settings.problems and "" in settings.problems, "the key itself is bad")
    assert settings.current is good
    # then the next good one is taken
    write(feed, low=15)
    wait_until(lambda: settings.current == Limits(15, 20), "the settings follow again")
    assert settings.problems == {}


def test_c20_settings_never_show_a_part_of_a_transaction(memory: Source) -> None:
    # given an object, and a listener
    write(memory, low=1, high=10)
    heard: Queue[Any] = Queue()
    with View(memory.watcher, "settings") as view:
        view.wait_synced(PATIENT)
        settings = Settings(view, Limits)
        first = settings.current
        settings.on_change(lambda old, new, names: heard.put((old, new, names)))
        # when both keys change at once, and one value is none
        memory.write({"low": b"5", "high": b"20 GB"})
        wait_until(lambda: view["low"] == 5, "the view has the good one")
        # then the object is the one before, and the problem is that of the key
        assert settings.current is first
        assert settings.problems.keys() == {"high"}
        assert not view.synced or heard.empty()
        # and when that is the last good value again, the transaction is whole
        write(memory, high=10)
        assert take(heard) == (first, Limits(5, 10), frozenset({"low"}))
        assert (settings.current, settings.problems) == (Limits(5, 10), {})
        # and a key of nobody harms nobody
        memory.write({"low": b"6", "stranger": b"20 GB"})
        assert take(heard)[1] == Limits(6, 10)
        # and a test may override what is bad, and what is not
        memory.write({"low": b"7", "high": b"20 GB"})
        wait_until(lambda: "high" in settings.problems, "it is bad")
        with override(settings, name="y"):
            assert settings.current.name == "y"
        assert settings.current == Limits(6, 10)


@pytest.mark.parametrize("key", ["low", "high"])
def test_c20_settings_of_which_a_value_cannot_be_read_at_first_are_not_ready(memory: Source, key: str) -> None:
    # given a first state with a bad value
    memory.write({"low": b"5", "high": b"50", key: b"20 GB"})
    heard: Queue[Any] = Queue()
    with View(memory.watcher, "settings") as view:
        settings = Settings(view, Limits)
        settings.on_change(lambda old, new, names: heard.put(names))
        view.wait_synced(PATIENT)
        # then it is not filled up with a default
        with pytest.raises(NotReadyError, match=key):
            _ = settings.current
        # and the first object is no change
        write(memory, **{key: 20})
        wait_until(lambda: not settings.problems, "it is readable")
        assert getattr(settings.current, key) == 20
        write(memory, name="z")
        assert take(heard) == {"name"}


def test_c20_a_listener_gets_both_objects_and_the_fields(memory: Source) -> None:
    # given
    changes: Queue[Any] = Queue()
    write(memory, low=2)
    view: View[Any] = View(memory.watcher, "settings")
    with Settings(view, Limits) as settings:
        view.wait_synced(PATIENT)
        settings.on_change(lambda *change: changes.put(change))
        ended = settings.on_change(lambda *change: changes.put("never"))
        ended()
        # when two fields change at once, then an undeclared key, then a value that is invalid, then a good one
        write(memory, low=3, high=30)
        write(memory, colour="red")
        write(memory, low=40)
        write(memory, low=4)
        # then
        assert take(changes) == (Limits(2), Limits(3, 30), {"low", "high"})
        assert take(changes) == (Limits(3, 30), Limits(4, 30), {"low"})
        assert changes.empty()
        assert settings.undeclared == ("colour",)


def test_c20_settings_without_a_valid_object_are_not_ready(memory: Source) -> None:
    with View(memory.watcher, "settings") as view:
        settings = Settings(view, Needy)
        with pytest.raises(NotReadyError, match="'url' is missing"):
            settings.current  # noqa: B018
        write(memory, url="u")
        wait_until(lambda: not settings.problems, "the key is there")
        assert settings.current == Needy("u")


@pytest.mark.parametrize("model", [int, "Limits", Limits(), dict])
def test_c20_a_model_is_a_dataclass_or_a_pydantic_model(model: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        open_settings("memory://", "p/", model)


def test_c20_open_settings_opens_at_first_use_and_starts_from_its_cache_file(tmp_path: Path) -> None:
    # given settings that were read once
    folder, cache = tmp_path / "store", tmp_path / "cache"
    folder.mkdir()
    url = f"sqlite://{folder}/s.db"
    with connect(url) as store:
        store.new_broker("s/").put("low", b"7")
    with open_settings(url, "s/", Limits, cache=cache) as settings:
        settings.wait_synced(PATIENT)
        assert settings.current == Limits(7)
    # when the store is away
    folder.rename(tmp_path / "away")
    with open_settings(url, "s/", Limits, cache=cache, wait=0.05) as settings:
        # then they are the last good ones
        assert (settings.current, settings.state, settings.status().cached) == (Limits(7), ViewState.STALE, True)


def test_c20_a_pydantic_model_validates_the_whole(memory: Source) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        low: int = 1

    with View(memory.watcher, "settings") as view:
        settings = Settings(view, Model)
        write(memory, low=3)
        wait_until(lambda: settings.current.low == 3, "the settings follow")
        write(memory, low=[CANARY])
        wait_until(lambda: settings.problems, "there is a problem")
        assert settings.current.low == 3
