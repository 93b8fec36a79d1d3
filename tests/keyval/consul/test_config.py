"""The settings of a Consul connection, from code, URL, file and environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError
from datasync.keyval import connect
from datasync.keyval.consul import ConsulConfig, ConsulStore, read_options
from tests.conftest import CANARY

ENVIRONMENT = {"CONSUL_HTTP_ADDR": "10.0.0.1:8501", "CONSUL_HTTP_TOKEN": f"{CANARY}-token"}


def test_the_keys_of_the_go_plugin_are_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "consul.conf"
    file.write_text("address: 172.17.0.3:8500\nresync-after-reconnect: true\n")
    config = read_options({"config_file": str(file)}, environ={})
    assert (config.server.host, config.server.port, config.resync_after_reconnect) == ("172.17.0.3", 8500, True)


def test_arguments_win_over_the_file_and_the_environment_fills_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "consul.conf"
    file.write_text('{"datacenter": "file", "wait": "2s"}')
    config = read_options({"config-file": str(file), "datacenter": "argument"}, environ=ENVIRONMENT)
    assert (config.datacenter, config.wait, config.address) == ("argument", 2.0, "10.0.0.1:8501")
    assert config.token == ENVIRONMENT["CONSUL_HTTP_TOKEN"]
    assert read_options({}, environ={}).address == "127.0.0.1:8500"


def test_a_url_has_the_address_the_path_of_a_gateway_and_options() -> None:
    with connect("consul://[::1]:81/consul/?datacenter=dc2&wait=1s", token="t") as store:
        assert isinstance(store, ConsulStore)
        assert store.name == "consul://[::1]:81/consul"
        assert (store.config.datacenter, store.config.wait, store.config.token) == ("dc2", 1.0, "t")


@pytest.mark.parametrize(
    "url",
    [
        "consul://user@h",
        f"consul://u:{CANARY}@h",
        "consul://h1,h2",
        "consul:///path",
        "consul://h?wait=0",
        "consul://h?x=1",
        "consul://h?wait=700s",
        "consul://h?cert_file=a",
        "consul://h?token=two%20words",
        "consul://h?max_request=x",
    ],
)
def test_c16_a_bad_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        connect(url)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"address": "ftp://h"},
        {"address": f"u:{CANARY}@h:1"},
        {"address": "http://h", "tls": True},
        {"wait": float("nan")},
        {"session_ttl": 0},
        {"session_ttl": 100000.0},
        {"address": "h:99999"},
    ],
)
def test_c16_a_bad_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ConsulConfig(**settings)
    assert CANARY not in str(caught.value)


def test_c16_an_unknown_key_names_the_nearest_one_and_a_token_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean 'address'"):
        read_options({"adress": "h"}, environ={})
    assert CANARY not in repr(ConsulConfig(token=f"{CANARY}x"))
    broken = tmp_path / "consul.conf"
    broken.write_text(f"token: [{CANARY}")
    with pytest.raises(InvalidArgumentError) as caught:
        read_options({"config_file": str(broken)}, environ={})
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["ca_file", "cert_file"])
def test_c16_a_tls_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    more = {"key_file": missing} if name == "cert_file" else {}
    with pytest.raises(InvalidArgumentError, match=r"missing\.pem"):
        ConsulStore(ConsulConfig(**{name: missing, **more}))
