"""Opening the stores and servers that the subcommands work on."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches

from datasync.errors import InvalidArgumentError, MissingExtraError, StoreError, UnsupportedError
from datasync.keyval.api import Store
from datasync.keyval.urls import DRIVERS, connect, parse_url

#: The variable with the URL of commands that are given none.
URL_VARIABLE = "DATASYNC_URL"
#: Schemes of servers that are no stores.
SERVERS = ("http", "https", "grpc", "grpcs")

#: All schemes.
_SCHEMES = (*DRIVERS, *SERVERS)
_URL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://|(?:{'|'.join(map(re.escape, _SCHEMES))}):")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
#: Schemes that hardly any word resembles. A key may well be ``files:1`` or ``etc:hosts``.
_UNMISTAKABLE = tuple(scheme for scheme in _SCHEMES if len(scheme) > 4)
#: How alike a word and a scheme must be: ``slqite`` is, and neither ``memo`` nor ``posts``.
_ALIKE = 0.82
#: The variable with the token of a REST or gRPC server.
TOKEN_VARIABLE = "DATASYNC_TOKEN"


def default_url() -> str:
    """Return the URL in ``DATASYNC_URL``, empty if there is none."""
    return os.environ.get(URL_VARIABLE, "")


def looks_like_url(text: str) -> bool:
    """Return True if *text* begins like the URL of a store or server."""
    return _URL.match(text) is not None


def refuse_as_key(text: str) -> None:
    """Raise ``InvalidArgumentError`` if *text*, which is taken as a key because no URL came first, was meant as a URL.

    That is ``scheme://`` of any scheme, and ``scheme:`` of a known one or of a slip of one with five letters or more.
    *text* is not quoted: it may hold a password.
    """
    found = _SCHEME.match(text)
    if found is None:
        return
    word, slashes = found[1].lower(), found[2] or ""
    known = looks_like_url(f"{word}:")
    close = [] if known else get_close_matches(word, _SCHEMES if slashes else _UNMISTAKABLE, n=1, cutoff=_ALIKE)
    if known or close or slashes:
        hint = f": did you mean {close[0]}:{slashes}?" if close else ": is an argument missing?" if known else "."
        raise InvalidArgumentError(
            f"an argument begins with {word}:{slashes}, like a URL{hint} "
            f"If a key begins so, give the URL of the store before it, although {URL_VARIABLE} is set"
        )


def open_store(url: str, *, create: bool = False) -> Store:
    """Open the store or server at *url*. Create a missing file only with *create*.

    A REST server is a store without history and leases; a gRPC server takes writes only.
    """
    scheme = scheme_of(url)
    if scheme in ("http", "https"):
        return _rest_store(url)
    if scheme in ("grpc", "grpcs"):
        return _grpc_store(url)
    parsed = parse_url(url)
    if parsed.scheme == "memory":
        raise InvalidArgumentError("a memory:// store exists inside one process only: a command always sees it empty")
    if parsed.scheme == "sqlite" and parsed.path and not create and not os.path.exists(parsed.path):
        raise StoreError(f"file {parsed.path} not found: check the path, or create it with datasync put")
    return connect(url)


def scheme_of(url: str) -> str:
    """Return the scheme of *url* in lower case, empty if it has none."""
    return url.partition(":")[0].lower() if ":" in url else ""


def refuse_server(url: str, verb: str, why: str) -> None:
    """Raise ``UnsupportedError`` if *url* is that of a server in front of a store: *verb* needs the store itself."""
    if scheme_of(url) in SERVERS:
        raise UnsupportedError(f"{verb} works on a store, not on a server in front of one ({scheme_of(url)}://): {why}")


def token() -> str | None:
    """Return the token of the server, None if there is none."""
    return os.environ.get(TOKEN_VARIABLE) or None


def _rest_store(url: str) -> Store:
    try:
        from datasync.restsync.client.as_store import RestStore
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError("rest", error.name or "urllib3") from error
    return RestStore(url, token=token())


def _grpc_store(url: str) -> Store:
    try:
        from datasync.grpcsync.client.as_store import GrpcStore
    except ImportError as error:
        if isinstance(error, MissingExtraError):
            raise
        raise MissingExtraError("grpc", error.name or "grpcio") from error
    return GrpcStore(url, token=token())
