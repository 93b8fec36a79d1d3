"""The configuration of a Redis connection, with the keys of cn-infra's redis plugin, from code, URL or file.

Source: cn-infra ``db/keyval/redis/config.go``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datasync.errors import InvalidArgumentError
from datasync.runtime.durations import MAX_SECONDS, read_duration
from datasync.runtime.logs import get_logger
from datasync.runtime.settings.file import load_settings
from datasync.runtime.settings.values import convert_options, read_flag, read_text, read_whole

log = get_logger(__name__)

#: Ports of a server and of a sentinel, unless an address names another one.
PORT, SENTINEL_PORT = 6379, 26379
#: Names of the fields that describe the way to the master.
NODE, SENTINEL, CLUSTER = "node", "sentinel", "cluster"

_TAG = re.compile(r"[^{}\x00-\x1f]{1,100}")
_ADDRESS = re.compile(r"(?:\[([\w:.%]{2,60})\]|([\w.-]{1,253}))(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """The settings of a connection; times are in seconds.

    Args:
      addresses: (host, port) of the server, of the sentinels, or of some nodes of the cluster; tried in turn.
      kind: ``node``, ``sentinel`` or ``cluster``.
      master_name: The name by which sentinels know the master.
      db: The number of the database; 0 in a cluster.
      username, password: Credentials of the servers.
      sentinel_username, sentinel_password: Credentials of the sentinels.
      tls: Turns TLS on; so does any file. ca_file: the authorities to trust, by default the system's.
      cert_file, key_file: The client's certificate.
      verify: False accepts any certificate; for tests.
      connect_timeout: Limit for one connection attempt, and for the retries of one call while the master is unknown.
      timeout: Limit for the response to one command.
      tag: Text in braces in front of every key, so that a cluster has all of them in one slot.
      history_commits, history_age, history_bytes: The most commits, seconds and bytes of history to keep.
      session_ttl: Time after the last renewal when client-lifetime keys expire.
      foreign_writers: True if programs without datasync write keys too: their changes are found and delivered.
      foreign_prefix: They write only keys that start so; less to look at than everything.
      wait_replicas: Replicas that must have a commit before it returns; fewer: ``UnknownOutcome``.
      wait_timeout: Limit for that.
      allow_eviction: Accept a server that may evict any key, also the log of the store.
    """

    addresses: tuple[tuple[str, int], ...] = (("127.0.0.1", PORT),)
    kind: str = NODE
    master_name: str = ""
    db: int = 0
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_username: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True
    connect_timeout: float = 5.0
    timeout: float = 3.0
    tag: str = ""
    history_commits: int = 100_000
    history_age: float = 3600.0
    history_bytes: int = 64 * 1024 * 1024
    session_ttl: float = 5.0
    foreign_writers: bool = False
    foreign_prefix: str = ""
    wait_replicas: int = 0
    wait_timeout: float = 1.0
    allow_eviction: bool = False

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "timeout", "session_ttl", "wait_timeout", "history_age"):
            if not 0 < getattr(self, name) <= MAX_SECONDS:  # also rejects NaN
                raise InvalidArgumentError(f"redis option {name} must be more than 0 and at most {MAX_SECONDS:.0f}")
        for name in ("history_commits", "history_bytes"):
            if not 0 < getattr(self, name) < 1 << 53:  # what a number of Lua counts exactly
                raise InvalidArgumentError(f"redis option {name} must be more than 0 and less than 2^53")
        if not 0 <= self.db < 1 << 31 or not 0 <= self.wait_replicas < 1 << 31:
            raise InvalidArgumentError("redis options db and wait_replicas must not be negative, nor 2^31 or more")
        if self.kind == CLUSTER and self.db:
            raise InvalidArgumentError("a Redis cluster has database 0 only")
        if (self.kind == SENTINEL) != bool(self.master_name):
            raise InvalidArgumentError("redis+sentinel:// needs the name of the master: redis+sentinel://host/NAME/DB")
        if self.tag and not _TAG.fullmatch(self.tag):
            raise InvalidArgumentError("redis option tag must be 1 to 100 characters without braces or control codes")
        if bool(self.cert_file) != bool(self.key_file):
            raise InvalidArgumentError("redis options cert_file and key_file must be set together")
        if self.username and not self.password:
            raise InvalidArgumentError("redis option username needs a password")
        for name in ("username", "password", "sentinel_username", "sentinel_password", "foreign_prefix"):
            if any("\ud800" <= character <= "\udfff" for character in getattr(self, name)):
                raise InvalidArgumentError(f"redis option {name} must be valid Unicode")

    @property
    def secure(self) -> bool:
        """True if connections use TLS."""
        return self.tls or bool(self.ca_file or self.cert_file)


def read_options(options: Mapping[str, Any]) -> RedisConfig:
    """Return the configuration for *options*, whose names may have dashes or underscores.

    The key ``config-file`` names a JSON or YAML file, which may be one of cn-infra's redis plugin, for the keys that
    *options* do not contain.

    Raises:
      InvalidArgumentError: A key is unknown, or a value is invalid. The message never quotes a password.
    """
    given = {str(name).replace("_", "-"): value for name, value in options.items()}
    path = given.pop("config-file", None)
    if path is not None:
        given = {**_from_go(_load(str(path))), **given}
    settings = convert_options("redis", given, _KINDS)
    return RedisConfig(**settings)


def read_addresses(what: str, value: object, port: int = PORT) -> tuple[tuple[str, int], ...]:
    """Return (host, port) of each ``host:port`` in *value*, a list or a text with commas."""
    if isinstance(value, tuple) and value and all(isinstance(item, tuple) for item in value):
        return tuple((host, number or port) for host, number in value)
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(item, str) for item in listed):
        raise InvalidArgumentError(f"{what} must be a list of host:port")
    found = []
    for item in listed:
        match = _ADDRESS.fullmatch(item.strip())
        if match is None or not 0 < int(match[3] or port) < 65536:
            raise InvalidArgumentError(f"{what} must be host:port or [IPv6 address]:port")
        found.append((match[1] or match[2], int(match[3] or port)))
    return tuple(found)


#: Keys of the Go plugin that have no counterpart: what they tune is not there, or is always so.
_IGNORED = ("pool", "enable-query-on-slave", "max-rediects", "max-redirects", "route-by-latency", "write-timeout")
_RENAMED = {"dial-timeout": "connect-timeout", "read-timeout": "timeout"}


def _from_go(content: dict[str, Any]) -> dict[str, Any]:
    """Translate the keys of a configuration file of the Go plugin; others are kept."""
    given = dict(content)
    for name in _IGNORED:
        if given.pop(name, None) is not None:
            log.info("the redis configuration has %s, which is ignored: it has no counterpart", name)
    tls = given.pop("tls", {})
    if isinstance(tls, bool):
        given["tls"] = tls
    elif isinstance(tls, Mapping):
        settings = {str(name).replace("_", "-"): value for name, value in tls.items()}
        if settings.pop("enabled", False):
            given["tls"] = True
            given["verify"] = not settings.pop("skip-verify", False)
            given.update(
                (name, settings.pop(name)) for name in ("cert-file", "key-file", "ca-file") if name in settings
            )
    for go, ours in _RENAMED.items():
        if go in given:
            given.setdefault(ours, given.pop(go))
    endpoint, endpoints = given.pop("endpoint", None), given.pop("endpoints", None)
    if given.get("master-name"):
        given["kind"] = SENTINEL
        given["addresses"] = read_addresses("endpoints", endpoints or endpoint or "127.0.0.1", SENTINEL_PORT)
    elif endpoint:
        given["addresses"] = read_addresses("endpoint", endpoint)
    elif endpoints:
        given["kind"] = CLUSTER
        given["addresses"] = read_addresses("endpoints", endpoints)
        given.setdefault("tag", "datasync")
    return given


def _load(path: str) -> dict[str, Any]:
    found = load_settings("redis", "redis", path)
    return {name.replace("_", "-"): value for name, value in found.items()}


_BY_TYPE: dict[str, Callable[[str, object], Any]] = {
    "tuple[tuple[str, int], ...]": read_addresses,
    "float": read_duration,
    "int": read_whole,
    "str": read_text,
    "bool": read_flag,
}
_KINDS = {item.name.replace("_", "-"): _BY_TYPE[str(item.type)] for item in fields(RedisConfig)}

#: Options of a URL, and the types to which ``connect`` converts their text. A duration stays text, because it may have
#: a unit. The hosts, the database and the name of the master are other parts of the URL.
URL_OPTIONS: dict[str, str] = {
    item.name: "str" if item.type == "float" else str(item.type)
    for item in fields(RedisConfig)
    if item.name not in ("addresses", "kind", "master_name", "db")
} | {"config_file": "str"}
