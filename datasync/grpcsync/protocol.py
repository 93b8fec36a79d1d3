"""Method paths and metadata keys of ``msg.DataMsgService``.

Calls use paths instead of generated stubs, because stubs differ between versions of grpcio.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import methodcaller

from datasync.errors import InvalidArgumentError
from datasync.runtime.tokens import SCHEME, bearer

#: ``msg.DataMsgService`` of ``datamsg.proto``.
SERVICE = "msg.DataMsgService"
DATA_CHANGES = f"/{SERVICE}/dataChanges"
DATA_RESYNCS = f"/{SERVICE}/dataResyncs"
PING = f"/{SERVICE}/ping"

#: Request metadata: the name of the sender's source. Senders without it share the default source.
SOURCE_KEY = "datasync-source"
#: Request metadata: ``name/number``, where *name* identifies one incarnation of a sender and *number* its session.
SESSION_KEY = "datasync-session"
#: Trailing metadata: the number of requests that the server took. It did not apply any request after them.
TAKEN_KEY = "datasync-taken"
#: Request metadata: ``Bearer`` and the token.
TOKEN_KEY = "authorization"
#: Request metadata: the W3C trace of a full state; of a stream, that of the changes that have none of their own.
TRACE_KEY = "traceparent"
#: The response to ``ping``, the same as in Go.
PONG = "it works"
#: Maximum length of a source name, in characters.
MAX_SOURCE_NAME = 200
#: Length, in characters, to which a server shortens a key that it rejects as too long.
SHORTENED_KEY = 40
#: Encodes a message for gRPC.
serialize = methodcaller("SerializeToString")


def check_source(name: object) -> str:
    """Return *name* if it is a valid source name. Raises ``InvalidArgumentError``."""
    if not isinstance(name, str):
        raise InvalidArgumentError(f"a source name must be a string, not {type(name).__name__}")
    if not 0 < len(name) <= MAX_SOURCE_NAME or not (name.isascii() and name.isprintable()) or name.strip() != name:
        raise InvalidArgumentError(
            f"a source name must be 1 to {MAX_SOURCE_NAME} printable ASCII characters, not {name[:40]!r}"
        )
    return name


def authorization(token: str) -> tuple[str, str]:
    """Return the metadata entry that carries *token*."""
    return (TOKEN_KEY, bearer(token))


def token_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the token in *metadata*, empty if there is none."""
    scheme, _, token = value_of(metadata, TOKEN_KEY).partition(" ")
    return token if scheme == SCHEME else ""


def value_of(metadata: Iterable[tuple[str, str | bytes]], key: str) -> str:
    """Return the last value of *key*, empty if there is none."""
    found = ""
    for name, value in metadata:
        if name == key:
            found = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found
