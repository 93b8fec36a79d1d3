"""The configuration of an etcd connection, with the keys of cn-infra's etcd plugin, from code, URL or file.

Source: cn-infra ``db/keyval/etcd/config.go``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datasync.errors import InvalidArgumentError, UnsupportedError
from datasync.runtime import durations
from datasync.runtime.settings.file import load_settings
from datasync.runtime.settings.values import convert_options, read_flag, read_text, read_whole

#: The endpoint if neither the configuration nor the environment names one.
DEFAULT_ENDPOINT = "127.0.0.1:2379"
#: Environment variables with a comma-separated list of endpoints; the first one that is set applies.
ENDPOINT_VARIABLES = ("ETCD_ENDPOINTS", "ETCDV3_ENDPOINTS")
#: The longest time, in seconds, that grpc accepts.
MAX_SECONDS = 1_000_000_000.0
#: The largest value of an integer option.
MAX_WHOLE = 2**31 - 1
#: Environment variable that turns ``expand-env-variables`` on, with any value.
EXPAND_VARIABLE = "ETCD_EXPAND_ENV_VARS"

_HOST = re.compile(r"[\w.-]{1,253}|\[[\w:.%]{2,60}\]")
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """The settings of an etcd connection; times are in seconds.

    Args:
      endpoints: ``host:port`` of each member, tried in turn; the prefix ``https://`` turns TLS on.
      dial_timeout: Limit for one connection attempt, and for the retries of one call while no endpoint is reachable.
      operation_timeout: Limit for one call.
      session_ttl: Time after the last renewal when the client-lifetime lease expires; whole seconds.
      cert_file, key_file, ca_file: PEM files; any of them turns TLS on.
      tls: Turns TLS on with the system's certificate authorities.
      insecure_transport: Turns TLS off, whatever else is set.
      insecure_skip_tls_verify: Not supported; an error when TLS is on.
      username, password: Credentials for etcd's authentication.
      auto_compact: Interval of compactions of the history; 0: never.
      reconnect_interval, resync_after_reconnect: Accepted for compatibility, without effect: the reader has its own
        backoff and never misses a change.
      allow_delayed_start, expand_env_variables: For the plugin and the serializer that use this store.
      idle_limit: Time without data on a watch after which its connection is treated as broken.
      page_size: Maximum number of keys in one page of a listing.
    """

    endpoints: tuple[str, ...] = ()
    dial_timeout: float = 1.0
    operation_timeout: float = 3.0
    session_ttl: int = 5
    reconnect_interval: float = 2.0
    auto_compact: float = 0.0
    idle_limit: float = 10.0
    page_size: int = 30_000
    cert_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    insecure_transport: bool = False
    insecure_skip_tls_verify: bool = False
    resync_after_reconnect: bool = False
    allow_delayed_start: bool = False
    expand_env_variables: bool = False

    def __post_init__(self) -> None:
        for name in ("dial_timeout", "operation_timeout", "session_ttl", "idle_limit", "page_size"):
            if not getattr(self, name) > 0:  # also rejects NaN
                raise InvalidArgumentError(f"etcd option {_spelled(name)} must be more than 0")
        if not self.auto_compact >= 0:
            raise InvalidArgumentError("etcd option auto-compact must not be negative")
        for name in ("dial_timeout", "operation_timeout", "session_ttl", "idle_limit", "auto_compact"):
            if getattr(self, name) > MAX_SECONDS:
                raise InvalidArgumentError(f"etcd option {_spelled(name)} must be at most {MAX_SECONDS:.0f} s")
        if self.page_size > MAX_WHOLE:
            raise InvalidArgumentError(f"etcd option page-size must be at most {MAX_WHOLE}")
        for name in ("username", "password"):
            if any("\ud800" <= character <= "\udfff" for character in getattr(self, name)):
                raise InvalidArgumentError(f"etcd option {name} must be valid Unicode: it has half of a surrogate pair")
        if bool(self.cert_file) != bool(self.key_file):
            raise InvalidArgumentError("etcd options cert-file and key-file must be set together")
        if self.password and not self.username:
            raise InvalidArgumentError("etcd option password needs a username")
        if self.secure and self.insecure_skip_tls_verify:
            raise UnsupportedError(
                "etcd option insecure-skip-tls-verify is not supported: name the server's authority in ca-file"
            )

    @property
    def secure(self) -> bool:
        """True if connections use TLS."""
        wanted = self.tls or self.cert_file or self.ca_file or any(e.startswith("https://") for e in self.endpoints)
        return bool(wanted) and not self.insecure_transport

    @property
    def page_timeout(self) -> float:
        """The limit for one page of a listing, longer than for other calls.

        A page of a million keys takes the server about a second, and one failed page restarts the listing.
        """
        return max(self.operation_timeout, self.idle_limit)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints as ``host:port``."""
        return tuple(read_address(endpoint) for endpoint in self.endpoints or (DEFAULT_ENDPOINT,))


