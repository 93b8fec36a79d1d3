"""The names under which a server may be addressed: the defence against DNS rebinding and foreign pages.

A page of any site may let its own name point to 127.0.0.1. The browser then takes a server on loopback for a part of
that site and lets the page read and write. Only the ``Host`` header shows the name. A page that a browser does not take
for a part of the server sends its own ``Origin`` with a write.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from datasync.errors import InvalidArgumentError
from datasync.restsync.problems import Problem

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Names and addresses of this machine for itself.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Methods that change nothing.
READS = ("GET", "HEAD", "OPTIONS")


class HostCheck:
    """Refuses requests to other hosts than *allowed*, and writes from pages of other hosts.

    Args:
      allowed: Host names and addresses, without ports; None allows every host, and pages of the host that they address.

    Raises:
      InvalidArgumentError: *allowed* is not a collection of host names.

    Threads: any.
    """

    def __init__(self, allowed: Iterable[str] | None) -> None:
        if isinstance(allowed, str):
            raise InvalidArgumentError("allowed_hosts must be several host names, not one string")
        names = None if allowed is None else list(allowed)
        for name in names or ():
            if not isinstance(name, str) or not name or "/" in name or _host_of(name) != _plain(name):
                raise InvalidArgumentError("an allowed host is a host name or an address, without scheme and port")
        self._allowed = None if names is None else frozenset(map(_plain, names))

    @property
    def limited(self) -> bool:
        """True when some hosts are not allowed."""
        return self._allowed is not None

    def plus(self, *names: str) -> HostCheck:
        """Return a check that allows *names*, and beside them the names of this one, if it has any."""
        return HostCheck([*(self._allowed or ()), *names])

    def check(self, environ: WSGIEnvironment) -> None:
        """Raise ``Problem`` (403) for a request to another host, or for a write from a page of another one."""
        addressed = environ.get("HTTP_HOST")
        # Every browser sends the header. Without it, no page of another site asks.
        if self._allowed is not None and addressed is not None and _host_of(addressed) not in self._allowed:
            raise Problem("forbidden", "the Host header has a name that is not an allowed host of this server")
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or environ["REQUEST_METHOD"].upper() in READS:
            return
        place = origin.partition("://")[2]
        same = addressed is not None and place.lower() == addressed.lower()
        if not same and (self._allowed is None or _host_of(place) not in self._allowed):
            raise Problem("forbidden", "the Origin header has a host that is not an allowed host of this server")


def _host_of(place: str) -> str:
    """Return the host of ``host:port``."""
    if place.startswith("["):
        return _plain(place.partition("]")[0] + "]")
    return _plain(place.partition(":")[0] if place.count(":") == 1 else place)


def _plain(name: str) -> str:
    return name.strip("[]").rstrip(".").lower()
