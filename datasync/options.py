"""Options of ``put`` and ``delete``.

Source: cn-infra ``datasync/options.go``; contract section 2 and C16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from datasync.errors import InvalidArgumentError


class PutOption:
    """Base, and marker, of the options of ``put``."""

    __slots__ = ()


class DelOption:
    """Base, and marker, of the options of ``delete``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class WithTTLOpt(PutOption):
    """The value is removed *ttl* seconds after the put. Stores may round up to their own precision.

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
    """The value lives as long as the client that put it: kept alive until ``close()``, gone soon after a crash."""


@dataclass(frozen=True, slots=True)
class WithPrefixOpt(DelOption):
    """Delete every key that starts with the given one."""


def with_ttl(ttl: float | timedelta) -> WithTTLOpt:
    """Remove the value after *ttl* (seconds, or a timedelta). Source: Go ``WithTTL``."""
    return WithTTLOpt(ttl.total_seconds() if isinstance(ttl, timedelta) else ttl)


def with_client_lifetime_ttl() -> WithClientLifetimeTTLOpt:
    """Keep the value for the lifetime of the client. Source: Go ``WithClientLifetimeTTL``."""
    return WithClientLifetimeTTLOpt()


def with_prefix() -> WithPrefixOpt:
    """Delete all keys with the prefix. Source: Go ``WithPrefix``."""
    return WithPrefixOpt()


@dataclass(frozen=True, slots=True)
class PutSettings:
    """What the options of one ``put`` add up to."""

    ttl: float | None = None
    client_lifetime: bool = False


def read_put_options(opts: Sequence[PutOption]) -> PutSettings:
    """Fold *opts*.

    Raises:
      InvalidArgumentError: An option is unknown, given twice, or contradicts another.
    """
    _refuse_strangers("put", opts, (WithTTLOpt, WithClientLifetimeTTLOpt))
    ttl = next((opt.ttl for opt in opts if isinstance(opt, WithTTLOpt)), None)
    client_lifetime = any(isinstance(opt, WithClientLifetimeTTLOpt) for opt in opts)
    if ttl is not None and client_lifetime:
        raise InvalidArgumentError("put() takes with_ttl() or with_client_lifetime_ttl(), not both")
    return PutSettings(ttl, client_lifetime)


def read_del_options(opts: Sequence[DelOption]) -> bool:
    """True when *opts* ask for a whole prefix.

    Raises:
      InvalidArgumentError: An option is unknown or given twice.
    """
    _refuse_strangers("delete", opts, (WithPrefixOpt,))
    return bool(opts)


#: Each option, and the function that users call for it.
_MAKERS: dict[type, str] = {
    WithTTLOpt: "with_ttl",
    WithClientLifetimeTTLOpt: "with_client_lifetime_ttl",
    WithPrefixOpt: "with_prefix",
}


def _refuse_strangers(method: str, opts: Sequence[object], known: tuple[type, ...]) -> None:
    for place, opt in enumerate(opts):
        # The type's name only: a value passed by mistake must not reach a log.
        if not isinstance(opt, known):
            listing = " and ".join(f"{_MAKERS[option]}()" for option in known)
            raise InvalidArgumentError(f"{method}() takes the options {listing}, not {type(opt).__name__}")
        if any(type(opt) is type(earlier) for earlier in opts[:place]):
            raise InvalidArgumentError(f"{method}() got {_MAKERS[type(opt)]}() twice: give it once")