def read_options(options: Mapping[str, Any], *, environ: Mapping[str, str] | None = None) -> EtcdConfig:
    """Return the configuration for *options*, whose names may have dashes or underscores.

    The key ``config-file`` names a JSON or YAML file for the keys that *options* do not contain.

    Raises:
      InvalidArgumentError: A key is unknown, or a value is invalid. The message never quotes a password.
      UnsupportedError: An option is not supported.
    """
    environ = os.environ if environ is None else environ
    given = {str(name).replace("_", "-"): value for name, value in options.items()}
    path = given.pop("config-file", None)
    if path is not None:
        given = {**load_file(str(path)), **given}
    settings = convert_options("etcd", given, _KINDS)
    if not settings.get("endpoints"):
        listed = next((environ[name] for name in ENDPOINT_VARIABLES if environ.get(name)), DEFAULT_ENDPOINT)
        settings["endpoints"] = _endpoints("etcd option endpoints", listed)
    if EXPAND_VARIABLE in environ:
        settings["expand_env_variables"] = True
    return EtcdConfig(**settings)


def load_file(path: str) -> dict[str, Any]:
    """Return the keys and unconverted values of the JSON or YAML file *path*.

    Raises:
      InvalidArgumentError: The file cannot be read, or does not contain a mapping.
    """
    found = load_settings("etcd", "etcd", path)
    return {name.replace("_", "-"): value for name, value in found.items()}


def read_duration(name: str, value: object) -> float:
    """Convert *value* of the option *name* to seconds; see :func:`datasync.runtime.durations.read_duration`."""
    return durations.read_duration(f"etcd option {name}", value)


def read_address(endpoint: str) -> str:
    """Return ``host:port`` of *endpoint*, which may start with ``http://`` or ``https://``."""
    address = re.sub(r"^https?://", "", endpoint.strip()).rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon or host.endswith(":") or address.endswith("]"):
        host, port = address, "2379"
    if "@" in endpoint:  # a password may precede it
        raise InvalidArgumentError("an etcd endpoint is host:port: use the options username and password")
    if not _HOST.fullmatch(host) or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        # With several colons it may be user:password@host:port with a typing error, so it is not shown.
        shown = f"etcd endpoint {endpoint[:80]!r}" if address.count(":") < 2 else "an etcd endpoint"
        raise InvalidArgumentError(f"{shown} is not host:port or [IPv6 address]:port")
    return f"{host}:{port}"


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _endpoints(name: str, value: object) -> tuple[str, ...]:
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(item, str) for item in listed):
        raise InvalidArgumentError(f"{name} must be a list of host:port")
    endpoints = tuple(item.strip() for item in listed if item.strip())
    for endpoint in endpoints:
        read_address(endpoint)
    return endpoints


_BY_TYPE: dict[str, Callable[[str, object], Any]] = {
    "tuple[str, ...]": _endpoints,
    "float": durations.read_duration,
    "int": read_whole,
    "str": read_text,
    "bool": read_flag,
}
_KINDS = {_spelled(item.name): _BY_TYPE[str(item.type)] for item in fields(EtcdConfig)}

#: Options of an ``etcd://`` URL, and the types to which ``connect`` converts their text. A duration stays text, because
#: it may have a unit. The hosts of the URL are the endpoints.
URL_OPTIONS: dict[str, str] = {
    item.name: "str" if item.type == "float" else str(item.type)
    for item in fields(EtcdConfig)
    if item.name != "endpoints"
} | {"config_file": "str"}
