"""The settings of an etcd connection: from code, URL, file and environment (GO_REFERENCE rows 49-51; C16)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.keyval.etcd import EtcdConfig, EtcdStore, read_options
from datasync.keyval.etcd.config import read_address, read_duration
from datasync.keyval.urls import connect


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2.0), ("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0), (2_000_000_000, 2.0), (3, 3.0), (0.25, 0.25)],
)
def test_durations_are_written_as_in_go_or_as_seconds(text: object, seconds: float) -> None:
    assert read_duration("dial-timeout", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "2 s", "s", "-1s", "2s5", True, None, float("nan"), float("inf"), -1])
def test_c16_what_is_no_duration_is_refused_with_the_name_of_the_option(text: object) -> None:
    with pytest.raises(InvalidArgumentError, match="dial-timeout"):
        read_duration("dial-timeout", text)


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("h:1", "h:1"),
        ("h", "h:2379"),
        (" http://h:1/ ", "h:1"),
        ("https://h:1", "h:1"),
        ("[::1]:5", "[::1]:5"),
        ("[::1]", "[::1]:2379"),
    ],
)
def test_endpoints_come_with_or_without_scheme_and_port(endpoint: str, address: str) -> None:
    assert read_address(endpoint) == address


@pytest.mark.parametrize("endpoint", ["", ":1", "h:0", "h:70000", "h:x", "a b:1", "user@h:1", "h/x:1"])
def test_c16_a_malformed_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError, match="endpoint"):
        read_address(endpoint)


def test_c16_an_endpoint_with_a_password_is_not_quoted_even_with_a_typing_error() -> None:
    for endpoint in ("me:geheim@h:1", "me:geheim|h:1"):
        with pytest.raises(InvalidArgumentError, match="an etcd endpoint is") as caught:
            read_address(endpoint)
        assert "geheim" not in str(caught.value)


def test_the_keys_of_the_go_system_are_read_from_yaml_and_json(tmp_path: Path) -> None:
    # given the same settings in both languages
    (tmp_path / "etcd.yaml").write_text(
        "endpoints:\n  - 172.17.0.1:2379\n  - b:1\ndial-timeout: 500ms\noperation-timeout: 2000000000\n"
        "session-ttl: 7\nca-file: /ca.pem\nallow-delayed-start: true\nauto-compact: 2h\n"
    )
    content = {
        "endpoints": ["172.17.0.1:2379", "b:1"],
        "dial-timeout": "500ms",
        "operation-timeout": 2_000_000_000,
        "session-ttl": 7,
        "ca-file": "/ca.pem",
        "allow-delayed-start": True,
        "auto-compact": "2h",
    }
    (tmp_path / "etcd.json").write_text(json.dumps(content))
    # when each is read
    from_yaml, from_json = (
        read_options({"config-file": str(tmp_path / name)}, environ={}) for name in ("etcd.yaml", "etcd.json")
    )
    # then both say the same
    assert from_yaml == from_json
    assert from_yaml.addresses == ("172.17.0.1:2379", "b:1")
    assert (from_yaml.dial_timeout, from_yaml.operation_timeout, from_yaml.session_ttl) == (0.5, 2.0, 7)
    assert from_yaml.secure
    assert from_yaml.allow_delayed_start
    assert from_yaml.auto_compact == 7200.0


def test_options_count_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "etcd.yaml").write_text("endpoints: [a:1]\nsession-ttl: 7\n")
    config = read_options({"config_file": str(tmp_path / "etcd.yaml"), "session_ttl": 9}, environ={})
    assert (config.session_ttl, config.addresses) == (9, ("a:1",))


@pytest.mark.parametrize("content", ["- a\n", "endpoints: [", "\xff\xfe"])
def test_c16_a_file_that_is_no_mapping_is_refused_without_quoting_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "etcd.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidArgumentError, match="not a JSON or YAML mapping") as caught:
        read_options({"config-file": str(tmp_path / "etcd.yaml")}, environ={})
    assert caught.value.__cause__ is None


def test_c16_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="none.yaml"):
        read_options({"config-file": str(tmp_path / "none.yaml")}, environ={})


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'dial-timout': did you mean 'dial-timeout'"):
        read_options({"dial-timout": "1s"}, environ={})


@pytest.mark.parametrize(
    "options",
    [
        {"session-ttl": 0},
        {"session-ttl": 1.5},
        {"dial-timeout": 0},
        {"auto-compact": "x"},
        {"endpoints": 5},
        {"ca-file": 5},
        {"insecure-transport": "maybe"},
        {"cert-file": "c"},
        {"password": "p"},
    ],
)
def test_c16_a_bad_value_is_refused_with_the_name_of_its_option(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        read_options(options, environ={})


def test_endpoints_come_from_the_environment_when_none_are_configured() -> None:
    assert read_options({}, environ={"ETCDV3_ENDPOINTS": "b:2"}).addresses == ("b:2",)
    both = {"ETCD_ENDPOINTS": "a:1, c:3", "ETCDV3_ENDPOINTS": "b:2"}
    assert read_options({}, environ=both).addresses == ("a:1", "c:3")
    assert read_options({"endpoints": ["x:9"]}, environ=both).addresses == ("x:9",)
    assert read_options({}, environ={}).addresses == ("127.0.0.1:2379",)


def test_any_value_of_the_variable_turns_expansion_on() -> None:
    assert read_options({}, environ={"ETCD_EXPAND_ENV_VARS": ""}).expand_env_variables
    assert not read_options({}, environ={}).expand_env_variables


def test_tls_is_on_with_a_file_or_https_and_insecure_transport_wins() -> None:
    assert EtcdConfig(ca_file="ca").secure
    assert EtcdConfig(endpoints=("https://h:1",)).secure
    assert EtcdConfig(tls=True).secure
    assert not EtcdConfig(insecure_skip_tls_verify=True).secure
    assert not EtcdConfig(ca_file="ca", insecure_transport=True, insecure_skip_tls_verify=True).secure


def test_a_switch_that_cannot_be_honoured_is_refused_not_ignored() -> None:
    with pytest.raises(UnsupportedError, match="insecure-skip-tls-verify.*ca-file"):
        EtcdConfig(ca_file="ca", insecure_skip_tls_verify=True)


def test_a_url_says_it_all_and_neither_name_nor_repr_tells_the_password() -> None:
    with connect("etcd://me:s%40cret@h1:1,[::1]:2,h3/?dial_timeout=500ms&session_ttl=9&idle_limit=2s") as store:
        assert isinstance(store, EtcdStore)
        assert store.config.addresses == ("h1:1", "[::1]:2", "h3:2379")
        assert (store.config.username, store.config.password) == ("me", "s@cret")
        assert (store.config.dial_timeout, store.config.session_ttl, store.idle_limit) == (0.5, 9, 2.0)
        assert store.name == "etcd://h1:1,[::1]:2,h3:2379"
        assert "s@cret" not in repr(store.config) + repr(store) + store.name


@pytest.mark.parametrize(
    ("url", "options", "word"),
    [
        ("etcd://h:1/some/prefix", {}, "path"),
        ("etcd://me@h:1", {"username": "you"}, "username"),
        ("etcd://h:1?dial_timout=1s", {}, "dial_timeout"),
        ("etcd://h:1?dial_timeout=soon", {}, "dial-timeout"),
        ("etcd://h:1?config_file=/nowhere/etcd.yaml", {}, "nowhere"),
    ],
)
def test_c16_a_bad_url_is_refused(url: str, options: dict[str, object], word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word):
        connect(url, **options)
