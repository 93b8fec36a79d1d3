"""Store URLs: ``connect("etcd://host:2379")`` finds the driver, validates the options and opens the store.

A new store needs one line in ``DRIVERS``. A driver is imported when its scheme is first used.

Source: contract C16.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from datasync.errors import DatasyncError, InvalidArgumentError, MissingExtraError
from datasync.keyval.api import Store


@dataclass(frozen=True, slots=True)
class StoreURL:
    """The percent-decoded parts of a store URL. The repr omits every part that may hold a password, even misplaced."""

    scheme: str
    #: (host, port or None), in order; IPv6 addresses without brackets.
    hosts: tuple[tuple[str, int | None], ...] = ()
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    path: str = field(default="", repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)


class DriverEntry(NamedTuple):
    """The location of a scheme's driver class (``module:Class``), and the extra that installs its client library.

    ``form`` is what follows ``//`` in the URL of a store that is a server.

    The class opens a store with ``from_url(url, **options)``. The first of these that is not empty names its options:
    the keyword-only parameters of ``from_url``; the mapping ``url_options`` of names to annotations, if the class has
    one; the keyword-only parameters of the constructor.
    """

    target: str
    extra: str = ""
    form: str = ""


#: Scheme to driver.
DRIVERS: dict[str, DriverEntry] = {
    "memory": DriverEntry("datasync.keyval.memory:MemoryStore"),
    "sqlite": DriverEntry("datasync.keyval.sqlite.store:SQLiteStore"),
    "file": DriverEntry("datasync.keyval.filedb.writable:WritableFileStore", "file"),
    "etcd": DriverEntry("datasync.keyval.etcd.store:EtcdStore", "etcd", "host:port"),
    "redis": DriverEntry("datasync.keyval.redis.store:RedisStore", "redis", "host:port/DB"),
    "rediss": DriverEntry("datasync.keyval.redis.store:RedisStore", "redis", "host:port/DB"),
    "redis+sentinel": DriverEntry("datasync.keyval.redis.store:RedisStore", "redis", "host:port/NAME/DB"),
    "redis+cluster": DriverEntry("datasync.keyval.redis.store:RedisStore", "redis", "host:port"),
    "kafka": DriverEntry("datasync.msgsync.kafka_url:KafkaTopicStore", "kafka", "host:port/topic"),
    "consul": DriverEntry("datasync.keyval.consul.store:ConsulStore", "consul", "host:port"),
    "postgres": DriverEntry("datasync.keyval.postgres.store:PostgresStore", "postgres", "host/database"),
    "postgresql": DriverEntry("datasync.keyval.postgres.store:PostgresStore", "postgres", "host/database"),
}

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?", re.DOTALL)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:@\s]+))(?::([0-9]{1,5}))?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def connect(url: str, **options: object) -> Store:
    """Open the store at *url*: ``memory://name``, ``sqlite:///absolute/path``, ``etcd://host:port,host:port``,
    ``redis://host:port/DB``, ``consul://host:port``, ``postgres://host/database``, ``kafka://host:port/topic``,
    ``file:///absolute/folder``.

    Args:
      url: ``scheme://user:password@host:port,…/path?option=value`` with special characters percent-encoded.
      options: Options of the driver. Each may be in the URL's query or here, not in both.

    Raises:
      InvalidArgumentError: The URL is malformed, the scheme or an option is unknown, or an option is invalid.
      MissingExtraError: The driver's client library is not installed.
      StoreError: The store cannot be opened.

    .. versionadded:: 1.0
    """
    return prepare(url, **options)()


def prepare(url: str, **options: object) -> Callable[[], Store]:
    """Check the arguments of :func:`connect` and import the driver; return the function that opens the store.

    It may be called in a forked child, and again. Raises as ``connect``.
    """
    parsed = parse_url(url)
    driver = _load(parsed.scheme)
    form = DRIVERS[parsed.scheme].form
    if form and parsed.path and not parsed.path.startswith("/"):  # without // even the host is a part of the path
        raise InvalidArgumentError(
            f"the {parsed.scheme}: URL has no // before the host: write {parsed.scheme}://{form}"
        )
    opened: Callable[[], Store] = partial(driver.from_url, parsed, **_merge(parsed, options, _known_options(driver)))
    return opened


def parse_url(url: str) -> StoreURL:
    """Return the parts of *url*. Raises ``InvalidArgumentError`` without quoting *url*, which may hold a password."""
    if not isinstance(url, str):
        raise InvalidArgumentError(f"a store URL must be a string, not {type(url).__name__}")
    match = _URL.fullmatch(url)
    if match is None:
        if "#" in url:
            raise InvalidArgumentError("a store URL has no fragment: write # as %23")
        raise InvalidArgumentError("a store URL starts with a scheme, as in sqlite:///var/lib/agent.db")
    scheme = match[1].lower()
    userinfo, at, hostlist = (match[2] or "").rpartition("@")
    user, colon, password = userinfo.partition(":")
    return StoreURL(
        scheme,
        tuple(_host(scheme, text) for text in hostlist.split(",")) if hostlist else (),
        _decoded(scheme, "user", user) if at else None,
        _decoded(scheme, "password", password) if colon else None,
        _decoded(scheme, "path", match[3]),
        _query(scheme, match[4] or ""),
    )


def _host(scheme: str, text: str) -> tuple[str, int | None]:
    match = _HOST.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(f"a host of the {scheme}: URL is malformed: write host:port,[::1]:port")
    port = int(match[3]) if match[3] else None
    if port is not None and not 0 < port < 65536:
        raise InvalidArgumentError(f"a port of the {scheme}: URL is not between 1 and 65535")
    return match[1] or _decoded(scheme, "host", match[2]), port


def _decoded(scheme: str, part: str, text: str) -> str:
    try:
        text.encode()  # half a surrogate pair cannot be stored
        if _BAD_ESCAPE.search(text) is None:
            return unquote(text, errors="strict")
    except UnicodeError:
        pass
    raise InvalidArgumentError(f"the {part} of the {scheme}: URL is not percent-encoded UTF-8")


def _query(scheme: str, text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        text.encode()
        if _BAD_ESCAPE.search(text) is not None:
            raise ValueError("a stray percent sign")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        message = f"the options of the {scheme}: URL are malformed: write name=value&name=value"
        raise InvalidArgumentError(message) from None
    query = dict(pairs)
    if len(query) < len(pairs):
        raise InvalidArgumentError(f"the {scheme}: URL has an option twice")
    return query


def _load(scheme: str) -> Any:
    driver = DRIVERS.get(scheme)
    known = ", ".join(f"{name}://" for name in DRIVERS)
    if driver is None:
        hint = _did_you_mean(scheme, tuple(DRIVERS), "://")
        raise InvalidArgumentError(f"unknown store scheme {scheme}://{hint}; known: {known}")
    module, _, name = driver.target.partition(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        if not driver.extra or isinstance(error, DatasyncError):
            raise
        raise MissingExtraError(driver.extra, error.name or f"the client library of {scheme}://") from error


def _known_options(driver: Any) -> Mapping[str, str]:
    """Return the options that *driver* accepts: name to the text of the annotation."""
    declared: Mapping[str, str] = getattr(driver, "url_options", {})
    return _keywords(driver.from_url) or declared or _keywords(driver)


def _keywords(function: Callable[..., object]) -> dict[str, str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: str(p.annotation) for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _merge(url: StoreURL, options: Mapping[str, object], known: Mapping[str, str]) -> dict[str, object]:
    for name in (*url.query, *options):
        if name not in known:
            twice = [one for one in known if "_" in one and one.replace("_", "-") in known]
            listing = ", ".join(sorted(set(known) - set(twice))) or "none"
            # A password with a question mark ends up in the query, so only a plausible name is shown.
            hidden = not _NAME.fullmatch(name) or any("@" in text for text in url.query.values())
            shown = "such an option" if hidden else f"option {name!r}{_did_you_mean(name, tuple(known))}"
            raise InvalidArgumentError(f"{url.scheme}:// has no {shown}; known: {listing}")
    both = next((name for name in url.query if name in options), None)
    if both is not None:
        raise InvalidArgumentError(f"the option {both} of {url.scheme}:// is in the URL and in the arguments")
    return {**{name: _converted(url.scheme, name, text, known[name]) for name, text in url.query.items()}, **options}


def _converted(scheme: str, name: str, text: str, annotation: str) -> object:
    """Convert the *text* of an option to its annotated type, if that is float, int or bool; otherwise keep the text."""
    kind = annotation.removesuffix(" | None")
    try:
        if kind == "float":
            return float(text)
        if kind == "int":
            return int(text)
        if kind == "bool":
            return _TRUTH[text.lower()]
    except (ValueError, KeyError):
        wanted = {"float": "a number", "int": "a whole number", "bool": "true or false"}[kind]
        # The message and its cause must not quote the text: it may be a misplaced password.
        raise InvalidArgumentError(f"the option {name} of {scheme}:// must be {wanted}") from None
    return text


def _did_you_mean(word: str, known: tuple[str, ...], suffix: str = "") -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}{suffix}?)" if close else ""
