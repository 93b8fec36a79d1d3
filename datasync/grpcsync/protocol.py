"""The calls of the wire contract, by path: no generated stubs, which differ between versions of grpcio."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message

from datasync.errors import InvalidArgumentError
from datasync.runtime.tokens import SCHEME, bearer

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


def check_source(name: object) -> str:
    """*name* when it can be the name of a source. Raises ``InvalidArgumentError``."""
    if not isinstance(name, str):
        raise InvalidArgumentError(f"the name of a source must be a string, not {type(name).__name__}")
    if not 0 < len(name) <= MAX_SOURCE_NAME or not (name.isascii() and name.isprintable()) or name.strip() != name:
        raise InvalidArgumentError(
            f"the name of a source must be 1 to {MAX_SOURCE_NAME} printable ASCII characters, not {name[:40]!r}"
        )
    return name


def authorization(token: str) -> tuple[str, str]:
    """The metadata that carries *token*."""
    return (TOKEN_KEY, bearer(token))


def token_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token that *metadata* carries, empty when there is none."""
    scheme, _, token = value_of(metadata, TOKEN_KEY).partition(" ")
    return token if scheme == SCHEME else ""


def serialize(message: Message) -> bytes:
    """The bytes of *message*, as gRPC sends them."""
    return message.SerializeToString()


def value_of(metadata: Iterable[tuple[str, str | bytes]], key: str) -> str:
    """The last value of *key*, empty when there is none."""
    found = ""
    for name, value in metadata:
        if name == key:
            found = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found
