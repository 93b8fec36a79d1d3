"""The options of ``put`` and ``delete``.

Source: cn-infra ``datasync/options.go``; contract C16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from datasync.errors import InvalidArgumentError


class PutOption:
    """Base class of the options of ``put``."""

    __slots__ = ()


class DelOption:
    """Base class of the options of ``delete``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class WithTTLOpt(PutOption):
    """Remove the value *ttl* seconds after the put. Stores may round up to their own precision.

    Raises:
      InvalidArgumentError: *ttl* is not a finite number above 0.
    """

    ttl: float

    def __post_init__(self) -> None:
        if isinstance(self.ttl, bool) or not isinstance(self.ttl, (int, float)):
            raise InvalidArgumentError(f"TTL must be seconds or a timedelta, not {type(self.ttl).__name__}")
        if not math.isfinite(self.ttl) or self.ttl <= 0:
            raise InvalidArgumentError(f"TTL must be a finite number of seconds above 0, not {self.ttl}")


@dataclass(frozen=True, slots=True)
class WithClientLifetimeTTLOpt(PutOption):
    """Keep the value as long as the client that put it: until its ``close()``, or shortly after it crashes."""


@dataclass(frozen=True, slots=True)
class WithPrefixOpt(DelOption):
    """Delete every key that starts with the given key."""


def with_ttl(ttl: float | timedelta) -> WithTTLOpt:
    """Remove the value after *ttl*, in seconds or as a timedelta. Source: Go ``WithTTL``."""
    return WithTTLOpt(ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)


def with_client_lifetime_ttl() -> WithClientLifetimeTTLOpt:
    """Keep the value for the lifetime of the client. Source: Go ``WithClientLifetimeTTL``."""
    return WithClientLifetimeTTLOpt()


def with_prefix() -> WithPrefixOpt:
    """Delete all keys with the prefix. Source: Go ``WithPrefix``."""
    return WithPrefixOpt()


@dataclass(frozen=True, slots=True)
class PutSettings:
    """The combined options of one ``put``."""

    ttl: float | None = None
    client_lifetime: bool = False


def read_put_options(opts: Sequence[PutOption]) -> PutSettings:
    """Combine *opts*.

    Raises:
      InvalidArgumentError: An option is unknown, is given twice, or conflicts with another.
    """
    _check_options("put", opts, (WithTTLOpt, WithClientLifetimeTTLOpt))
    ttl = next((opt.ttl for opt in opts if isinstance(opt, WithTTLOpt)), None)
    client_lifetime = any(isinstance(opt, WithClientLifetimeTTLOpt) for opt in opts)
    if ttl is not None and client_lifetime:
        raise InvalidArgumentError("put() takes with_ttl() or with_client_lifetime_ttl(), not both")
    return PutSettings(ttl, client_lifetime)


def read_del_options(opts: Sequence[DelOption]) -> bool:
    """Return True if *opts* contain ``with_prefix()``.

    Raises:
      InvalidArgumentError: An option is unknown or is given twice.
    """
    _check_options("delete", opts, (WithPrefixOpt,))
    return bool(opts)


#: Each option, and the function that makes it.
_MAKERS: dict[type, str] = {
    WithTTLOpt: "with_ttl",
    WithClientLifetimeTTLOpt: "with_client_lifetime_ttl",
    WithPrefixOpt: "with_prefix",
}


def _check_options(method: str, opts: Sequence[object], known: tuple[type, ...]) -> None:
    for place, opt in enumerate(opts):
        # Only the type's name: a value passed by mistake must not appear in a log.
        if not isinstance(opt, known):
            listing = " and ".join(f"{_MAKERS[option]}()" for option in known)
            raise InvalidArgumentError(f"{method}() takes the options {listing}, not {type(opt).__name__}")
        if any(type(opt) is type(earlier) for earlier in opts[:place]):
            raise InvalidArgumentError(f"{method}() got {_MAKERS[type(opt)]}() twice: give it once")
