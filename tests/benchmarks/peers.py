"""Peers: other client libraries with the same task. A peer that fails is listed with the reason.

cslab-etcd3, the maintained fork of python-etcd3, gets a channel without a limit of message size, as the
baseline has, and uses callbacks, its shortest way from the connection to the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.benchmarks.bare_etcd import OPTIONS
from tests.benchmarks.harness import PeerFailed
from tests.benchmarks.replay import PATIENCE

ETCD3 = "cslab-etcd3 (imported as etcd3), a callback out of watch_prefix"


class Etcd3:
    """A client of the peer, created on first use: a missing or broken library counts as a failure of the peer."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._client: Any = None

    def watch(self, prefix: str, after: int, wanted: int, each: Callable[[str, bytes], object]) -> Etcd3Watch:
        if self._client is None:
            import etcd3  # type: ignore[import-untyped]

            host, _, port = self._endpoint.rpartition(":")
            self._client = etcd3.client(host, int(port), timeout=PATIENCE, grpc_options=OPTIONS)
        return Etcd3Watch(self._client, prefix, after, wanted, each)

    def __enter__(self) -> Etcd3:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()


class Etcd3Watch:
    """Calls *each* with the key and value of every put after a revision. A context manager that ends it.

    Args:
      wanted: How many events ``wait`` waits for.
    """

    def __init__(self, client: Any, prefix: str, after: int, wanted: int, each: Callable[[str, bytes], object]) -> None:
        self._client = client
        self._prefix = prefix
        self._after = after
        self._wanted = wanted
        self._each = each
        self._counted = 0
        self._end: object = None
        self._over = threading.Event()

    def __enter__(self) -> Etcd3Watch:
        self._id = self._client.add_watch_prefix_callback(self._prefix, self._take, start_revision=self._after + 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.cancel_watch(self._id)

    def wait(self) -> None:
        """Until *wanted* events were seen.

        Raises:
          PeerFailed: The watch ended before, or nothing more came.
        """
        in_time = self._over.wait(PATIENCE)
        if self._counted < self._wanted:
            why = f"its watch ended with {_told(self._end)}" if in_time else f"nothing more within {PATIENCE:g} s"
            raise PeerFailed(f"{self._counted:,} of {self._wanted:,} events came: {why}")

    def _take(self, response: Any) -> None:
        # Called in the peer's thread; at the end of the stream with an error or None in place of a response.
        if not hasattr(response, "events"):
            self._end = response
            self._over.set()
            return
        for event in response.events:
            self._each(event.key.decode(), event.value)
            self._counted += 1
        if self._counted >= self._wanted:
            self._over.set()


def _told(end: Any) -> str:
    """The error that ended a stream, on one line; gRPC errors print several."""
    if hasattr(end, "code"):
        return f"{end.code().name} ({end.details()})"
    return repr(end)
