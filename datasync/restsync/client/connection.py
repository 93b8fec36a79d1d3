"""The URL, the TLS context and the requests of the client of a server."""

from __future__ import annotations

import ssl
from os import PathLike, fspath

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from datasync.errors import InvalidArgumentError, StoreError
from datasync.restsync.problems import error_of
from datasync.runtime.http_client.connections import ReceivedResponse, RequestPool
from datasync.runtime.http_client.timed_connection import ServerAddress
from datasync.runtime.logs import get_logger

log = get_logger(__name__)

#: Seconds to reach the server, TLS included.
CONNECT_TIMEOUT = 5.0
#: A context, or the file of the CA that signed the server's certificate.
ClientTls = ssl.SSLContext | str | PathLike[str]


def read_url(url: str) -> ServerAddress:
    """Parse the URL of a server. Raises ``InvalidArgumentError``."""
    try:
        parsed = parse_url(url)
    except (LocationParseError, AttributeError, TypeError, ValueError):
        parsed = None
    if parsed is None:  # outside the handler: the parser's error quotes the URL, which may have a password
        raise InvalidArgumentError("the URL of a server must be http://host:port or https://host:port")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise InvalidArgumentError(
            "the URL of a server must be http://host:port/path or https://host:port/path, without a query"
        )
    if parsed.auth or "@" in (parsed.path or ""):  # a slash in a password moves the rest of it into the path
        raise InvalidArgumentError("the URL of a server must not contain credentials: use token=")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    return ServerAddress(parsed.scheme, parsed.host, port, (parsed.path or "").rstrip("/"))


def make_client_context(tls: ClientTls | None, scheme: str) -> ssl.SSLContext | None:
    """Return the context for HTTPS; None for HTTP. Raises ``InvalidArgumentError``."""
    if scheme == "http":
        if tls is not None:
            raise InvalidArgumentError("tls= needs a URL that begins with https://")
        return None
    if isinstance(tls, ssl.SSLContext):
        if tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname:
            log.warning("tls= does not verify the server: an attacker can impersonate it")
        return tls
    try:
        context = ssl.create_default_context(cafile=None if tls is None else fspath(tls))
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # even where the system allows less
        return context
    except (OSError, TypeError, ValueError) as error:  # ValueError: a path with a NUL
        raise InvalidArgumentError(f"cannot load the CA file of tls=: {error}") from error


class ServerRequests(RequestPool):
    """The requests to one server, and the errors that its responses report. Threads: any."""

    def error(self, subject: str, response: ReceivedResponse, *, write: bool = False) -> Exception:
        """Return the exception for a response that reports a failure."""
        if 300 <= response.status < 400:
            return StoreError(f"{subject}: {self._address.name} redirects, and the client does not follow redirects")
        return error_of(subject, response.status, response.content_type, response.data, write=write)
