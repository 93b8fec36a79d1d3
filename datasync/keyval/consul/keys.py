"""Keys and prefixes as Consul has them: without a leading slash, and as a path that its HTTP interface accepts.

Source: cn-infra ``db/keyval/consul``, which strips the slash too.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from datasync.errors import InvalidArgumentError

#: Segments that Consul's HTTP server removes from a path.
_DOTS = (".", "..")


def encode_key(key: str) -> str:
    """Return *key* as Consul has it: ``/a`` and ``a`` are the same key.

    Consul's transactions would write the keys that are refused here, but nothing could read them by their path.

    Raises:
      InvalidArgumentError: Consul cannot have the key.
    """
    _check_text(key, "key")
    bare = key.removeprefix("/")
    if not bare:
        raise InvalidArgumentError(f"Consul cannot have the key {key!r}: it removes one leading slash")
    segments = bare.split("/")
    if "" in segments[:-1] or any(dots in segments for dots in _DOTS):
        reason = "its paths have no empty segment, and none that is . or .."
    elif not bare.isprintable():
        reason = "its paths have printable characters only"
    else:
        return bare
    raise InvalidArgumentError(f"Consul cannot have the key {key[:100]!r}: {reason}")


def path_of(key: str) -> str:
    """Return the path of *key*, which is encoded, or of a part of it."""
    return quote(f"/v1/kv/{key}", safe="/")


class KeyRange(NamedTuple):
    """The keys that start with a prefix.

    *bare* is the prefix as Consul has it. *listable* is the longest part of it that a path can have: what is listed by
    that path contains the range, and maybe more. *slash* is what precedes the keys that are given out.
    """

    bare: str
    listable: str
    slash: str

    @classmethod
    def of(cls, prefix: str) -> KeyRange:
        """Return the range of *prefix*. Raises ``InvalidArgumentError`` for half of a surrogate pair."""
        _check_text(prefix, "prefix")
        slash = "/" if prefix.startswith("/") else ""
        bare = prefix.removeprefix("/")
        return cls(bare, _listable(bare), slash)

    def decode(self, key: str) -> str | None:
        """Return *key* of Consul as it is given out, or None if it is outside the range.

        A key of Consul that begins with a slash is none of ours: without that slash it would be another key.
        """
        return None if not key.startswith(self.bare) or key.startswith("/") else self.slash + key


def _listable(bare: str) -> str:
    segments = bare.split("/")
    last = len(segments) - 1
    for place, segment in enumerate(segments):
        if segment in _DOTS or (not segment and place < last) or not segment.isprintable():
            return "".join(f"{one}/" for one in segments[:place])
    return bare


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"a {what} in Consul must be valid Unicode, {text[:100]!r} is not") from None
