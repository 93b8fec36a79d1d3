"""Keys between text and etcd's bytes, and the ranges that prefixes are."""

from __future__ import annotations

from datasync.errors import InvalidArgumentError

#: The first of all keys; as the end of a range it means "no end".
ALL = b"\0"


def encode_key(key: str) -> bytes:
    """The bytes of *key*; what ``decode_key`` could not read as UTF-8 goes back unchanged."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"the key {key[:40]!r} has half of a surrogate pair")


def decode_key(key: bytes) -> str:
    """The text of *key*; bytes that are no UTF-8 become lone surrogates, so that foreign keys survive a round trip."""
    return key.decode("utf-8", "surrogateescape")


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """First key and end of the range of all keys that start with *prefix*."""
    first = encode_key(prefix)
    if not first:
        return ALL, ALL
    # The end is the prefix with its last byte one up; a byte 255 has no next one, so it goes.
    stem = first.rstrip(b"\xff")
    return first, stem[:-1] + bytes([stem[-1] + 1]) if stem else ALL
