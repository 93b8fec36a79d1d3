"""Keys in URLs: two spellings, and the keys that have none.

``/keys/KEY`` is for people: the key is everything after ``/keys/``, decoded. What stands between a client and a server
may decode such a path, merge its slashes, and encode it anew, or not; then ``a//b`` arrives as ``a/b``, and ``a%2Fb``
too, which is another key. ``/escaped/KEY`` is for every key: each byte but ASCII letters, digits, ``-`` and ``_`` is
written ``~XX``, so there is nothing to decode, merge or encode. Clients use the first spelling for keys that survive
all of this, and the second one for all others.

Both sides also name the key in the header ``Datasync-Key``, escaped: the server refuses a request whose path names
another key, and the client does not believe an answer about another key. An event stream names its prefixes.

Source: contract C23.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from urllib.parse import unquote_to_bytes

from datasync.checks import check_key
from datasync.errors import InvalidArgumentError

#: Bytes of a key in UTF-8.
MAX_KEY = 1024

#: Names in a header, and characters of each.
MAX_NAMES, MAX_NAME = 10, 200

#: The first segment of a path that names a key: as it is, or escaped.
PLAIN_ROUTE, ESCAPED_ROUTE = "keys", "escaped"
#: Request header: the key that the client means, escaped. Response header: the key that the answer is about.
KEY_HEADER = "Datasync-Key"
#: Response header of an event stream: its prefixes, escaped, between commas.
PREFIX_HEADER = "Datasync-Prefix"
#: Response header: subscriptions that have not accepted the value, escaped, between commas; absent if there are none.
NOT_ACCEPTED_HEADER = "Datasync-Not-Accepted"

#: Keys that arrive as they are, whatever stands between: no empty segment, and no character that is ever encoded.
_PLAIN = re.compile(r"[A-Za-z0-9._~:@=,-]+(?:/[A-Za-z0-9._~:@=,-]+)*")
_ESCAPED = re.compile(rb"(?:[A-Za-z0-9_-]|~[0-9A-Fa-f]{2})+")
_SPECIAL = re.compile(rb"[^A-Za-z0-9_-]")
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


def escape(key: str) -> str:
    """Return *key* in the spelling that no gateway rewrites."""
    return _SPECIAL.sub(lambda found: b"~%02X" % found[0][0], key.encode()).decode()


def escape_names(names: Iterable[str]) -> str:
    """Return the first of *names*, each escaped and within bounds, between commas."""
    return ",".join(escape(name[:MAX_NAME].encode(errors="replace").decode()) for name in islice(names, MAX_NAMES))


def unescape_names(text: str) -> tuple[str, ...]:
    """Return the names that ``escape_names`` wrote as *text*; whatever else it is stays text."""
    names = filter(None, text.split(","))
    return tuple(unquote_to_bytes(name.replace("~", "%")).decode(errors="replace") for name in names)


def key_of_path(path: str) -> str:
    """Return the key that *path* names, which is ``PATH_INFO``. Raises ``InvalidArgumentError``."""
    _, route, text = path.split("/", 2)
    data = text.encode("latin-1")  # WSGI: each byte of the decoded path is one character
    if route == ESCAPED_ROUTE:
        if not _ESCAPED.fullmatch(data):
            raise InvalidArgumentError(
                "an escaped key has only ASCII letters, digits, - and _, and ~XX for other bytes"
            )
        data = unquote_to_bytes(data.replace(b"~", b"%"))
    try:
        key = data.decode()
    except UnicodeError:
        raise InvalidArgumentError("the key in the path is not valid UTF-8") from None
    check_path_key(key)
    return key


def path_of_key(key: str) -> str:
    """Return the path that names *key*. Raises ``InvalidArgumentError``."""
    check_path_key(key)
    return f"/{PLAIN_ROUTE}/{key}" if _PLAIN.fullmatch(key) else f"/{ESCAPED_ROUTE}/{escape(key)}"


def count_of_keys(number: int) -> str:
    """Return ``1 key`` or ``2 keys``, for messages."""
    return f"{number} key" if number == 1 else f"{number} keys"
