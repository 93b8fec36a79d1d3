"""The pictures of a prefix: blocking queries, each of which returns all pairs when anything has changed.

Source: cn-infra ``db/keyval/consul/consul.go``, ``watch``; contract C13, C23.
"""

from __future__ import annotations

import time

from datasync.errors import CompactedError, StoreConnectionError
from datasync.keyval.consul.client import MAX_RESPONSE, ConsulClient
from datasync.keyval.consul.errors import translate
from datasync.keyval.consul.keys import KeyRange, path_of
from datasync.keyval.consul.listing import check_hidden, get_range, index_of, look_up, pairs_of
from datasync.keyval.diff_stream import KnownPictures, PairMarks, Picture, PictureSource
from datasync.keyval.types import KeyValue, RewoundError
from datasync.runtime.http_client.connections import ReceivedResponse
from datasync.runtime.wording import below

#: A key that nobody has.
NO_KEY = "datasync/no-such-key"


def list_picture(client: ConsulClient, known: KnownPictures, prefix: str) -> Picture:
    """Return the picture of *prefix*, after a check that nothing is hidden from the token."""
    return read_picture(client, known, prefix, get_range(client, KeyRange.of(prefix), f"listing {below(prefix)}"))


def read_picture(client: ConsulClient, known: KnownPictures, prefix: str, response: ReceivedResponse) -> Picture:
    """Return the picture of *prefix* in *response*, after the same check."""
    keys, what = KeyRange.of(prefix), f"listing {below(prefix)}"
    index, pairs = index_of(response, what, client.name), pairs_of(response, keys, what, client.name)
    last = known.latest(prefix)
    vanished = set() if last is None else last[1].keys() - pairs.keys()
    check_hidden(client, keys, vanished, empty=not pairs)
    if last is not None and index < last[0] and PairMarks.of(pairs) == last[1]:
        index = last[0]  # as in ConsulPictures._settle
    return Picture(index, pairs)


class ConsulPictures(PictureSource):
    """The pictures of *prefix* after the revision *after*, by one blocking query after another on one connection.

    A query that ends without a change is not read further than to the fact that it is the same.
    """

    def __init__(self, client: ConsulClient, known: KnownPictures, prefix: str, after: int) -> None:
        self._client = client
        self._known = known
        self._prefix = prefix
        self._keys = KeyRange.of(prefix)
        self._what = f"watching {below(prefix)}"
        self._connection = client.open_stream()
        self._revision = after
        self._index = 0  # of the last response; 0: the next query does not wait
        self._response: ReceivedResponse | None = None
        self._sent_at: float | None = None  # the time of the query that runs

    def picture(self) -> Picture:
        if self._response is None:
            self._ask()
            self._take()
        response = self._response
        assert response is not None
        pairs = pairs_of(response, self._keys, self._what, self._client.name)
        self._revision = self._settle(self._index, pairs)
        return Picture(self._revision, pairs)

    def wait(self, seconds: float) -> bool:
        if self._sent_at is None:
            self._ask()
        assert self._sent_at is not None
        limit = self._client.config.idle_limit
        left = self._sent_at + limit - time.monotonic()
        if not self._connection.ready(min(seconds, left)):
            if left <= seconds:
                raise StoreConnectionError(
                    f"{self._client.name}: no response to a blocking query of {self._client.config.wait:g} s"
                    f" within {limit:.1f} s"
                )
            return False
        return self._take()

    def wake(self) -> None:
        self._connection.cut()

    def close(self) -> None:
        self._connection.close()

    def _ask(self) -> None:
        """Send the next query, which waits for an index above the last one."""
        self._client.check_usable()
        query = ["recurse", "consistent"]
        if self._index:
            query += [f"index={self._index}", f"wait={round(self._client.config.wait * 1000)}ms"]
        target = self._client.path(self._client.target(path_of(self._keys.listable), *query))
        self._connection.request(target, self._client.headers)
        self._sent_at = time.monotonic()

    def _take(self) -> bool:
        """Read the response, and return True if it differs from the last one."""
        received = self._connection.response()
        self._sent_at = None
        chunks: list[bytes] = []
        size = 0
        while chunk := self._connection.read():
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_RESPONSE:
                raise StoreConnectionError(f"{self._client.name}: a response has more than {MAX_RESPONSE} bytes")
        response = ReceivedResponse(received.status, received.headers, b"".join(chunks))
        if response.status not in (200, 404):
            raise translate(self._what, self._client.name, response)
        index = index_of(response, self._what, self._client.name)
        last = self._response
        same = last is not None and (index, response.status, response.data) == (self._index, last.status, last.data)
        self._index, self._response = index, response
        return not same

    def _settle(self, index: int, pairs: dict[str, KeyValue]) -> int:
        """Return the revision of a picture, which follows that of ``_revision``.

        Raises:
          PermissionDenied: The token may not read what has vanished.
          CompactedError: Pairs differ, the index does not: the rights of the token have changed.
          RewoundError: The index went back, and pairs differ.
        """
        before = self._known.find(self._prefix, self._revision)
        vanished = set() if before is None else before.keys() - pairs.keys()
        check_hidden(self._client, self._keys, vanished, empty=not pairs)
        if index > self._revision:
            return index
        if before is None:
            return self._never_seen(index)
        if PairMarks.of(pairs) == before:
            # An index that went back without a difference: Consul has forgotten a delete, after a quarter of an hour.
            return self._revision
        if index == self._revision:
            raise CompactedError(f"{self._client.name}: the token may read other keys now: list {self._prefix!r} again")
        raise self._rewound(index)

    def _never_seen(self, index: int) -> int:
        """Return the revision of a picture at *index*, not above ``_revision``, which belongs to another prefix.

        Each prefix has an index of its own. The one of a key that is not there is that of the whole store.
        """
        if index < self._revision:
            whole = look_up(self._client, NO_KEY).revision
            if whole < self._revision:
                raise self._rewound(whole)
        return self._revision

    def _rewound(self, index: int) -> RewoundError:
        return RewoundError(f"{self._client.name} is at index {index}, below {self._revision}")
