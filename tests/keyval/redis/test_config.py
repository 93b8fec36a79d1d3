"""Settings from URLs, options and configuration files of the Go plugin; keys, tags and slots (C16)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError
from datasync.keyval import connect
from datasync.keyval.redis import RedisConfig, RedisStore, read_options
from datasync.keyval.redis.keys import KeySpace
from datasync.keyval.redis.topology import slot_of
from tests.conftest import CANARY


def opened(url: str, **options: Any) -> RedisConfig:
    with connect(url, **options) as store:
        assert isinstance(store, RedisStore)
        return store.config


def test_a_url_names_server_user_password_and_database() -> None:
    config = opened("redis://me:p%40ss@h:7000/3?timeout=500ms&foreign_writers=true&history_commits=7")
    assert config == RedisConfig(
        addresses=(("h", 7000),),
        username="me",
        password="p@ss",
        db=3,
        timeout=0.5,
        foreign_writers=True,
        history_commits=7,
    )
    assert opened("redis://h").addresses == (("h", 6379),)
    assert opened("redis://:secret@h").password == "secret"
    assert opened("rediss://h").secure


def test_urls_of_sentinels_and_clusters() -> None:
    config = opened("redis+sentinel://:pw@s1,s2:7001/mymaster/2?sentinel_password=other")
    assert (config.addresses, config.master_name, config.db) == ((("s1", 26379), ("s2", 7001)), "mymaster", 2)
    assert (config.password, config.sentinel_password) == ("pw", "other")
    config = opened("redis+cluster://h1,h2:7001")
    assert (config.addresses, config.tag) == ((("h1", 6379), ("h2", 7001)), "datasync")
    assert opened("redis+cluster://h1?tag=mine").tag == "mine"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h1,h2", "takes one host"),
        ("redis://h/x", "number of a database"),
        ("redis://h/1/2", "number of a database"),
        ("redis+sentinel://h", "needs the name of the master"),
        ("redis+sentinel://h/m/x", "number of a database"),
        ("redis+cluster://h/1", "database 0 only"),
        ("redis://h?timeout=0", "timeout must be more than 0"),
        ("redis://h?timeout=nan", "must be a duration"),
        ("redis://h?timout=1", "did you mean timeout"),
        ("redis://h?tag={x}", "without braces"),
        ("redis://h?cert_file=x", "must be set together"),
        ("redis://h?history_commits=0", "history_commits must be more than 0"),
        ("redis://h?verify=perhaps", "must be true or false"),
        ("redis://me@h", "username needs a password"),
        ("redis://:pw@h?password=x", "in the redis:// URL and in the options"),
    ],
)
def test_c16_a_bad_url_is_refused_by_name(url: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        connect(url)


def test_c16_no_password_is_shown() -> None:
    config = opened(f"redis://me:{CANARY}@h", sentinel_password=CANARY)
    assert CANARY not in repr(config)
    with connect(f"redis://me:{CANARY}@h") as store:
        assert CANARY not in store.name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("endpoint: h:7000\ndb: 2\npassword: pw\ndial-timeout: 2s\nread-timeout: 1500000000\n",
         {"addresses": (("h", 7000),), "db": 2, "password": "pw", "connect_timeout": 2.0, "timeout": 1.5}),
        ("endpoint: h\ntls: {enabled: true, skip-verify: true, ca-file: /ca.pem}\n",
         {"addresses": (("h", 6379),), "tls": True, "verify": False, "ca_file": "/ca.pem"}),
        ("endpoints: [h1:7000, h2]\nmax-rediects: 3\nroute-by-latency: true\npool: {max-connections: 5}\n",
         {"kind": "cluster", "addresses": (("h1", 7000), ("h2", 6379)), "tag": "datasync"}),
        ("endpoints: [s1, s2:7000]\nmaster-name: m\nwrite-timeout: 3s\nenable-query-on-slave: true\n",
         {"kind": "sentinel", "addresses": (("s1", 26379), ("s2", 7000)), "master_name": "m"}),
        ('{"endpoint": "h", "tls": {"skip-verify": true}}', {"addresses": (("h", 6379),)}),
        ("", {}),
    ],
)  # fmt: skip
def test_a_configuration_file_of_the_go_plugin_is_read(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    path = tmp_path / "redis.conf"
    path.write_text(text)
    assert read_options({"config_file": str(path)}) == RedisConfig(**expected)


@pytest.mark.parametrize("text", ["- a list", "endpoint: [", "nothing: here", "endpoint: 'h:x'", "db: one"])
def test_c16_a_bad_configuration_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "redis.conf"
    path.write_text(f"{text}\npassword: {CANARY}" if ":" in text else text)
    with pytest.raises(InvalidArgumentError) as caught:
        read_options({"config_file": str(path)})
    assert CANARY not in str(caught.value)


def test_an_argument_is_stronger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "redis.conf"
    path.write_text("endpoint: elsewhere\nread-timeout: 9s\n")
    config = opened("redis://h:7000", config_file=str(path), timeout=2.0)
    assert (config.addresses, config.timeout) == ((("h", 7000),), 2.0)
    assert opened("redis:", config_file=str(path)).addresses == (("elsewhere", 6379),)


def test_a_tag_is_in_front_of_every_key() -> None:
    keys = KeySpace("mine")
    assert keys.encode("/a") == b"{mine}/a"
    assert keys.decode(b"{mine}/a") == "/a"
    assert all(key.startswith(b"{mine}datasync:") for key in keys.own)
    assert keys.is_own(b"{mine}datasync:log")
    assert keys.is_own(b"/a")
    assert not keys.is_own(b"{mine}/a")
    assert KeySpace().span("a\udcff") == (b"[a\xff", b"(b")
    assert KeySpace().span("") == (b"[", b"+")


def test_the_slot_of_a_tag_is_that_of_the_server() -> None:
    assert (slot_of(b"123456789"), slot_of(b"datasync")) == (12739, 4814)


@pytest.mark.parametrize("key", ["datasync:", "datasync:log"])
def test_c16_the_keys_of_the_store_are_reserved(key: str) -> None:
    with pytest.raises(InvalidArgumentError, match="reserved"):
        KeySpace().encode(key)
