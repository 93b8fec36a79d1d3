"""The calls of the wire contract, by path: no generated stubs, which differ between versions of grpcio."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable

from datasync.errors import InvalidArgumentError

#: ``msg.DataMsgService`` of ``datamsg.proto``.
SERVICE = "msg.DataMsgService"
DATA_CHANGES = f"/{SERVICE}/dataChanges"
DATA_RESYNCS = f"/{SERVICE}/dataResyncs"
PING = f"/{SERVICE}/ping"

#: Metadata of a request: which source the sender is; one default source without it.
SOURCE_KEY = "datasync-source"
#: Metadata of a request: name of the sender in this life of it, a slash, and the number of its session.
SESSION_KEY = "datasync-session"
#: Metadata at the end of a stream: how many requests were taken. What the sender sent beyond them was not applied.
TAKEN_KEY = "datasync-taken"
#: Metadata of a request: ``Bearer`` and the token.
TOKEN_KEY = "authorization"
#: What ``ping`` answers, as it does in Go.
PONG = "it works"
#: Characters of a source's name.
MAX_SOURCE_NAME = 200

_BEARER = "Bearer "


def check_source(name: object) -> str:
    """*name* when it can be the name of a source. Raises ``InvalidArgumentError``."""
    if not isinstance(name, str):
        raise InvalidArgumentError(f"the name of a source must be a string, not {type(name).__name__}")
    if not 0 < len(name) <= MAX_SOURCE_NAME or not (name.isascii() and name.isprintable()) or name.strip() != name:
        raise InvalidArgumentError(
            f"the name of a source must be 1 to {MAX_SOURCE_NAME} printable ASCII characters, not {name[:40]!r}"
        )
    return name


class Tokens:
    """The tokens that open a service; with none, it is open. Several are for the time in which one is replaced."""

    def __init__(self, tokens: str | Collection[str] | None) -> None:
        given = [] if tokens is None else [tokens] if isinstance(tokens, str) else list(tokens)
        self._accepted = [(_BEARER + check_token(token)).encode() for token in given]
        if tokens is not None and not self._accepted:
            raise InvalidArgumentError("no token is given: None means that none is needed")

    def accept(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """True when the call may go on; takes the same time whatever is wrong."""
        if not self._accepted:
            return True
        shown = value_of(metadata, TOKEN_KEY).encode(errors="replace")
        # Every one is compared, so that time does not tell which.
        return sum(hmac.compare_digest(shown, token) for token in self._accepted) > 0


def bearer(token: str) -> tuple[str, str]:
    """The metadata that shows *token*."""
    return (TOKEN_KEY, _BEARER + check_token(token))


def check_token(token: object) -> str:
    """*token* when it can travel in metadata. Raises ``InvalidArgumentError``, which does not show it."""
    if not isinstance(token, str) or not token or not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidArgumentError("a token must be printable ASCII characters without spaces")
    return token


def value_of(metadata: Iterable[tuple[str, str | bytes]], key: str) -> str:
    """The last value of *key*, empty when there is none."""
    found = ""
    for name, value in metadata:
        if name == key:
            found = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found
