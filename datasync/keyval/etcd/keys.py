"""Keys as etcd's bytes, prefixes as ranges, and the validation of pages."""

from __future__ import annotations

from datasync.errors import InvalidArgumentError, StoreConnectionError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb

#: The first of all keys. As the end of a range it means "no end".
ALL = b"\0"


def encode_key(key: str) -> bytes:
    """Return the bytes of *key*. Lone surrogates become the bytes, not valid UTF-8, from which they were decoded."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pass
    raise InvalidArgumentError(f"the key {key[:40]!r} must be valid Unicode: it has half of a surrogate pair")


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """Return the first key and the end of the range of all keys that start with *prefix*."""
    first = encode_key(prefix)
    if not first:
        return ALL, ALL
    # The end is the prefix with its last byte incremented, without trailing bytes 255, which have no successor.
    stem = first.rstrip(b"\xff")
    return first, stem[:-1] + bytes([stem[-1] + 1]) if stem else ALL


def check_page(request: pb.RangeRequest, page: pb.RangeResponse, what: str) -> None:
    """Raise if *page* is not what was asked for.

    It would make the listing endless if it were empty but not the last, or outside the range, and wrong if it were
    longer than allowed or older than the revision.
    """
    kvs, key, end = page.kvs, request.key, request.range_end
    if (
        (not kvs and page.more)
        or (kvs and not (key <= kvs[0].key and (end == ALL or kvs[-1].key < end)))
        or len(kvs) > request.limit
        or page.header.revision < request.revision
    ):
        raise unexpected_response(what)


def unexpected_response(what: str) -> StoreConnectionError:
    """Return the error for a response that an etcd server never sends."""
    return StoreConnectionError(f"{what}: the response does not match the request; is the endpoint an etcd server?")
