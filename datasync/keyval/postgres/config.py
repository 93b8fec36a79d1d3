"""The settings of a PostgreSQL store, from code or from a URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datasync.errors import InvalidArgumentError
from datasync.keyval.urls import StoreURL

#: Options of libpq that are passed on as they are.
LIBPQ_OPTIONS = (
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "sslnegotiation",
    "channel_binding",
    "passfile",
    "service",
    "krbsrvname",
    "gssencmode",
    "target_session_attrs",
    "application_name",
)
#: The longest name of a schema: its channel has a prefix, and PostgreSQL cuts a name at 63 bytes.
MAX_SCHEMA = 50
DEFAULT_PORT = 5432


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresConfig:
    """The settings of a store; times are in seconds.

    Args:
      hosts: (host, port or None) of each server, tried in turn. Empty: what libpq uses by itself (``PGHOST``, socket).
      database, user, password: As libpq takes them; None: its defaults.
      host: The folder of a Unix socket, instead of *hosts*.
      libpq: Further options of libpq, such as ``sslmode``.
      schema: The schema of the store's tables and functions.
      install: Create or upgrade the schema at first use, if the role may.
      prepare: False behind a pooler in transaction mode: no prepared statements, no settings of the session.
      timeout: Limit for one call, after which the server counts as frozen.
      connect_timeout: Limit for connecting to one host.
      lock_timeout: Time to wait for another transaction; below *timeout*, or it would not be known what became of it.
      pool_size: Connections that calls share. Each stream and each listing has one of its own.
      session_ttl: Time after which the client-lifetime keys of a dead process expire.
      history_age, history_bytes: The history to keep.
      poll_interval: Time between two looks when no notification comes.
    """

    hosts: tuple[tuple[str, int | None], ...] = ()
    database: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    host: str | None = None
    libpq: Mapping[str, str] = field(default_factory=dict, repr=False)
    schema: str = "ds"
    install: bool = True
    prepare: bool = True
    timeout: float = 5.0
    connect_timeout: float = 5.0
    lock_timeout: float = 3.0
    pool_size: int = 4
    session_ttl: float = 5.0
    history_age: float = 3600.0
    history_bytes: int = 64 * 1024 * 1024
    poll_interval: float = 1.0

    def __post_init__(self) -> None:
        for name in ("timeout", "connect_timeout", "lock_timeout", "session_ttl", "poll_interval", "pool_size"):
            _check_number(name, getattr(self, name), least=0.001)
        for name in ("history_age", "history_bytes"):
            _check_number(name, getattr(self, name), least=0)
        if self.lock_timeout >= self.timeout:
            raise InvalidArgumentError("the option lock_timeout of postgres:// must be less than timeout")
        if not self.schema or "\0" in self.schema or len(self.schema.encode()) > MAX_SCHEMA:
            raise InvalidArgumentError(f"the option schema of postgres:// must be 1 to {MAX_SCHEMA} bytes without NUL")
        if self.hosts and self.host is not None:
            raise InvalidArgumentError("the host of postgres:// is in the URL and in the options")

    @property
    def address(self) -> str:
        """The servers and the database, for messages: without user, password and options."""
        hosts = ",".join(f"{f'[{host}]' if ':' in host else host}:{port or DEFAULT_PORT}" for host, port in self.hosts)
        return f"{hosts or self.host or ''}/{self.database or ''}"

    def connections(self) -> list[dict[str, str]]:
        """Return the parameters for libpq, for each host in turn."""
        common: dict[str, str] = {"target_session_attrs": "read-write", "application_name": "datasync", **self.libpq}
        for name, value in (
            ("host", self.host),
            ("dbname", self.database),
            ("user", self.user),
            ("password", self.password),
        ):
            if value is not None:
                common[name] = value
        if self.prepare:
            # A default of the role or database must not change what a commit means, nor how long it can hang.
            common["options"] = (
                r"-c default_transaction_isolation=read\ committed -c default_transaction_read_only=off"
                # Compiling a look takes seconds, running it a millisecond.
                " -c jit=off"
                f" -c lock_timeout={int(self.lock_timeout * 1000)} -c statement_timeout=0"
                # A listing that was left half way, also by a connection that broke, holds up an ALTER TABLE.
                f" -c idle_in_transaction_session_timeout={int(self.timeout * 2000)}"
            )
        return [{**common, "host": host, "port": str(port or DEFAULT_PORT)} for host, port in self.hosts] or [common]


#: The options of a URL or of ``connect``, with their types.
URL_OPTIONS: dict[str, str] = {
    **{
        one.name: str(one.type)
        for one in fields(PostgresConfig)
        if one.name not in ("hosts", "database", "user", "password", "libpq")
    },
    **dict.fromkeys(LIBPQ_OPTIONS, "str"),
}


def read_options(url: StoreURL, options: Mapping[str, Any]) -> PostgresConfig:
    """Return the settings that *url* and *options* name.

    Raises:
      InvalidArgumentError: A setting is out of its range, or is there twice.
    """
    given = {name: value for name, value in options.items() if value is not None}
    libpq = {name: str(given.pop(name)) for name in LIBPQ_OPTIONS if name in given}
    path = url.path.removeprefix("/")
    if "/" in path:
        raise InvalidArgumentError("the path of a postgres:// URL is the name of a database: postgres://host/database")
    return PostgresConfig(
        hosts=url.hosts, database=path or None, user=url.user, password=url.password, libpq=libpq, **given
    )


def _check_number(name: str, value: object, *, least: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value < 1e15:  # type: ignore[operator]
        raise InvalidArgumentError(f"the option {name} of postgres:// must be a number of at least {least:g}")
