"""Who may ask: a bearer token, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from datasync.errors import InvalidArgumentError
from datasync.restsync.problems import Problem

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class TokenCheck:
    """Accepts any of *tokens*; several, so that one can be replaced while both are in use. None: everybody may.

    Raises:
      InvalidArgumentError: A token is empty, or could not stand in a header.
    """

    def __init__(self, tokens: str | Iterable[str] | None) -> None:
        listed = [] if tokens is None else [tokens] if isinstance(tokens, str) else list(tokens)
        for token in listed:
            check_token(token)
        if tokens is not None and not listed:
            raise InvalidArgumentError("an empty list of tokens would let nobody in: give None to let everybody in")
        self._tokens = [token.encode() for token in listed]

    @property
    def required(self) -> bool:
        """True when there is anything to check."""
        return bool(self._tokens)

    def check(self, environ: WSGIEnvironment) -> None:
        """Raise ``Problem`` (401) unless the request may go on."""
        if not self._tokens:
            return
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        offered = given.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""
        # All of them, always: how long it takes must not tell which one was nearly right.
        matches = [hmac.compare_digest(token, offered) for token in self._tokens]
        if not any(matches):
            detail = "the token is not accepted" if offered else "send the header Authorization: Bearer TOKEN"
            raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="datasync"'})


def check_token(token: object) -> None:
    """Raise ``InvalidArgumentError`` unless *token* can stand in a header."""
    if not isinstance(token, str) or not token:
        raise InvalidArgumentError("a token must be text and not empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidArgumentError("a token must be printable ASCII without spaces")
