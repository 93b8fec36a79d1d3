"""Keys in paths: one way to write each, and what cannot be one.

A key is everything after ``/keys/``. WSGI hands a path over decoded, so an encoded slash *is* a slash: ``a%2Fb`` and
``a/b`` name one key. Path segments that clients and proxies rewrite on their own, ``.`` and ``..``, are refused, since
nobody could tell which key was meant.

Source: contract section 5; D47 (cn-infra took the raw request line, with its escapes and query, for the key).
"""

from __future__ import annotations

import re
from urllib.parse import quote

from datasync.errors import InvalidArgumentError
from datasync.serializer import check_key

#: Bytes that a key may have in UTF-8.
MAX_KEY = 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_path_key(key: str) -> None:
    """Raise ``InvalidArgumentError`` unless *key* can be written into a path and read back from it."""
    check_key(key)
    check_text(key, "a key")
    for segment in key.split("/"):
        if segment in (".", ".."):
            raise InvalidArgumentError(f"the key {key!r} has a segment {segment!r}, which does not survive in a path")


def check_text(text: str, what: str) -> None:
    """Raise ``InvalidArgumentError`` for text that is too long, has control characters, or is no Unicode."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{what} has half of a surrogate pair") from None
    if size > MAX_KEY:
        raise InvalidArgumentError(f"{what} has {size} bytes, and {MAX_KEY} are allowed: {text[:40]!r}...")
    if _CONTROL.search(text):
        raise InvalidArgumentError(f"{what} has a control character: {text[:40]!r}")


def key_of_path(path: str) -> str:
    """The key in *path*, what follows ``/keys/`` in ``PATH_INFO``.

    Raises:
      InvalidArgumentError: It is no UTF-8, or no key.
    """
    try:
        key = path.encode("latin-1").decode()  # WSGI: each byte of the decoded path is one character
    except UnicodeError:
        raise InvalidArgumentError("the key in the path is not UTF-8") from None
    check_path_key(key)
    return key


def path_of_key(key: str) -> str:
    """The path that names *key*. Slashes at its begin and after another one are escaped: proxies merge such."""
    check_path_key(key)
    # An empty segment follows a slash, or nothing at all.
    path = "/".join(quote(segment, safe="") for segment in key.split("/"))
    path = "%2F" + path[1:] if path.startswith("/") else path
    return path.replace("//", "/%2F")
