"""Keys between text and etcd's bytes, the ranges that prefixes are, and the pages of a range."""

from __future__ import annotations

from datasync.errors import InvalidArgumentError, StoreConnectionError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb

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


def check_page(request: pb.RangeRequest, page: pb.RangeResponse, what: str) -> None:
    """Raise where the next page would be asked for for ever: *page* is empty and not the last, or not in the range."""
    kvs, key, end = page.kvs, request.key, request.range_end
    if (not kvs and page.more) or (kvs and not (key <= kvs[0].key and (end == ALL or kvs[-1].key < end))):
        raise strange(what)


def strange(what: str) -> StoreConnectionError:
    """The error for an answer that no etcd gives."""
    return StoreConnectionError(f"{what}: the answer is not to what was asked; is this an etcd?")
