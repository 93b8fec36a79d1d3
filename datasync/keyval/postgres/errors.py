"""The translation of PostgreSQL's errors, in one table by SQLSTATE.

Only the first line of a server's message is quoted: the details below it may hold keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg

from datasync.errors import (
    DatasyncError,
    InvalidArgumentError,
    PermissionDenied,
    StoreConnectionError,
    StoreError,
    UnknownOutcome,
)

#: Maximum number of characters of a server's message that an error quotes.
MAX_TEXT = 300


class NoResponse(psycopg.OperationalError):
    """The server sent nothing within the deadline; the connection was closed."""


class Interrupted(psycopg.OperationalError):
    """A wait was ended by ``interrupt``; the connection was closed."""


class _Meaning(NamedTuple):
    error: type[StoreError] | type[InvalidArgumentError]
    advice: str = ""


_REFUSED = _Meaning(PermissionDenied, "check user, password and pg_hba.conf")
_RETRY = _Meaning(StoreConnectionError)

#: SQLSTATE, or its class of two characters, and its meaning; the longer one counts.
_MEANINGS: dict[str, _Meaning] = {
    "08": _RETRY,
    "22": _Meaning(InvalidArgumentError),
    "23505": _Meaning(StoreError, "the commit came after committed() had settled that it did not happen"),
    "25P03": _Meaning(StoreConnectionError, "a listing was left half way for too long: list again"),
    "25006": _Meaning(StoreConnectionError, "the server is a standby or read-only"),
    "28": _REFUSED,
    "3D000": _Meaning(StoreError, "create the database first"),
    "40": _RETRY,  # rolled back: a deadlock, or a conflict of a transaction that is not READ COMMITTED
    "42501": _Meaning(
        PermissionDenied, "grant the role the rights on the schema: datasync postgres install --grant ROLE"
    ),
    "53": _Meaning(StoreError, "the server is short of disk, memory or connections"),
    "53300": _RETRY,
    "54000": _Meaning(InvalidArgumentError, "a key has at most about 2,700 bytes, a value 1 GB"),
    "55P03": _Meaning(StoreConnectionError, "another transaction holds the lock; nothing was written"),
    "57": _RETRY,
}


def translate(error: psycopg.Error, what: str, target: str, *, token: str = "") -> DatasyncError:
    """Return the error of this library for *error* of the action *what* at *target*; a write has a *token*."""
    state = error.sqlstate
    if token and (state is None or state.startswith(("08", "57P"))):
        return UnknownOutcome(f"{what}: no response from {target} ({_text(error)}); it may have been applied", token)
    if state is None and isinstance(error, psycopg.OperationalError):
        kind = _REFUSED if _is_refusal(error) else _RETRY
    else:
        kind = _MEANINGS.get(state or "") or _MEANINGS.get((state or "")[:2]) or _Meaning(StoreError)
    advice = f"; {kind.advice}" if kind.advice else ""
    return kind.error(f"{what}: {target}: {_text(error)}{advice}")


@contextmanager
def map_errors(what: str, target: str) -> Iterator[None]:
    """Raise the errors of the block, which writes nothing, as errors of this library."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, what, target) from error


def _is_refusal(error: psycopg.OperationalError) -> bool:
    # Errors while connecting have no SQLSTATE in libpq, only their text.
    text = str(error)
    return "authentication failed" in text or "no pg_hba.conf entry" in text or "no password supplied" in text


def _text(error: psycopg.Error) -> str:
    text = error.diag.message_primary or ""
    if not text:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0] if lines else type(error).__name__
    return text[:MAX_TEXT]
