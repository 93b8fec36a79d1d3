"""The configuration of a Consul connection, with the keys of cn-infra's Consul plugin, from code, URL or file.

Source: cn-infra ``db/keyval/consul/plugin.go``.
"""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from datasync.errors import InvalidArgumentError
from datasync.runtime.files import read_file
from datasync.runtime.http_client.timed_connection import ServerAddress
from datasync.runtime.settings.file import load_settings
from datasync.runtime.settings.values import convert_options, read_flag, read_text, read_whole
from datasync.runtime.tokens import check_token

#: The address if neither the configuration nor the environment names one.
DEFAULT_ADDRESS = "127.0.0.1:8500"
#: Environment variables of Consul's own tools, for the address and the token.
ADDRESS_VARIABLE, TOKEN_VARIABLE = "CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN"
#: The longest wait of a blocking query, in seconds, that Consul accepts.
MAX_WAIT = 600.0
#: The longest time in seconds of any other option.
MAX_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulConfig:
    """The settings of a Consul connection; times are in seconds.

    Args:
      address: ``host:port`` of an agent or server, or its URL, which may have a path; ``https://`` turns TLS on.
      token: The ACL token.
      datacenter: By default that of the agent.
      tls: Turns TLS on with the system's certificate authorities.
      ca_file, cert_file, key_file: PEM files; any of them turns TLS on.
      dial_timeout: Limit for connecting, TLS included.
      operation_timeout: Limit for one call.
      session_ttl: Lifetime of the client-lifetime keys of a dead process. Consul may take twice as long.
      wait: Length of a blocking query. A frozen agent is found after 17/16 of it and a second.
      max_request: Bytes of a transaction as it is sent, ``txn_max_req_len`` of the server.
      resync_after_reconnect: Accepted for compatibility, without effect: the reader misses no change.
    """

    address: str = DEFAULT_ADDRESS
    token: str = field(default="", repr=False)
    datacenter: str = ""
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    dial_timeout: float = 1.0
    operation_timeout: float = 3.0
    session_ttl: float = 10.0
    wait: float = 5.0
    max_request: int = 512 * 1024
    resync_after_reconnect: bool = False

    def __post_init__(self) -> None:
        for name in ("dial_timeout", "operation_timeout", "session_ttl", "wait", "max_request"):
            if not 0 < getattr(self, name) < math.inf:  # also rejects NaN
                raise InvalidArgumentError(f"consul option {_spelled(name)} must be more than 0")
        for name in ("dial_timeout", "operation_timeout", "session_ttl"):
            if getattr(self, name) > MAX_SECONDS:
                raise InvalidArgumentError(f"consul option {_spelled(name)} must be at most {MAX_SECONDS:.0f} s")
        if self.wait > MAX_WAIT:
            raise InvalidArgumentError(f"consul option wait must be at most {MAX_WAIT:.0f} s")
        if self.token:
            check_token(self.token)
        if bool(self.cert_file) != bool(self.key_file):
            raise InvalidArgumentError("consul options cert-file and key-file must be set together")
        self.server  # noqa: B018 - raises for an address that is not one

    @property
    def server(self) -> ServerAddress:
        """The parts of ``address``."""
        return _parse_address(self.address, secure=bool(self.tls or self.ca_file or self.cert_file))

    @property
    def idle_limit(self) -> float:
        """Seconds without a response to a blocking query after which its connection counts as broken.

        Consul answers after the wait, and adds up to a sixteenth so that not all clients come back at once.
        """
        return self.wait * 17 / 16 + 1.0

    def make_context(self) -> ssl.SSLContext | None:
        """Return the TLS context, None without TLS. Raises ``InvalidArgumentError`` for a file that is unusable."""
        if self.server.scheme == "http":
            return None
        for name, path in (("ca-file", self.ca_file), ("cert-file", self.cert_file), ("key-file", self.key_file)):
            if path:
                read_file(f"the {name}", path)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2  # regardless of the system's settings
            if self.cert_file:
                # An encrypted key is an error: without a password argument OpenSSL would prompt on the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = str(getattr(error, "reason", None) or error).replace("_", " ").lower()
            raise InvalidArgumentError(
                f"ca-file, cert-file and key-file must be PEM, without a password, and match ({reason})"
            ) from error
        return context


def read_options(options: Mapping[str, Any], *, environ: Mapping[str, str] | None = None) -> ConsulConfig:
    """Return the configuration for *options*, whose names may have dashes or underscores.

    The key ``config-file`` names a JSON or YAML file for the keys that *options* do not contain.

    Raises:
      InvalidArgumentError: A key is unknown, or a value is invalid. The message never quotes a token.
    """
    environ = os.environ if environ is None else environ
    given = {str(name).replace("_", "-"): value for name, value in options.items()}
    path = given.pop("config-file", None)
    if path is not None:
        given = {**load_file(str(path)), **given}
    settings = convert_options("consul", given, _KINDS)
    if not settings.get("address"):
        settings["address"] = environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    if not settings.get("token"):
        settings["token"] = environ.get(TOKEN_VARIABLE, "")
    return ConsulConfig(**settings)


def load_file(path: str) -> dict[str, Any]:
    """Return the keys and unconverted values of the JSON or YAML file *path*.

    Raises:
      InvalidArgumentError: The file cannot be read, or does not contain a mapping.
    """
    found = load_settings("consul", "consul", path)
    return {name.replace("_", "-"): value for name, value in found.items()}


def _parse_address(address: str, *, secure: bool) -> ServerAddress:
    url = address if "://" in address else f"{'https' if secure else 'http'}://{address}"
    try:
        parsed = parse_url(url)
    except (LocationParseError, ValueError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InvalidArgumentError("a Consul address is host:port, or http://host:port/path")
    if parsed.auth or "@" in (parsed.path or ""):
        raise InvalidArgumentError("a Consul address has no user or password: use the option token")
    if secure and parsed.scheme == "http":
        raise InvalidArgumentError("the Consul address begins with http://, and the options ask for TLS")
    return ServerAddress(parsed.scheme, parsed.host, parsed.port or 8500, (parsed.path or "").rstrip("/"))


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _seconds(name: str, value: object) -> float:
    text = value.removesuffix("s") if isinstance(value, str) else value
    try:
        if isinstance(text, (int, float, str)) and not isinstance(text, bool):
            return float(text)
    except ValueError:
        pass
    raise InvalidArgumentError(f"{name} must be a number of seconds, such as 5 or '5s'")


_BY_TYPE: dict[str, Callable[[str, object], Any]] = {
    "float": _seconds,
    "int": read_whole,
    "str": read_text,
    "bool": read_flag,
}
_KINDS = {_spelled(item.name): _BY_TYPE[str(item.type)] for item in fields(ConsulConfig)}

#: Options of a ``consul://`` URL, and the types to which ``connect`` converts their text. A time stays text, because it
#: may have a unit. The host of the URL is the address.
URL_OPTIONS: dict[str, str] = {
    item.name: "str" if item.type == "float" else str(item.type)
    for item in fields(ConsulConfig)
    if item.name != "address"
} | {"config_file": "str"}
