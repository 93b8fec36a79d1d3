"""Bearer tokens, compared in constant time. Secrets never appear in messages."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from datasync.errors import InvalidArgumentError

#: What precedes the token in the ``authorization`` header and metadata.
SCHEME = "Bearer"


class TokenCheck:
    """A check for any of *tokens*, so that one can be replaced while both are in use. None accepts every request.

    Raises:
      InvalidArgumentError: The collection is empty, or a token cannot be sent in a header.

    Threads: any.
    Source: contract C16.
    """

    __slots__ = ("_accepted",)

    def __init__(self, tokens: str | Iterable[str] | None) -> None:
        listed = [] if tokens is None else [tokens] if isinstance(tokens, str) else list(tokens)
        if tokens is not None and not listed:
            raise InvalidArgumentError("an empty list of tokens would reject every request: pass None to accept all")
        self._accepted = [check_token(token).encode() for token in listed]

    @property
    def required(self) -> bool:
        """True when a request needs a token."""
        return bool(self._accepted)

    def accepts(self, offered: str) -> bool:
        """True when *offered* is an accepted token, or none is needed; pass "" where the request carries none."""
        if not self._accepted:
            return True
        given = offered.encode("utf-8", "replace")
        # Compare with every token, always: the time taken must not show which one nearly matched.
        return sum(hmac.compare_digest(given, token) for token in self._accepted) > 0


def check_token(token: object) -> str:
    """Return *token*. Raises ``InvalidArgumentError`` unless it can be sent in a header; the message omits it."""
    if not isinstance(token, str) or not token:
        raise InvalidArgumentError("a token must be text and not empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgumentError("a token must be printable ASCII without spaces")
    return token


def bearer(token: str) -> str:
    """Return the value of the ``authorization`` header or metadata that carries *token*."""
    return f"{SCHEME} {check_token(token)}"
