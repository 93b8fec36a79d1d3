"""URLs of stores: what ``connect`` opens, and what it says when it cannot (C16)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError, MissingExtraError
from datasync.keyval import DriverEntry, StoreURL, connect, parse_url, urls
from datasync.keyval.memory import MemoryStore
from datasync.keyval.sqlite import SQLiteStore


def test_a_url_is_read_into_its_parts() -> None:
    url = parse_url("ETCD://me:p%40ss@h1:2379,[::1]:2380,h3/a%20b?ca_file=%2Fx&dial_timeout=2")
    query = {"ca_file": "/x", "dial_timeout": "2"}
    assert url == StoreURL("etcd", (("h1", 2379), ("::1", 2380), ("h3", None)), "me", "p@ss", "/a b", query)
    assert "p@ss" not in repr(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/var/lib/agent.db", "starts with a scheme, as in sqlite:///var/lib/agent.db"),
        ("", "starts with a scheme"),
        ("etcd://h:port", "a host of the etcd: URL is malformed"),
        ("etcd://h:70000", "a port of the etcd: URL is not between 1 and 65535"),
        ("etcd:h:2379", "the etcd: URL has no // before the host: write etcd://host:port$"),
        ("redis:h:6379", "the redis: URL has no // before the host: write redis://host:port/DB"),
        ("postgres:many", "the postgres: URL has no // before the host: write postgres://host/database"),
        ("consul:h", "the consul: URL has no // before the host: write consul://host:port"),
        ("kafka:h", "the kafka: URL has no // before the host: write kafka://host:port/topic"),
        ("etcd://h1,,h2", "a host of the etcd: URL is malformed"),
        ("sqlite:///a%2", "the path of the sqlite: URL is not percent-encoded"),
        ("sqlite:///a#b", "no fragment: write # as %23"),
        ("memory://a?history", "the options of the memory: URL are malformed"),
        ("memory://a?history=1&history=2", "has an option twice"),
        ("memory://a:1", "write memory:// or memory://name"),
        ("sqlite://store.db", "sqlite:///absolute/path or sqlite:relative/path"),
        ("sqlite://", "sqlite:///absolute/path or sqlite:relative/path"),
        ("sqllite:///a", r"unknown store scheme sqllite:// \(did you mean sqlite://\?\); known: memory://, sqlite://"),
        ("quux:///a", "unknown store scheme quux://; known:"),
        ("memory://a?histroy=1", r"memory:// has no option 'histroy' \(did you mean history\?\); known: history"),
        ("memory://a?history=many", "the option history of memory:// must be a whole number"),
        ("sqlite:///a?poll_interval=s00n", "the option poll_interval of sqlite:// must be a number"),
    ],
)
def test_c16_what_is_wrong_with_a_url_is_said(url: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        connect(url)
    assert "many" not in str(caught.value)
    assert "s00n" not in str(caught.value)


def test_c16_an_unknown_argument_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"'poll_intervall' \(did you mean poll_interval\?\); known: .*session_ttl"
    ):
        connect(f"sqlite://{tmp_path}/a.db", poll_intervall=1)
    assert list(tmp_path.iterdir()) == []


def test_c16_an_option_that_has_two_spellings_is_listed_once() -> None:
    with pytest.raises(InvalidArgumentError, match="known: config-file, configuration-paths, .*status-path") as caught:
        connect("file:/x?quux=1")
    assert "_paths" not in str(caught.value)


def test_c16_an_option_may_not_stand_in_both_places() -> None:
    with pytest.raises(InvalidArgumentError, match="history of memory:// is in the URL and in the arguments"):
        connect("memory://?history=5", history=6)


def test_c16_a_missing_client_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a driver whose library is not installed
    monkeypatch.setitem(urls.DRIVERS, "odd", DriverEntry("tests.keyval.odd_driver:OddStore", "odd"))
    monkeypatch.setitem(sys.modules, "tests.keyval.odd_driver", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'datasync-kv\[odd\]'"):
        connect("odd://")


def test_options_of_the_query_and_of_the_call_reach_the_driver(tmp_path: Path) -> None:
    with connect(f"sqlite://{tmp_path}/a%20b.db?poll_interval=0.5", session_ttl=9.0) as store:
        assert isinstance(store, SQLiteStore)
        assert (store._poll_interval, store._lease.ttl) == (0.5, 9.0)
        assert store.name == f"sqlite://{tmp_path}/a b.db"


def test_a_relative_path_is_written_without_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with connect("sqlite:a.db") as store:
        assert store.name == f"sqlite://{tmp_path}/a.db"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("Yes", True), ("0", False), ("off", False)])
def test_a_truth_value_of_the_query_is_read(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    class OddStore(MemoryStore):
        @classmethod
        def from_url(cls, url: StoreURL, *, tls: bool = False) -> Any:  # type: ignore[override]
            store = cls()
            store.tls = tls  # type: ignore[attr-defined]
            return store

    monkeypatch.setattr("datasync.keyval.memory.MemoryStore", OddStore)
    with connect(f"memory://?tls={text}") as store:
        assert store.tls is value  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgumentError, match="tls of memory:// must be true or false"):
        connect("memory://?tls=perhaps")
