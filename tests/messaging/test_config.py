"""The configuration of Kafka, with the keys of the original (GO_REFERENCE row 79; C16)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datasync.errors import InvalidArgumentError

config = pytest.importorskip("datasync.messaging.kafka.config")

GO_FILE = """
addrs:
  - 10.0.0.1:9092
  - "kafka.example.org:9093"
group_id: vpp1
Topic: if_state
timeout: {timeout}
tls:
  enabled: {enabled}
  skip-verify: false
  ca-file: ""
"""


@pytest.mark.parametrize("timeout", ["2500000000", "2.5s", '"2500ms"', "2.5"])
def test_the_file_of_the_original_is_read(tmp_path: Path, timeout: str) -> None:
    path = tmp_path / "kafka.conf"
    path.write_text(GO_FILE.format(timeout=timeout, enabled="true"))
    read = config.read_options({"config_file": str(path)})
    assert read.addresses == ("10.0.0.1:9092", "kafka.example.org:9093")
    assert (read.group_id, read.topic, read.timeout, read.tls) == ("vpp1", "if_state", 2.5, True)
    settings = read.client_settings()
    assert settings["security.protocol"] == "SSL"
    assert settings["bootstrap.servers"] == "10.0.0.1:9092,kafka.example.org:9093"


def test_arguments_come_before_the_file_and_tls_that_is_off_is_off(tmp_path: Path) -> None:
    path = tmp_path / "kafka.conf"
    path.write_text(GO_FILE.format(timeout="1s", enabled="false"))
    read = config.read_options({"config-file": str(path), "group-id": "mine", "addrs": "h:1"})
    assert (read.group_id, read.addresses, read.tls) == ("mine", ("h:1",), False)


def test_the_defaults_are_those_of_the_original() -> None:
    read = config.read_options({})
    assert read.addresses == ("127.0.0.1:9092",)
    assert read.client_settings()["security.protocol"] == "PLAINTEXT"


def test_credentials_turn_sasl_on_and_are_in_no_repr() -> None:
    read = config.read_options({"sasl-username": "u", "sasl-password": "hidden", "tls": True})
    settings = read.client_settings()
    assert (settings["security.protocol"], settings["sasl.mechanisms"]) == ("SASL_SSL", "PLAIN")
    assert settings["sasl.password"] == "hidden"
    assert "hidden" not in repr(read)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adrs": "h:1"}, "did you mean 'addrs'"),
        ({"addrs": "h"}, "is not host:port"),
        ({"addrs": "h:0"}, "is not host:port"),
        ({"addrs": "user:hidden@h:1"}, "use the options sasl-username"),
        ({"addrs": 5}, "must be a list"),
        ({"timeout": "soon"}, "must be a duration"),
        ({"timeout": 0}, "timeout must be from"),
        ({"timeout": float("nan")}, "number of seconds"),
        ({"group_id": ""}, "group-id must not be empty"),
        ({"max_message_bytes": 5}, "max-message-bytes must be"),
        ({"sasl_username": "u"}, "must be set together"),
        ({"sasl_mechanism": "GSSAPI", "sasl_username": "u", "sasl_password": "p"}, "must be one of"),
        ({"sasl_mechanism": "PLAIN"}, "needs sasl-username"),
        ({"ca_file": "x"}, "must be true"),
        ({"cert_file": "x", "tls": True}, "must be set together"),
        ({"tls": {"enabled": "perhaps"}}, "must be true or false"),
        ({"tls": {"enabled": True, "cafile": "x"}}, "did you mean 'ca-file'"),
        ({"config_file": "/does/not/exist"}, "cannot read"),
    ],
)
def test_c16_a_bad_setting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as found:
        config.read_options(options)
    assert "hidden" not in str(found.value)


def test_c16_a_certificate_that_is_not_there_is_named_before_anything_is_opened() -> None:
    read = config.read_options({"tls": True, "ca_file": "/does/not/exist"})
    with pytest.raises(InvalidArgumentError, match="ca file of Kafka"):
        read.client_settings()


def test_c16_a_file_that_is_no_mapping_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "kafka.conf"
    path.write_text("- hidden")
    with pytest.raises(InvalidArgumentError, match="not a JSON or YAML mapping") as found:
        config.read_options({"config_file": str(path)})
    assert "hidden" not in str(found.value)
