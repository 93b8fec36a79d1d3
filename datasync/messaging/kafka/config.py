"""The configuration of a Kafka connection, with the keys of cn-infra's Kafka plugin, from code, URL or file.

Source: cn-infra ``messaging/kafka/mux/config.go``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datasync.errors import InvalidArgumentError
from datasync.runtime.durations import read_duration
from datasync.runtime.files import read_file
from datasync.runtime.settings.file import load_settings
from datasync.runtime.settings.values import convert_options, read_flag, read_text, read_whole

#: The broker if the configuration names none, and the port if an address names none.
DEFAULT_ADDRESS = "127.0.0.1:9092"
DEFAULT_PORT = 9092
#: Mechanisms of SASL that need a name and a password.
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
#: The longest timeout in seconds, and the largest value of a message in bytes, that librdkafka accepts.
MAX_TIMEOUT, MAX_MESSAGE = 300.0, 1_000_000_000

_ADDRESS = re.compile(r"(?:[\w.-]{1,253}|\[[0-9a-fA-F:.%]{2,60}\]):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """The settings of a Kafka connection; times are in seconds.

    Args:
      addrs: ``host:port`` of some brokers; they name the others.
      group_id: The group whose committed offsets a :class:`~datasync.messaging.mux.Mux` starts from. Go takes the
        service label. Nothing here joins the group.
      timeout: Limit for one call, and for the acknowledgement of a message.
      max_message_bytes: Limit of a message, key and value; the topic has a limit of its own.
      tls: Use TLS. The certificate authorities are the system's, or those in *ca_file*.
      ca_file, cert_file, key_file: PEM files.
      skip_verify: Do not verify the certificate of the broker: anybody can read and change what passes.
      sasl_mechanism, sasl_username, sasl_password: Credentials; ``PLAIN`` by default.
      topic: The topic of msgsync (Go key ``Topic``).
    """

    addrs: tuple[str, ...] = ()
    group_id: str = "datasync"
    timeout: float = 5.0
    max_message_bytes: int = 1_000_000
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    skip_verify: bool = False
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    topic: str = ""

    def __post_init__(self) -> None:
        for address in self.addresses:
            _check_address(address)
        if not self.group_id:
            raise InvalidArgumentError("Kafka option group-id must not be empty")
        if not 0.1 <= self.timeout <= MAX_TIMEOUT:  # also rejects NaN
            raise InvalidArgumentError(f"Kafka option timeout must be from 0.1 to {MAX_TIMEOUT:.0f} s")
        if not 1000 <= self.max_message_bytes <= MAX_MESSAGE:
            raise InvalidArgumentError(f"Kafka option max-message-bytes must be from 1000 to {MAX_MESSAGE}")
        if bool(self.cert_file) != bool(self.key_file):
            raise InvalidArgumentError("Kafka options cert-file and key-file must be set together")
        if (self.ca_file or self.cert_file or self.skip_verify) and not self.tls:
            raise InvalidArgumentError("Kafka options of TLS need tls: enabled must be true")
        if bool(self.sasl_username) != bool(self.sasl_password):
            raise InvalidArgumentError("Kafka options sasl-username and sasl-password must be set together")
        if self.sasl_mechanism and self.sasl_mechanism not in MECHANISMS:
            raise InvalidArgumentError(f"Kafka option sasl-mechanism must be one of {', '.join(MECHANISMS)}")
        if self.sasl_mechanism and not self.sasl_username:
            raise InvalidArgumentError("Kafka option sasl-mechanism needs sasl-username and sasl-password")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The brokers as ``host:port``."""
        return self.addrs or (DEFAULT_ADDRESS,)

    def client_settings(self) -> dict[str, Any]:
        """Return the settings of librdkafka that all clients of the connection share. Raises for an unreadable file."""
        settings: dict[str, Any] = {
            "bootstrap.servers": ",".join(self.addresses),
            "security.protocol": ("SASL_" if self.sasl_username else "") + ("SSL" if self.tls else "PLAINTEXT"),
            "socket.timeout.ms": 8000,
            "socket.connection.setup.timeout.ms": 4000,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "broker.address.family": "any",
            "client.id": "datasync",
            # Its log goes to stderr otherwise, a line for each attempt; what matters comes as an error.
            "log_level": 0,
        }
        if self.tls:
            for name, path in (("ca", self.ca_file), ("certificate", self.cert_file), ("key", self.key_file)):
                if path:
                    read_file(f"the {name} file of Kafka", path)
                    settings[f"ssl.{name}.location"] = path
            if self.skip_verify:
                settings["enable.ssl.certificate.verification"] = False
        if self.sasl_username:
            settings["sasl.mechanisms"] = self.sasl_mechanism or MECHANISMS[0]
            settings["sasl.username"] = self.sasl_username
            settings["sasl.password"] = self.sasl_password
        return settings


def read_options(options: Mapping[str, Any]) -> KafkaConfig:
    """Return the configuration for *options*, whose names may have dashes or underscores.

    ``config-file`` names a JSON or YAML file for the keys that *options* do not contain. The mapping ``tls`` of Go's
    files has ``enabled``, ``skip-verify``, ``ca-file``, ``cert-file`` and ``key-file``.

    Raises:
      InvalidArgumentError: A key is unknown, or a value is invalid. The message never quotes a password.
    """
    given = _flat(options)
    path = given.pop("config-file", None)
    if path is not None:
        given = {**_flat(load_file(read_text("Kafka option config-file", path))), **given}
    settings = convert_options("Kafka", given, _KINDS)
    return KafkaConfig(**settings)


def load_file(path: str) -> dict[str, Any]:
    """Return the keys and unconverted values of the JSON or YAML file *path*. Raises ``InvalidArgumentError``."""
    return load_settings("Kafka", "kafka", path)


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return *options* with dashes and in lower case, and those of the mapping ``tls`` beside the others."""
    given = {str(name).replace("_", "-").lower(): value for name, value in options.items()}
    nested = given.get("tls")
    if isinstance(nested, Mapping):
        del given["tls"]
        inner = {str(name).replace("_", "-").lower(): value for name, value in nested.items()}
        enabled = read_flag("Kafka option tls.enabled", inner.pop("enabled", False))
        # Go ignores the rest where TLS is not enabled.
        given = {**given, "tls": enabled, **(inner if enabled else {})}
    return given


def _check_address(address: str) -> None:
    if "@" in address:  # a password may precede it
        raise InvalidArgumentError("a Kafka address is host:port: use the options sasl-username and sasl-password")
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[1]) < 65536:
        shown = f"Kafka address {address[:80]!r}" if address.count(":") < 2 else "a Kafka address"
        raise InvalidArgumentError(f"{shown} is not host:port or [IPv6 address]:port")


def _addresses(name: str, value: object) -> tuple[str, ...]:
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(item, str) for item in listed):
        raise InvalidArgumentError(f"{name} must be a list of host:port")
    return tuple(item.strip() for item in listed if item.strip())


_BY_TYPE: dict[str, Callable[[str, object], Any]] = {
    "tuple[str, ...]": _addresses,
    "float": read_duration,
    "int": read_whole,
    "str": read_text,
    "bool": read_flag,
}
_KINDS = {item.name.replace("_", "-"): _BY_TYPE[str(item.type)] for item in fields(KafkaConfig)}

#: Options of a ``kafka://`` URL, and the types to which their text is converted. The hosts of the URL are the brokers.
URL_OPTIONS: dict[str, str] = {
    item.name: "str" if item.type == "float" else str(item.type)
    for item in fields(KafkaConfig)
    if item.name not in ("addrs", "topic")
} | {"config_file": "str"}
