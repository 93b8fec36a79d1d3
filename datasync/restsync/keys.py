"""Keys in URL paths: the one way to write each key, and the keys that a path cannot carry.

A key is everything after ``/keys/``. A WSGI application receives the path decoded, so an encoded slash is a slash:
``a%2Fb`` and ``a/b`` name the same key. Clients and proxies rewrite the segments ``.`` and ``..`` on their own, so a
key with such a segment is an error: it could arrive as another key.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from datasync.errors import InvalidArgumentError
from datasync.serializer import check_key

#: Bytes of a key in UTF-8.
MAX_KEY = 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_path_key(key: str) -> None:
    """Raise ``InvalidArgumentError`` unless *key* survives the way into a path and back."""
    check_key(key)
    check_text(key, "a key")
    for segment in key.split("/"):
        if segment in (".", ".."):
            raise InvalidArgumentError(f"the key {key!r} has the segment {segment!r}, which proxies rewrite in a path")


def check_text(text: str, subject: str) -> None:
    """Raise ``InvalidArgumentError`` for text that is too long, has control characters, or is not valid Unicode."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{subject} has half of a surrogate pair") from None
    if size > MAX_KEY:
        raise InvalidArgumentError(f"{subject} has {size} bytes, and {MAX_KEY} are allowed: {text[:40]!r}...")
    if _CONTROL.search(text):
        raise InvalidArgumentError(f"{subject} has a control character: {text[:40]!r}")


def key_of_path(path: str) -> str:
    """Return the key in *path*, the part of ``PATH_INFO`` after ``/keys/``. Raises ``InvalidArgumentError``."""
    try:
        key = path.encode("latin-1").decode()  # WSGI: each byte of the decoded path is one character
    except UnicodeError:
        raise InvalidArgumentError("the key in the path is not valid UTF-8") from None
    check_path_key(key)
    return key


def path_of_key(key: str) -> str:
    """Return the path that names *key*. A slash at the start or after a slash is escaped: proxies merge slashes."""
    check_path_key(key)
    path = "/".join(quote(segment, safe="") for segment in key.split("/"))
    path = "%2F" + path[1:] if path.startswith("/") else path
    return path.replace("//", "/%2F")


def count_of_keys(number: int) -> str:
    """Return ``1 key`` or ``2 keys``, for messages."""
    return f"{number} key" if number == 1 else f"{number} keys"
